"""Equalize: outputs stay, rounding costs less, and what cannot be followed is left alone and named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import LayerError, NothingChangedError, RangeError
from enxuto.groups.links import find_links, scale_
from enxuto.task import Task
from toys import Block, Mlp, ResidualCnn, Tied, output, photograph, seeded, unchanged

SHAPES = {Mlp: (12,), ResidualCnn: (3, 8, 8), Block: (7, 6)}


def samples(kind: type[nn.Module], count: int = 48, seed: int = 3) -> list[Tensor]:
    drawn = torch.randn(count, *SHAPES[kind], generator=torch.Generator().manual_seed(seed)) + 0.3
    return list(drawn.split(16))


def wild(model: nn.Module, batch: Tensor, size: float = 4.0) -> nn.Module:
    """A network that computes the same with channels of very different sizes."""
    made, chance = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for link in find_links(made, batch)[0]:
        scale_(made, link, 2 ** ((torch.rand(link.size, generator=chance, dtype=torch.float64) * 2 - 1) * size))
    return made


def wild_task(kind: type[nn.Module]) -> Task:
    return Task(wild(seeded(kind), samples(kind)[0]), calibration=samples(kind))


def far(model: nn.Module, original: nn.Module, x: Tensor) -> float:
    return float((output(model, x) - output(original, x)).norm() / output(original, x).norm())


@pytest.mark.parametrize(("kind", "bits", "per"), [(Mlp, 4, "channel"), (ResidualCnn, 8, "tensor"), (Block, 4, "channel")])
def test_outputs_stay_and_wild_channels_lose_less(kind: type[nn.Module], bits: int, per: str) -> None:
    task = wild_task(kind)
    before = photograph(task.model)
    equal, record = ex.Equalize(bits=bits, per=per)(task.model, task)
    new = samples(kind, seed=9)[0]
    assert unchanged(task.model, before)
    assert far(equal, task.model, new) < 1e-5
    rounded = ex.Quantize(bits=bits, per=per, activations=8)
    plain, better = (rounded(model, task)[0] for model in (task.model, equal))
    assert far(better, task.model, new) < 0.5 * far(plain, task.model, new)
    assert record.figures["rounded_error"] < record.figures["rounded_error_before"]


def test_the_same_seed_gives_the_same_bytes() -> None:
    task = wild_task(Mlp)
    one, other = (ex.Equalize(by="inputs")(task.model, task)[0].state_dict() for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one.values(), other.values(), strict=True))


def test_equal_ranges_are_those_of_the_paper() -> None:
    task = Task(wild(seeded(Mlp), samples(Mlp)[0]), calibration=samples(Mlp))
    equal, record = ex.Equalize(by="weights", per="tensor")(task.model, task)
    rows, columns = equal.fc1.weight.abs().amax(1), equal.fc2.weight.abs().amax(0)
    ratio = rows / columns
    assert torch.allclose(ratio, ratio.mean().expand(32), rtol=0.02)
    assert {change.why for change in record.changes} == {"equal ranges of the weights"}


def test_alpha_moves_that_part_of_the_inputs_range() -> None:
    task = wild_task(Block)
    smooth, _ = ex.Equalize(by="inputs", alpha=1.0, layers=["norm2", "fc1"])(task.model, task)
    seen: list[Tensor] = []
    smooth.fc1.register_forward_hook(lambda module, given, out: seen.append(given[0].abs().flatten(0, 1).amax(0)))
    for batch in task.calibration:
        output(smooth, batch)
    largest = torch.stack(seen).amax(0)
    assert largest.max() / largest.min() < 1.7  # of a sample of the inputs
    assert torch.equal(smooth.attention.in_proj_weight, task.model.attention.in_proj_weight)


def test_a_batch_norm_answers_for_the_rows_before_it_with_its_epsilon() -> None:
    model = seeded(ResidualCnn)
    model.bn1.running_var.mul_(1e-4)  # beside which epsilon counts
    (link, *_), _ = find_links(model, samples(ResidualCnn)[0])
    made = copy.deepcopy(model)
    scale_(made, link, torch.logspace(-2, 2, 8, dtype=torch.float64))
    assert not torch.allclose(made.conv1.weight, model.conv1.weight)
    assert far(made, model, samples(ResidualCnn)[0]) < 1e-5


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_sizes_of_weights_do_not_matter(scale: float) -> None:
    model = wild(seeded(Mlp), samples(Mlp)[0])
    model.fc1.weight.data *= scale
    model.fc1.bias.data *= scale
    model.fc2.weight.data /= scale
    task = Task(model, calibration=samples(Mlp))
    equal, _ = ex.Equalize(bits=4)(model, task)
    plain = ex.Quantize(bits=4)(model, task)[0]
    assert far(equal, model, samples(Mlp)[0]) < 1e-5
    assert far(ex.Quantize(bits=4)(equal, task)[0], model, samples(Mlp)[0]) < 0.7 * far(plain, model, samples(Mlp)[0])


def test_dead_channels_keep_the_factor_one() -> None:
    model = wild(seeded(Mlp), samples(Mlp)[0])
    with torch.no_grad():
        model.fc1.weight[3], model.fc1.bias[3], model.fc2.weight[:, 5] = 0, 0, 0
    task = Task(model, calibration=samples(Mlp))
    for by in ("best", "weights"):
        equal, _ = ex.Equalize(by=by, per="tensor")(model, task)
        assert torch.equal(equal.fc2.weight[:, 3] != 0, model.fc2.weight[:, 3] != 0)
        assert torch.isfinite(output(equal, samples(Mlp)[0])).all()
        assert far(equal, model, samples(Mlp)[0]) < 1e-5


def test_three_samples_do_no_harm() -> None:
    for kind in (Mlp, Block):
        model = wild(seeded(kind), samples(kind)[0])
        task = Task(model, calibration=[samples(kind)[0][:3]])
        equal, _ = ex.Equalize(bits=4)(model, task)
        new = samples(kind, seed=9)[0]
        plain, better = (ex.Quantize(bits=4)(each, task)[0] for each in (model, equal))
        assert far(better, model, new) < far(plain, model, new)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gets_powers_of_two_and_loses_nothing(dtype: torch.dtype) -> None:
    model = wild(seeded(Mlp), samples(Mlp)[0], size=3.0).to(dtype)
    batches = [batch.to(dtype) for batch in samples(Mlp)]
    equal, _ = ex.Equalize(bits=4)(model, Task(model, calibration=batches))
    assert equal.fc1.weight.dtype == dtype
    assert not torch.equal(equal.fc2.weight, model.fc2.weight)
    assert torch.equal(output(equal, batches[0]), output(model, batches[0]))


class Own(nn.Module):
    """Activations that no name tells of: one that passes factors on, one that does not, and one that hides from the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.slope = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(self.a(x) > 0, self.a(x), 0.1 * self.a(x))  # its rows are read three times
        x = self.slope(self.b(x)).clamp(min=0)
        return self.d(torch.tanh(self.c(x)))


