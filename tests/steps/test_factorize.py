import pytest
import torch
from torch import nn

from enxuto.errors import LayerError, NothingChangedError, RangeError
from enxuto.layers import AffineTensor, Coded, LowRankConv, LowRankLinear
from enxuto.steps.factorize import Factorize
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from enxuto.task import Task
from toys import Block, Mlp, ResidualCnn, Tied, inputs, output, photograph, seeded, task_of, unchanged


def low_rank(layer, rank):
    """Makes the weight of a layer one of this rank."""
    matrix = layer.weight.detach().flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    layer.weight.data.copy_((u[:, :rank] * s[:rank] @ v[:rank]).view_as(layer.weight))
    return layer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(20, 16), (3, 20)),
        (nn.Linear(20, 16, bias=False), (3, 5, 20)),
        (nn.Conv1d(6, 12, 3, stride=2, padding=1), (2, 6, 9)),
        (nn.Conv2d(6, 12, 3, padding="same", dilation=2), (2, 6, 9, 9)),
        (nn.Conv2d(6, 12, (1, 5), padding=(0, 2), padding_mode="circular", bias=False), (2, 6, 9, 9)),
        (nn.Conv3d(6, 12, 2), (2, 6, 4, 4, 4)),
    ],
    ids=str,
)
def test_a_layer_of_low_rank_becomes_two_thin_ones_with_the_same_outputs(layer, shape):
    model, x = nn.Sequential(low_rank(layer, 3), nn.Tanh()), torch.randn(shape)
    task = Task(model, calibration=[x])
    smaller, record = Factorize(rank=3)(model, task)
    assert torch.allclose(output(smaller, x), output(model, x), atol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert "100.0% of the squared" in record.changes[0].why
    by_energy, _ = Factorize(energy=0.99999)(model, task)
    assert by_energy[0].down.weight.shape == smaller[0].down.weight.shape


def test_layers_that_would_grow_are_left_alone_and_named():
    task = task_of(Mlp)
    model, record = Factorize(rank=5)(task.model, task)
    assert isinstance(model.fc1, LowRankLinear)
    assert type(model.fc3) is nn.Linear
    assert [(c.path, c.why) for c in record.skipped] == [("fc3", "rank 5 would take 145 weights in place of 120")]


def test_a_rank_that_makes_everything_grow_is_refused():
    task = task_of(Mlp)
    before = photograph(task.model)
    with pytest.raises(NothingChangedError, match="use a lower rank"):
        Factorize(rank=100)(task.model, task)
    assert unchanged(task.model, before)


def test_what_cannot_be_factorized_is_named_with_its_reason():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(Own(16, 16), nn.Linear(16, 16), nn.Unflatten(1, (8, 2)), nn.Conv1d(8, 8, 1, groups=2))
    task = Task(model, calibration=[torch.randn(2, 16)])
    for start in (model, Quantize(8)(model, task)[0]):
        _, record = Factorize(rank=2)(start, task)
        reasons = {change.path: change.why for change in record.skipped}
        assert "a forward of its own" in reasons["0"]
        assert "grouped" in reasons["3"]
        assert [change.path for change in record.changes] == ["1"]


def test_attention_keeps_the_layers_it_reads_directly():
    task = task_of(Block)
    _, record = Factorize(rank=3)(task.model, task)
    assert "attention.out_proj" in {change.path for change in record.skipped}
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    wrapped = nn.Sequential(encoder, nn.Linear(16, 16))
    smaller, record = Factorize(rank=3)(wrapped, Task(wrapped, calibration=[torch.randn(2, 5, 16)]))
    assert output(smaller, torch.randn(2, 5, 16)).shape == (2, 5, 16)
    assert {c.path for c in record.skipped} == {"0.linear1", "0.linear2", "0.self_attn.out_proj"}


def test_a_tied_weight_is_left_whole_because_its_twin_keeps_it():
    task = Task(seeded(Tied), calibration=[torch.arange(6).view(2, 3)])
    _, record = Factorize(rank=3)(task.model, task)
    assert [(c.path, c.why) for c in record.skipped] == [("head", "its weight is also that of 'embed', which keeps it")]


def test_a_model_that_is_one_layer_must_be_wrapped():
    layer = nn.Linear(16, 16)
    with pytest.raises(NothingChangedError, match="wrap it"):
        Factorize(rank=2)(layer, Task(layer, calibration=[torch.randn(2, 16)]))


@pytest.mark.parametrize(
    "first",
    [Quantize(8), Quantize(4, "fc*", per="group", group=4), Quantize(1), Share(4), Quantize(8, activations=8, biases=8)],
    ids=str,
)
@pytest.mark.parametrize("kind", [Mlp, ResidualCnn])
def test_coded_layers_give_coded_thin_layers(first, kind):
    task, x = task_of(kind), inputs(kind)
    coded, _ = first(task.model, task)
    model, record = Factorize(rank=3, layers="fc*" if kind is Mlp else "*")(coded, task)
    thin = [m for m in model.modules() if isinstance(m, (LowRankLinear, LowRankConv))]
    assert len(thin) == len(record.changes) > 0
    for change in record.changes:
        before, after = coded.get_submodule(change.path), model.get_submodule(change.path)
        for half in (after.down, after.up):
            assert isinstance(before, Coded) == isinstance(half, Coded)
            assert not isinstance(half, Coded) or half.coded["weight"].grid.bits == first.bits
    assert output(model, x).shape == output(coded, x).shape


def test_factorizing_twice_leaves_the_halves_alone():
    task = task_of(Mlp)
    once, _ = Factorize(rank=5)(task.model, task)
    with pytest.raises(NothingChangedError, match="one half of a factorized layer"):
        Factorize(rank=2, layers="fc1")(once, task)


def test_the_input_grid_goes_to_the_first_of_the_two():
    task = task_of(Mlp)
    coded, _ = Quantize(8, activations=8)(task.model, task)
    model, _ = Factorize(rank=4, layers="fc1")(coded, task)
    assert isinstance(model.fc1.down.coded["weight"], AffineTensor)
    assert float(model.fc1.down.input_grid.scale) == float(coded.fc1.input_grid.scale)


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
def test_the_model_that_is_given_is_left_as_it_was(kind):
    task = task_of(kind)
    task.model.train()
    before = photograph(task.model)
    model, _ = Factorize(rank=2)(task.model, task)
    assert unchanged(task.model, before)
    assert model.training


def test_a_layer_of_zeros_gets_rank_one():
    model = nn.Sequential(nn.Linear(8, 8))
    nn.init.zeros_(model[0].weight)
    smaller, _ = Factorize()(model, Task(model, calibration=[torch.randn(2, 8)]))
    assert smaller[0].down.weight.shape == (1, 8)
    assert torch.equal(output(smaller, torch.ones(1, 8))[0], model[0].bias)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"rank": 0}, "rank=0"), ({"rank": 1.5}, "rank=1.5"), ({"energy": 0.0}, "energy=0.0"), ({"energy": 1.1}, "energy=1.1")],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments, words):
    with pytest.raises(RangeError, match=words):
        Factorize(**arguments)


