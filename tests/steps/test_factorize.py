import pytest
import torch
from torch import nn

from enxuto.artifact.save import load, save
from enxuto.errors import LayerError, NothingChangedError, RangeError
from enxuto.exporters import export
from enxuto.layers import AffineTensor, Coded, CPConv, KroneckerLinear, LowRankConv, LowRankLinear, TuckerConv
from enxuto.macs import total_macs
from enxuto.recipe import run
from enxuto.steps.factorize import Factorize
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from enxuto.surgery import to_float
from enxuto.task import Task
from toys import Block, Mlp, ResidualCnn, Tied, inputs, output, photograph, seeded, task_of, unchanged


def low_rank(layer, rank):
    """Makes the weight of a layer one of this rank."""
    matrix = layer.weight.detach().flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    layer.weight.data.copy_((u[:, :rank] * s[:rank] @ v[:rank]).view_as(layer.weight))
    return layer


def left(record):
    """The layers left alone, and why."""
    return [(change.path, change.why) for change in record.skipped if change.path]


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
    assert "100.0% of the squares" in record.changes[0].why
    by_energy, _ = Factorize(energy=0.99999, form="svd")(model, task)
    assert by_energy[0].down.weight.shape == smaller[0].down.weight.shape


def test_layers_that_would_grow_are_left_alone_and_named():
    task = task_of(Mlp)
    model, record = Factorize(rank=5)(task.model, task)
    assert isinstance(model.fc1, LowRankLinear)
    assert type(model.fc3) is nn.Linear
    assert left(record) == [("fc3", "rank 5 of 5 would take 145 weights in place of 120")]


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
    assert {path for path, _ in left(record)} == {"0.linear1", "0.linear2", "0.self_attn.out_proj"}


def test_a_tied_weight_is_left_whole_because_its_twin_keeps_it():
    task = Task(seeded(Tied), calibration=[torch.arange(6).view(2, 3)])
    _, record = Factorize(rank=3)(task.model, task)
    assert left(record) == [("head", "its weight is also that of 'embed', which keeps it")]


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
    with pytest.raises(NothingChangedError, match="one part of a factorized layer"):
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
    [
        ({"size": 0}, "size=0 is the fraction of the weights left"),
        ({"macs": 1.5}, "macs=1.5"),
        ({"rank": 4, "size": 0.5}, "rank=4 and size=0.5 each say how thin layers get; give one of them"),
        ({"form": "qr"}, "form='qr' is not known; use one of 'auto', 'svd', 'tucker', 'cp', 'kronecker'"),
        ({"least": "bytes"}, "least='bytes' is not known; use one of 'outputs', 'weights'"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"energy": 0.0}, "energy=0.0"),
        ({"energy": 1.1}, "energy=1.1"),
    ],
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
    assert left(record) == [("fc1", "its weight is computed from other parameters")]


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
    assert left(record) == [("b", "'the model' computes with its weight directly")]
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
    thin = (LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv).of(whole, (3,))
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
        moved = float(((output(small, x) - expected).square() / expected.var(0, correction=0)).mean().sqrt())
        assert record.figures["output_error"] == pytest.approx(moved, rel=1e-4)
        assert moved > 0