def test_activations_are_tried_and_not_taken_by_name() -> None:
    torch.manual_seed(0)
    task = Task(Own().eval(), calibration=list(torch.randn(48, 8).split(16)))
    links, left = find_links(task.model, task.sample)
    assert [(link.writers, link.readers) for link in links] == [(("b",), ("c",))]
    reasons = {change.path: change.why for change in left}
    assert "does not pass factors on" in reasons["a"]
    assert set(reasons) == {"a", "d"}


@pytest.mark.parametrize(
    ("activation", "linked"),
    [
        (nn.ReLU(), 1),
        (nn.LeakyReLU(0.2), 1),
        (nn.Identity(), 1),
        (nn.ReLU6(), 0),
        (nn.GELU(), 0),
        (nn.SiLU(), 0),
        (nn.Sigmoid(), 0),
    ],
    ids=str,
)
def test_links_go_through_what_is_homogeneous(activation: nn.Module, linked: int) -> None:
    net = nn.Sequential(nn.Conv2d(2, 6, 3), activation, nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(54, 3)).eval()
    assert len(find_links(net, torch.randn(2, 2, 8, 8))[0]) == linked


def test_depthwise_gated_and_hand_written_norms_are_linked() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(6) + 0.5)
            self.gate, self.up, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
            return x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))

    links, _ = find_links(Gated().eval(), torch.randn(2, 5, 6))
    assert sorted((link.writers, link.readers) for link in links) == [(("scale",), ("gate", "up")), (("up",), ("down",))]
    thin = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    links, _ = find_links(thin, torch.randn(2, 2, 8, 8))
    assert [(link.writers, link.readers) for link in links] == [(("0",), ("2",)), (("2",), ("4",))]


def test_norms_are_linked_to_all_that_read_them_and_values_to_the_output() -> None:
    links, _ = find_links(seeded(Block), samples(Block)[0])
    assert [(link.writers, link.readers) for link in links] == [
        (("norm1",), ("attention",)),
        (("norm2",), ("fc1",)),
        (("attention",), ("attention.out_proj",)),
    ]