def test_a_model_without_such_layers_is_refused():
    model = nn.Sequential(nn.Embedding(4, 4))
    with pytest.raises(LayerError, match="selects no layer"):
        Factorize()(model, Task(model, calibration=[torch.zeros(2, dtype=torch.long)]))


def test_a_layer_whose_weight_is_computed_is_left_alone_and_named():
    model = seeded(Mlp)
    nn.utils.parametrize.register_parametrization(model.fc1, "weight", nn.Identity())
    task = Task(model, calibration=[torch.randn(4, 12)])
    small, record = Factorize(rank=2)(model, task)
    assert isinstance(small.fc2, LowRankLinear)
    assert [(it.path, it.why) for it in record.skipped] == [("fc1", "its weight is computed from other parameters")]


class Asks(nn.Module):
    """A network whose forward asks its layers something besides calling them."""

    def __init__(self, forward, layer=None):
        super().__init__()
        self.a, self.b, self.wanted = layer or nn.Linear(16, 64), nn.Linear(64, 16), forward

    def forward(self, x):
        return self.wanted(self, x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.a(x).to(m.b.weight.dtype)),
        lambda m, x: m.b(m.a(x.view(-1, m.a.in_features))).view(-1, m.b.out_features),
        lambda m, x: m.b(m.a(x)) + torch.zeros(m.b.weight.shape[0], device=m.a.weight.device),
    ],
    ids=["a dtype", "sizes", "shape and device"],
)
def test_what_has_one_answer_is_answered(forward):
    model = Asks(forward).eval()
    x = torch.randn(3, 16)
    small, record = Factorize(rank=2)(model, Task(model, calibration=[x]))
    assert [change.path for change in record.changes] == ["a", "b"]
    assert output(small, x).shape == (3, 16)
    assert small.a.weight.shape == model.a.weight.shape