def correlated(samples=64, width=20, seed=0):
    """Inputs that hang together, of which a few directions hold nearly all."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(samples, 4, generator=generator) @ torch.randn(4, width, generator=generator)
    return made + 0.05 * torch.randn(samples, width, generator=generator)


def wide(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 6)).eval()


def error_of(step, model, x):
    task = Task(model, calibration=[x])
    return step(model, task)[1].figures["output_error"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ask", [{"rank": 6}, {"size": 0.5}, {"macs": 0.6}], ids=str)
def test_outputs_move_less_by_the_data_than_by_the_weights(seed, ask):
    model, x = wide(seed), correlated(seed=seed)
    assert error_of(Factorize(**ask), model, x) < 0.7 * error_of(Factorize(**ask, least="weights"), model, x)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_inputs_and_weights_changes_nothing(scale):
    model, x = nn.Sequential(*wide()[:1]), correlated()
    scaled = nn.Sequential(nn.Linear(20, 40)).eval()
    scaled[0].weight.data, scaled[0].bias.data = model[0].weight.data * scale, model[0].bias.data * scale**2
    one, other = error_of(Factorize(rank=3), model, x), error_of(Factorize(rank=3), scaled, x * scale)
    assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn])
def test_dead_channels_and_three_samples_do_no_harm(kind):
    model, x = seeded(kind), inputs(kind)[:3]
    next(model.parameters()).data[:4] = 0
    small, _ = Factorize(rank=2)(model, Task(model, calibration=[x]))
    assert torch.isfinite(output(small, torch.randn_like(x))).all()


def test_a_layer_that_no_sample_reaches_goes_by_its_weight_and_is_named():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.aside = nn.Linear(20, 20), nn.Linear(20, 20)

        def forward(self, x):
            return self.used(x) if x.ndim == 2 else self.aside(x)

    model, x = Aside().eval(), correlated()
    small, record = Factorize(rank=3)(model, Task(model, calibration=[x]))
    assert [change.path for change in record.changes] == ["used", "aside"]
    assert [(c.path, c.what) for c in record.skipped if c.path] == [("aside", "by its weight alone")]
    by_weight, _ = Factorize(rank=3, least="weights")(model, Task(model, calibration=[x]))
    assert torch.equal(small.aside.down.weight, by_weight.aside.down.weight)
    assert not torch.equal(small.used.down.weight, by_weight.used.down.weight)


TUCKER = [("or", 16, 3), ("rsk", 3, 2, None), ("si", 2, 12)], TuckerConv, "ranks 2 of 12 and 3 of 16: "
CP = [("or", 16, 6), ("ri", 6, 12), ("rk", 6, None)], CPConv, "6 terms of "
TRIED = [
    (nn.Conv1d(12, 16, 5, stride=2, padding=1), (2, 12, 19)),
    (nn.Conv2d(12, 16, 3, padding="same", dilation=2, bias=False), (2, 12, 9, 9)),
    (nn.Conv2d(12, 16, (1, 5), padding=(0, 2), padding_mode="reflect"), (2, 12, 9, 9)),
    (nn.Conv3d(12, 16, 2), (2, 12, 4, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), TRIED, ids=str)
@pytest.mark.parametrize("least", ["outputs", "weights"])
@pytest.mark.parametrize(("form", "made_of"), [("tucker", TUCKER), ("cp", CP)])
def test_a_convolution_becomes_three_thin_ones(layer, shape, least, form, made_of):
    torch.manual_seed(0)
    factors, kind, words = made_of
    places = layer.weight[0, 0].numel()
    parts = [torch.randn([places if size is None else size for size in sizes]) for _, *sizes in factors]
    kernel = torch.einsum(",".join(axes for axes, *_ in factors) + "->oik", *parts)
    layer.weight.data.copy_(kernel.view_as(layer.weight) / 10)
    model, x = nn.Sequential(layer, nn.Tanh()).eval(), torch.randn(shape)
    asked = {"energy": 0.9999} if form == "tucker" else {"rank": 6}
    small, record = Factorize(**asked, form=form, least=least)(model, Task(model, calibration=[x]))
    three = small[0]
    assert isinstance(three, kind)
    assert torch.allclose(output(small, x), output(model, x), atol=0.02)
    assert record.changes[0].what.startswith(words)
    for name in (*layer.__constants__, "bias"):
        if name not in ("output_padding", "bias"):
            assert getattr(three, name) == getattr(layer, name)
    assert torch.allclose(three.weight, layer.weight, atol=1e-2)


@pytest.mark.parametrize("least", ["outputs", "weights"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_matrix_that_is_a_sum_of_kronecker_products_becomes_one(least, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 16, bias=bias), torch.randn(3, 5, 24)
    layer.weight.data.copy_(sum(torch.kron(torch.randn(8, 2), torch.randn(2, 12)) for _ in range(3)) / 10)
    model = nn.Sequential(layer, nn.Linear(16, 3)).eval()
    small, record = Factorize(rank=3, form="kronecker", least=least)(model, Task(model, calibration=[x]))
    assert isinstance(small[0], KroneckerLinear)
    assert torch.allclose(output(small, x), output(model, x), atol=1e-3)
    assert torch.allclose(small[0].weight, layer.weight, atol=1e-3)
    assert (small[0].in_features, small[0].out_features) == (24, 16)
    assert record.changes[0].what == "3 products of 8 x 2 and 2 x 12: 384 weights became 120"
    assert total_macs(small[:1], x) == 5 * (72 * 2 + 48 * 2)
    assert left(record)[0][0] == "1"  # three outputs are no blocks of two: two thin ones, which would grow


def test_kronecker_sums_are_tried_unasked_for_few_outputs():
    torch.manual_seed(0)
    few, many = nn.Linear(24, 16), nn.Linear(16, 24)
    for layer in (few, many):
        size = torch.Size(layer.weight.shape)
        parts = [(torch.randn(size[0] // 2, 2), torch.randn(2, size[1] // 2)) for _ in range(2)]
        layer.weight.data.copy_(sum(torch.kron(*part) for part in parts))
    model = nn.Sequential(many, few).eval()
    small, _ = Factorize(size=0.4)(model, Task(model, calibration=[torch.randn(64, 16)]))
    assert [type(layer) for layer in small] == [LowRankLinear, KroneckerLinear]


def test_tucker_ranks_need_not_grow_macs_where_strides_make_inputs_many():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, stride=4, padding=1)).eval()
    task = Task(model, calibration=[torch.randn(2, 16, 32, 32)])
    before = total_macs(model, task.sample)
    small, _ = Factorize(size=0.9, form="tucker")(model, task)
    assert total_macs(small, task.sample) <= before
    with pytest.raises(NothingChangedError, match="ranks 9 of 16 and 9 of 16 would take more multiply-accumulates"):
        Factorize(rank=9, form="tucker")(model, task)


@pytest.mark.parametrize("step", [Quantize(8, activations=8, biases=8), Share(3)], ids=str)
def test_kronecker_sums_are_coded_saved_loaded_and_exported(step, tmp_path):
    import onnxruntime

    task, x = task_of(Mlp), inputs(Mlp)
    for steps in ([step, Factorize(rank=4, form="kronecker")], [Factorize(rank=4, form="kronecker"), step]):
        small, _ = run(task, steps)
        assert isinstance(small.fc1, KroneckerLinear)
        save(small, tmp_path / "small.nxt", original=task.model)
        assert torch.equal(output(load(tmp_path / "small.nxt", into=seeded(Mlp, seed=1)), x), output(small, x))
        assert isinstance(small.fc1, Coded) == (getattr(step, "biases", None) is not None)  # the sum's own bias
    export(small, tmp_path / "small.onnx", calibration=[x])
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), output(to_float(small), x), atol=1e-4)


@pytest.mark.parametrize("first", [[], [Quantize(4)], [Quantize(8, activations=8, biases=8)], [Share(3)]], ids=str)
def test_three_thin_layers_are_coded_saved_loaded_and_exported(first, tmp_path):
    import onnxruntime

    task, x = task_of(ResidualCnn), inputs(ResidualCnn)
    before = photograph(task.model)
    for steps in ([*first, Factorize(rank=3, form="tucker", layers="conv*")], [Factorize(rank=8, form="cp"), *first]):
        small, _ = run(task, steps)
        assert isinstance(small.conv1, (TuckerConv, CPConv))
        save(small, tmp_path / "small.nxt", original=task.model)
        loaded = load(tmp_path / "small.nxt", into=seeded(ResidualCnn, seed=1))
        assert torch.equal(output(loaded, x), output(small, x))
        export(small, tmp_path / "small.onnx", calibration=[x])
        session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(found), output(to_float(small), x), atol=1e-4)
    assert unchanged(task.model, before)


@pytest.mark.parametrize("goal", ["size", "macs"])
@pytest.mark.parametrize("left_over", [0.75, 0.5, 0.3])
def test_a_budget_is_kept_for_all_selected_layers_together(goal, left_over):
    task = task_of(ResidualCnn)
    small, record = Factorize(**{goal: left_over})(task.model, task)
    sizes = [sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in (small, task.model)]
    macs = [total_macs(m, task.sample) for m in (small, task.model)]
    one, other = sizes if goal == "size" else macs
    assert 0.8 * left_over <= one / other <= left_over
    assert sizes[0] < sizes[1]
    assert macs[0] < macs[1]
    assert record.figures["weights_left"] == pytest.approx(sizes[0] / sizes[1])


def test_a_budget_below_the_least_is_refused_with_the_least():
    task = task_of(Mlp)
    with pytest.raises(RangeError, match=r"size=0.01 is less than there is: at the lowest ranks 0.\d+ of the selected"):
        Factorize(size=0.01)(task.model, task)


def test_without_a_goal_outputs_stay_and_what_they_would_not_survive_is_named():
    model, x = wide(), correlated()
    _, record = Factorize()(model, Task(model, calibration=[x]))
    assert 0 < record.figures["output_error"] <= 0.05
    assert record.figures["weights_left"] < 0.9
    assert {change.path for change in (*record.changes, *record.skipped)} == {"0", "2", "4"}
    assert all("would move by more than 5% of their spread" in change.why for change in record.skipped)


def test_a_network_that_survives_no_thinner_layer_is_refused_without_a_goal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16)).eval()
    nn.init.orthogonal_(model[0].weight)
    with pytest.raises(NothingChangedError, match="'0': thinner, the outputs would move by more than 5%"):
        Factorize()(model, Task(model, calibration=[torch.randn(64, 16)]))


def test_outputs_that_moved_far_are_in_the_record_too():
    task = task_of(Mlp)
    _, record = Factorize(rank=1)(task.model, task)
    [note] = [change for change in record.skipped if not change.path]
    assert (note.what, note.why.split()[-4:]) == ("outputs moved far", ["or", "train", "after", "it"])
    _, record = Factorize(size=0.999)(task.model, task)
    assert all(change.path for change in record.skipped)


def test_the_same_seed_gives_the_same_layers():
    task, x = task_of(ResidualCnn), inputs(ResidualCnn)
    first, second = (Factorize(size=0.5)(task.model, task)[0] for _ in range(2))
    assert torch.equal(output(first, x), output(second, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["svd", "tucker", "cp"])
def test_layers_of_other_dtypes_keep_theirs(dtype, form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3)).to(dtype).eval()
    x = 30 * torch.randn(2, 8, 6, 6, dtype=dtype)
    small, record = Factorize(rank=4, form=form)(model, Task(model, calibration=[x]))
    assert output(small, x).dtype == dtype
    assert torch.isfinite(output(small, x)).all()
    assert all(0 < float(change.why.split()[1].rstrip("%")) < 100 for change in record.changes)


def test_a_network_that_draws_random_numbers_is_held_against_the_same_ones():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = low_rank(nn.Linear(20, 16), 3)

        def forward(self, x):
            return self.fc(x) + torch.randn(len(x), 16)

    model, x = Noisy().eval(), torch.randn(8, 20)
    assert error_of(Factorize(), model, x) < 0.01


def test_a_size_where_nothing_can_be_thinner_is_skipped_with_the_reason():
    """As a part of a recipe it is passed over like every step that finds nothing to do."""
    task = Task(nn.Sequential(nn.Linear(2, 2)), calibration=[torch.randn(8, 2)])
    with pytest.raises(NothingChangedError, match="no selected layer is smaller"):
        Factorize(size=0.5)(task.model, task)


@pytest.mark.parametrize(
    ("form", "model"),
    [("cp", nn.Linear(64, 64)), ("tucker", nn.Conv2d(64, 64, 1)), ("kronecker", nn.Conv2d(64, 64, 3))],
)
def test_a_form_that_fits_no_layer_is_refused(form, model):
    """It was taken for two thin layers, without a word."""
    task = Task(nn.Sequential(model).eval(), calibration=[torch.randn(8, 64, *[4, 4] * isinstance(model, nn.Conv2d))])
    with pytest.raises(RangeError, match=f"form='{form}' fits none of the selected layers .'0'."):
        Factorize(size=0.5, form=form)(task.model, task)
