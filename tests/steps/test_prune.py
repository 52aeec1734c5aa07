import pytest
import torch
from torch import nn

from enxuto.errors import LayerError, NothingChangedError, RangeError, ShapeError
from enxuto.sites import sites
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from enxuto.task import Task
from enxuto.training.prepare import convert, prepare
from toys import Block, Mlp, ResidualCnn, Tied, inputs, output, photograph, seeded, task_of, unchanged


def zeros(model, layers="*"):
    found = [weight.read() for weight in sites(model, layers)]
    return sum(int((w == 0).sum()) for w in found), sum(w.numel() for w in found)


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
@pytest.mark.parametrize("scores", ["magnitude", "lamp"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.93])
def test_global_sparsity_is_exact_to_one_weight(kind, scores, sparsity):
    task = task_of(kind)
    model, record = Prune(sparsity=sparsity, scores=scores)(task.model, task)
    gone, total = zeros(model)
    assert gone == round(sparsity * total)
    assert record.figures["sparsity"] == pytest.approx(gone / total)


def test_sparsity_in_each_layer_is_exact_in_each():
    task = task_of(Mlp)
    model, _ = Prune(sparsity=0.8, scope="layer")(task.model, task)
    for weight in sites(model):
        assert int((weight.read() == 0).sum()) == round(0.8 * weight.read().numel())


def test_what_stays_is_untouched_and_larger_than_what_went():
    task = task_of(Mlp)
    model, _ = Prune(sparsity=0.7, scores="magnitude")(task.model, task)
    before = torch.cat([w.read().flatten() for w in sites(task.model)])
    after = torch.cat([w.read().flatten() for w in sites(model)])
    stays = after != 0
    assert torch.equal(before[stays], after[stays])
    assert before[~stays].abs().max() <= before[stays].abs().min()


def test_a_pruned_zero_is_the_positive_one():
    task = task_of(Mlp)
    model, _ = Prune(sparsity=0.9)(task.model, task)
    for weight in sites(model):
        assert not bool(torch.signbit(weight.read()[weight.read() == 0]).any())


def test_a_pattern_keeps_two_of_four():
    task = task_of(Mlp)
    model, _ = Prune(pattern="2:4")(task.model, task)
    for weight in sites(model):
        assert bool(((weight.read().reshape(-1, 4) != 0).sum(dim=1) == 2).all())


def test_a_pattern_that_does_not_divide_is_refused_before_anything_changed():
    task = Task(nn.Sequential(nn.Linear(6, 4)), calibration=[torch.randn(2, 6)])
    before = photograph(task.model)
    with pytest.raises(ShapeError, match=r"a multiple of 1 by 4 weights, and '0.weight' \(4 by 6\) are none"):
        Prune(pattern="2:4")(task.model, task)
    assert unchanged(task.model, before)


def test_only_the_chosen_layers_are_pruned_and_others_can_be_excluded():
    task = task_of(Mlp)
    model, record = Prune(sparsity=0.5, layers="fc2")(task.model, task)
    assert [change.path for change in record.changes] == ["fc2.weight"]
    assert zeros(model, "fc1")[0] == zeros(model, "fc3")[0] == 0
    model, record = Prune(sparsity=0.5, layers=["*", "!fc2"])(task.model, task)
    assert zeros(model, "fc2")[0] == 0


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
def test_the_model_that_is_given_is_left_as_it_was(kind):
    task = task_of(kind)
    task.model.train()
    before = photograph(task.model)
    Prune(sparsity=0.5)(task.model, task)
    assert unchanged(task.model, before)


def test_pruning_again_as_much_changes_nothing_and_says_so():
    task = task_of(Mlp)
    model, _ = Prune(sparsity=0.5)(task.model, task)
    with pytest.raises(NothingChangedError, match="as many are zero already"):
        Prune(sparsity=0.5)(model, task)
    with pytest.raises(NothingChangedError):
        Prune(sparsity=0.3)(model, task)
    with pytest.raises(NothingChangedError):
        Prune(sparsity=0.0)(model, task)
    more, _ = Prune(sparsity=0.6)(model, task)
    assert zeros(more)[0] == round(0.6 * zeros(more)[1])