@pytest.mark.parametrize("coded", [False, True])
def test_a_layer_whose_weight_is_computed_with_elsewhere_stays(coded):
    model = Asks(lambda m, x: nn.functional.linear(m.b(m.a(x)), m.b.weight.t())).eval()
    task = Task(model, calibration=[torch.randn(3, 16)])
    start = Quantize(8)(model, task)[0] if coded else model
    small, record = Factorize(rank=2)(start, task)
    assert [change.path for change in record.changes] == ["a"]
    assert [(c.path, c.why) for c in record.skipped] == [("b", "'the model' computes with its weight directly")]
    assert type(small.b) is type(start.b)


def test_a_layer_that_is_asked_what_a_thin_one_has_not_stays():
    model = Asks(lambda m, x: m.b(m.a(x)) * m.b.weight_scale).eval()
    model.b.weight_scale = 2.0
    x = torch.randn(3, 16)
    before = photograph(model)
    small, record = Factorize(rank=2)(model, Task(model, calibration=[x]))
    assert [change.path for change in record.changes] == ["a"]
    assert record.skipped[0].path == "b"
    assert "the model reads what a thin layer has not (AttributeError: 'LowRankLinear' object has no" in record.skipped[0].why
    assert small.b.weight_scale == 2.0
    assert unchanged(model, before)


@pytest.mark.parametrize(
    "layer", [nn.Linear(20, 16), nn.Conv2d(6, 12, (1, 5), stride=2, padding=(0, 2), dilation=(1, 2))], ids=str
)
def test_a_thin_layer_has_the_attributes_of_the_whole(layer):
    whole = low_rank(layer, 3)
    thin = (LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv).of(whole, 3)
    for name in (*layer.__constants__, "bias"):
        if name != "output_padding":
            assert torch.equal(thin.bias, whole.bias) if name == "bias" else getattr(thin, name) == getattr(whole, name)
    assert torch.allclose(thin.weight, whole.weight, atol=1e-5)


def test_outputs_that_moved_far_are_warned_of(caplog):
    task = task_of(Mlp)
    Factorize(rank=1)(task.model, task)
    assert "moves the outputs by" in caplog.text
    caplog.clear()
    model = nn.Sequential(low_rank(nn.Linear(20, 16), 3))
    Factorize(rank=3)(model, Task(model, calibration=[torch.randn(2, 20)]))
    assert not caplog.text


def test_the_record_says_how_far_the_outputs_moved():
    task = task_of(Mlp)
    x = inputs(Mlp)
    for rank in (1, 7):
        small, record = Factorize(rank=rank)(task.model, task)
        expected = output(task.model, x)
        moved = float((output(small, x) - expected).double().norm() / expected.double().norm())
        assert record.figures["output_error"] == pytest.approx(moved, rel=1e-4)
        assert moved > 0