class Decoder(nn.Module):
    """A block as language models write it: values for two heads each, positions, and a scale at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm = nn.Linear(4, 16), nn.RMSNorm(16)
        self.q, self.k, self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)
        self.position, self.scale = nn.Parameter(torch.randn(1, 5, 16)), nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x) + self.position
        y, (batch, time, _) = self.norm(x), x.shape
        q = self.q(y).view(batch, time, 4, 4).transpose(1, 2)
        k, v = (part(y).view(batch, time, 2, 4).transpose(1, 2) for part in (self.k, self.v))
        k, v = (part[:, :, None].expand(batch, 2, 2, time, 4).reshape(batch, 4, time, 4) for part in (k, v))
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.scale * self.o(a.transpose(1, 2).reshape(batch, time, 16))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.fc = nn.Embedding(20, 8), nn.LSTM(8, 6, bidirectional=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embed(x))[0])


TURNED = nn.Sequential(
    *(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 8, 3, groups=2), nn.LeakyReLU(), nn.ConvTranspose2d(8, 4, 3)),
    *(nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)),
)


@pytest.mark.parametrize(
    ("net", "batch", "expected"),
    [
        (Decoder(), torch.randn(2, 5, 4), ["norm > q, k, v", "v > o", "o > scale"]),
        (Recurrent(), torch.randint(0, 20, (2, 5)), ["embed > lstm"]),
        (TURNED, torch.randn(2, 2, 8, 8), ["0 > 2", "2 > 4", "5 > 7", "7 > 9"]),
    ],
    ids=["decoder", "recurrent", "turned"],
)
def test_links_of_networks_that_others_write(net: nn.Module, batch: Tensor, expected: list[str]) -> None:
    links, _ = find_links(net.eval(), batch)
    assert {f"{', '.join(link.writers)} > {', '.join(link.readers)}" for link in links} == set(expected)


def test_what_reads_a_weight_itself_stops_its_factors() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)) / self.a.weight.norm())

    links, left = find_links(Net().eval(), torch.randn(2, 6))
    assert links == []
    assert ("a", "'a.weight' is read in another way too") in [(change.path, change.why) for change in left]


def test_tied_and_coded_weights_are_left_alone_and_named() -> None:
    tokens = [torch.randint(0, 64, (4, 5))]
    with pytest.raises(NothingChangedError, match="several places"):
        ex.Equalize()(Tied().eval(), Task(Tied().eval(), calibration=tokens))
    task = wild_task(Mlp)
    coded, _ = ex.Quantize(bits=4, layers="fc3")(task.model, task)
    equal, record = ex.Equalize(bits=4)(coded, task)
    assert [change.path for change in record.changes] == ["fc1"]
    assert ("fc3", "it is coded already; equalize before that") in [(change.path, change.why) for change in record.skipped]
    assert torch.equal(equal.fc3.weight, coded.fc3.weight)


def test_only_links_of_chosen_layers_get_factors() -> None:
    task = wild_task(Mlp)
    equal, record = ex.Equalize(bits=4, layers=["fc1", "fc2"])(task.model, task)
    assert [change.path for change in record.changes] == ["fc1"]
    assert torch.equal(equal.fc3.weight, task.model.fc3.weight)
    with pytest.raises(LayerError, match="nothing"):
        ex.Equalize(layers="nothing*")(task.model, task)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"by": "magic"}, "use one of 'best', 'weights', 'inputs'"),
        ({"bits": 1}, "2..8"),
        ({"per": "row"}, "use 'tensor', 'channel' or 'group'"),
        ({"activations": 4}, "use 8 or None"),
        ({"by": "inputs", "alpha": 2}, r"\[0, 1\]"),
        ({"alpha": 0.5}, "by='inputs'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(RangeError, match=words):
        ex.Equalize(**arguments)  # type: ignore[arg-type]


def test_a_network_that_is_one_layer_is_called_the_network() -> None:
    model = nn.Linear(12, 4)
    with pytest.raises(ex.Error, match=r"\(the network: it is an output of the model\)"):
        ex.Equalize()(model, ex.Task(model, calibration=[torch.randn(8, 12)]))


def test_it_saves_loads_and_stays_exact(tmp_path) -> None:
    task = wild_task(ResidualCnn)
    equal, _ = ex.Equalize(by="weights", per="tensor")(task.model, task)
    ex.save(equal, tmp_path / "a.nxt", original=task.model)
    loaded = ex.load(tmp_path / "a.nxt", into=seeded(ResidualCnn, seed=1))
    assert torch.equal(output(loaded, samples(ResidualCnn)[0]), output(equal, samples(ResidualCnn)[0]))