@pytest.mark.parametrize("first", [Quantize(4), Quantize(2, per="tensor"), Share(3), Share(1)], ids=str)
def test_coded_weights_are_pruned_on_their_grid(first):
    task = task_of(Mlp)
    coded, _ = first(task.model, task)
    model, record = Prune(sparsity=0.9)(coded, task)
    gone, total = zeros(model)
    assert gone >= round(0.9 * total)
    assert record.figures["sparsity"] == gone / total
    for before, after in zip(sites(coded), sites(model), strict=True):
        assert type(after.tensor) is type(before.tensor)
        stays = after.read() != 0
        if first != Share(1):  # whose two values make room for zero
            assert torch.equal(before.read()[stays], after.read()[stays])


def test_binary_weights_cannot_be_pruned_because_they_have_no_zero():
    task = task_of(Mlp)
    binary, _ = Quantize(1)(task.model, task)
    before = photograph(binary)
    with pytest.raises(ShapeError, match="bits=1 has no code for zero"):
        Prune(sparsity=0.5)(binary, task)
    assert unchanged(binary, before)


@pytest.mark.parametrize("first", [None, Share(4), Quantize(8)], ids=str)
def test_tied_weights_are_pruned_once_and_stay_tied(first):
    task = Task(seeded(Tied), calibration=[torch.arange(6).view(2, 3)])
    start = first(task.model, task)[0] if first else task.model
    model, record = Prune(sparsity=0.9)(start, task)
    assert [change.path for change in record.changes] == ["embed.weight", "mix.weight"]
    assert torch.equal(model.embed.weight, model.head.weight)
    assert float((model.head.weight == 0).float().mean()) > 0.5


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e25])
def test_layers_of_any_size_are_pruned_alike(size):
    task = task_of(Mlp)
    with torch.no_grad():
        for weight in sites(task.model):
            weight.write_(weight.read() * (size if weight.path == "fc2" else 1.0))
    plain = task_of(Mlp)
    model, _ = Prune(sparsity=0.8)(task.model, plain)
    expected, _ = Prune(sparsity=0.8)(plain.model, plain)
    assert abs(zeros(model, "fc2")[0] - zeros(expected, "fc2")[0]) <= 2


def test_parameters_that_no_layer_covers_are_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.table = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return self.fc(x) @ self.table

    task = Task(Odd(), calibration=[torch.randn(2, 4)])
    _, record = Prune(sparsity=0.5)(task.model, task)
    assert [(change.path, change.what) for change in record.skipped] == [("table", "left in float")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"scores": "l2"}, "scores='l2'"),
        ({"scope": "model"}, "scope='model'"),
        ({"pattern": "4:2"}, "pattern='4:2'"),
        (
            {"pattern": "2:4", "sparsity": 0.9},
            "pattern='2:4' makes 0.5 of the weights zero and sparsity=0.9 asks for another part",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments, words):
    with pytest.raises(RangeError, match=words):
        Prune(**arguments)


def test_a_pattern_may_say_its_sparsity():
    assert Prune(pattern="1:4", sparsity=0.75).pattern == Prune(pattern="1:4").pattern


@pytest.mark.parametrize("layers", ["fc9", ["fc1", "nothing*"], [], "!*"])
def test_a_pattern_that_selects_nothing_is_refused(layers):
    task = task_of(Mlp)
    with pytest.raises(LayerError, match=r"layers="):
        Prune(layers=layers)(task.model, task)


def test_a_model_that_is_one_layer_is_pruned():
    task = Task(nn.Linear(10, 10), calibration=[torch.randn(2, 10)])
    model, _ = Prune(sparsity=0.5)(task.model, task)
    assert int((model.weight == 0).sum()) == 50


def test_a_pruned_model_runs_and_is_deterministic():
    task = task_of(ResidualCnn)
    first, second = (Prune(sparsity=0.6)(task.model, task)[0] for _ in range(2))
    assert torch.equal(output(first, inputs(ResidualCnn)), output(second, inputs(ResidualCnn)))


@pytest.mark.parametrize("rehearsed", [False, True])
def test_a_pattern_leaves_the_layers_it_does_not_divide_and_names_them(rehearsed):
    task = task_of(ResidualCnn)
    first = sites(task.model)[0]
    assert first.read()[0].numel() % 4
    step = Prune(pattern="2:4")
    if rehearsed:
        model = convert(prepare(task, [step]))
    else:
        model, record = step(task.model, task)
        assert [(change.path, change.what) for change in record.skipped] == [(first.key, "left alone")]
        assert "this has 8 by 27 weights" in record.skipped[0].why
    assert torch.equal(sites(model)[0].read(), first.read())
    for weight in sites(model)[1:]:
        assert bool(((weight.read().reshape(-1, 4) != 0).sum(dim=1) <= 2).all())
