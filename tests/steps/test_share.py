import pytest
import torch

from enxuto.errors import NothingChangedError, RangeError
from enxuto.layers import TableTensor
from enxuto.sites import sites
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from toys import Block, Mlp, ResidualCnn, inputs, output, photograph, task_of, unchanged


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_each_weight_takes_at_most_so_many_values(kind, bits):
    task = task_of(kind)
    before = photograph(task.model)
    model, record = Share(bits)(task.model, task)
    for weight in sites(model):
        assert isinstance(weight.tensor, TableTensor)
        assert len(weight.read().unique()) <= 2**bits
    assert len(record.changes) == len(sites(task.model))
    assert unchanged(task.model, before)


def test_shared_values_are_nearer_than_a_uniform_grid_of_as_many():
    task = task_of(Mlp)
    shared, uniform = Share(3)(task.model, task)[0], Quantize(3, per="tensor")(task.model, task)[0]
    for own, a, b in zip(sites(task.model), sites(shared), sites(uniform), strict=True):
        assert float((a.read() - own.read()).norm()) < float((b.read() - own.read()).norm())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_sharing_twice_is_sharing_once(bits):
    task = task_of(ResidualCnn)
    once, _ = Share(bits, biases=8)(task.model, task)
    with pytest.raises(
        NothingChangedError, match=f"Share.bits={bits}.* would change nothing: 'conv1.weight' keeps its .* shared values"
    ):
        Share(bits, biases=8)(once, task)
    twice, record = Share(bits, biases=4)(once, task)
    assert len(record.skipped) == len(sites(once))
    for a, b in zip(sites(once), sites(twice), strict=True):
        assert torch.equal(a.read(), b.read())


def test_eight_bits_hardly_change_the_outputs():
    task, x = task_of(Block), inputs(Block)
    model, _ = Share(8, biases=8)(task.model, task)
    assert float((output(model, x) - output(task.model, x)).norm() / output(task.model, x).norm()) < 0.02


@pytest.mark.parametrize(
    ("arguments", "words"), [({"bits": 0}, "bits=0"), ({"bits": 12}, "bits=12"), ({"biases": 0}, "biases=0")]
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments, words):
    with pytest.raises(RangeError, match=words):
        Share(**arguments)
