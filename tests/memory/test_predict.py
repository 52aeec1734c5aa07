"""A prediction is what the allocator reports of the same step, allocates nothing, and leaves the model alone."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enxuto as ex
from enxuto import zoo
from enxuto.errors import RangeError, TaskError
from enxuto.memory.profile import (
    ACTIVATIONS,
    BACKWARD,
    CATEGORIES,
    FORWARD,
    GRADIENTS,
    INPUTS,
    OPTIMIZER,
    UPDATE,
    WEIGHTS,
    Profile,
)
from enxuto.memory.recording import _OnGpu, allocations
from enxuto.memory.tracker import Tracker
from enxuto.sizes import tensor_bytes

KINDS = {"inference": None, "sgd": torch.optim.SGD, "adam": torch.optim.Adam}
TOLERANCE = {"inference": 0.03, "sgd": 0.05, "adam": 0.05}  # the issue's own


def images(samples: int) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 1, 28, 28), torch.randint(0, 10, (samples,))


def arguments(kind: str) -> dict[str, object]:
    return {} if kind == "inference" else {"loss": F.cross_entropy, "optimizer": KINDS[kind]}


def computes_lstm_in_bf16() -> bool:
    """Whether torch can on this processor: oneDNN has no such kernel below AVX-512 (ONEDNN_MAX_CPU_ISA=AVX2 shows it)."""
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(4, 4)(torch.randn(2, 1, 4))
    except RuntimeError:
        return False
    return True


CASES = [
    *((name, kind, "32-true") for name in zoo.NAMES for kind in ("inference", "adam")),
    *((name, kind, "bf16-mixed") for name in ("resnet-8", "lstm", "transformer") for kind in ("inference", "adam")),
    *((name, "sgd", precision) for name, precision in (("lenet-5", "32-true"), ("gru", "32-true"), ("resnet-8", "bf16-mixed"))),
]


@pytest.mark.parametrize(("name", "kind", "precision"), CASES)
def test_the_predicted_peak_is_the_measured_one(name, kind, precision):
    model, batch = zoo.build(name), images(16)
    given = batch[0] if kind == "inference" else batch
    predicted = ex.memory.predict(model, given, precision=precision, **arguments(kind))
    if name == "lstm" and precision == "bf16-mixed" and not computes_lstm_in_bf16():
        with pytest.raises(TaskError, match="fails with"):  # of a step that this processor cannot take nothing is measured
            ex.memory.record(model, given, precision=precision, **arguments(kind))
        return
    measured = ex.memory.record(model, given, precision=precision, **arguments(kind))
    assert predicted.predicted
    assert not measured.predicted
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=TOLERANCE[kind])


def test_the_batch_size_asked_for_is_the_one_predicted():
    model = zoo.build("resnet-8")
    asked = ex.memory.predict(model, images(4), loss=F.cross_entropy, batch_size=24)
    given = ex.memory.predict(model, images(24), loss=F.cross_entropy)
    assert asked.peak_bytes == given.peak_bytes


def test_a_huge_batch_takes_no_memory_to_predict():
    profile = ex.memory.predict(zoo.build("lenet-5"), images(2), loss=F.cross_entropy, batch_size=10**6)
    assert profile.peak_bytes > 50e9  # more than any machine that runs this test gives


def test_the_model_is_what_it_was():
    model = zoo.build("resnet-8").eval()
    model.stages[0].train()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    batch, state = images(2), torch.get_rng_state()
    ex.memory.predict(model, batch, loss=F.cross_entropy, optimizer=torch.optim.Adam)
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_categories_of_a_small_step_follow_from_arithmetic():
    model = nn.Linear(100, 10)  # 1010 parameters
    batch = torch.randn(7, 100), torch.randn(7, 10)
    profile = ex.memory.predict(model, batch, loss=F.mse_loss, optimizer=torch.optim.Adam)
    timeline = profile.timeline
    assert timeline[WEIGHTS].max() == 4 * 1010
    assert timeline[GRADIENTS].max() == 4 * 1010
    assert timeline[OPTIMIZER].max() == 2 * 4 * 1010 + 2 * 4  # two moments, and two counts of steps
    assert timeline[INPUTS].max() == 4 * (7 * 100 + 7 * 10)
    backward = next(at for at, moment in enumerate(profile.moments) if moment.phase == BACKWARD)
    assert timeline[ACTIVATIONS][backward] >= 4 * 7 * 10  # the outputs, which the loss keeps


def test_phases_come_in_order_and_layers_are_named_in_each():
    profile = ex.memory.predict(zoo.build("lenet-300-100"), images(3), loss=F.cross_entropy, optimizer=torch.optim.SGD)
    phases = [moment.phase for moment in profile.moments]
    assert phases == sorted(phases, key=[FORWARD, BACKWARD, UPDATE].index)
    for phase in (FORWARD, BACKWARD):
        assert {"fc1", "fc2", "fc3"} <= {moment.path for moment in profile.moments if moment.phase == phase}


def test_all_questions_have_the_same_answer():
    profile = ex.memory.predict(zoo.build("resnet-8"), images(5), loss=F.cross_entropy, optimizer=torch.optim.Adam)
    assert tuple(profile.timeline) == CATEGORIES
    assert sum(profile.by_category.values()) == profile.peak_bytes
    assert sum(sum(parts.values()) for parts in profile.by_layer.values()) == profile.peak_bytes
    assert profile.total_bytes.max() == profile.peak_bytes
    assert all((line >= 0).all() for line in profile.timeline.values())
    saved = sum(profile.saved_bytes.values())
    assert saved == profile.timeline[ACTIVATIONS][next(i for i, it in enumerate(profile.moments) if it.phase == BACKWARD)]


def test_a_profile_survives_its_file(tmp_path):
    profile = ex.memory.record(zoo.build("lenet-5"), images(2), loss=F.cross_entropy)
    profile.save(tmp_path / "profile.json")
    assert ex.memory.Profile.load(tmp_path / "profile.json") == profile


class Moody(nn.Module):
    """What it does depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y if float(y.sum()) > 0 else -y


def test_a_model_that_depends_on_values_is_measured_and_says_so(caplog):
    profile = ex.memory.predict(Moody(), torch.randn(2, 4))
    assert not profile.predicted
    assert "measured in a real run" in profile.words
    assert "measured in a real run" in caplog.text


@pytest.mark.parametrize("ask", [ex.memory.predict, ex.memory.record])
def test_a_model_that_fails_on_the_batch_is_told_with_its_reason(ask):
    with pytest.raises(TaskError, match=r"inference fails with batch_size=2.*cannot be multiplied"):
        ask(nn.Linear(4, 4), torch.randn(2, 5))
    with pytest.raises(TaskError, match="missing 1 required positional argument"):
        ask(nn.Bilinear(4, 4, 2), torch.randn(2, 4))
    with pytest.raises(TaskError, match=r"batch_size=1,.*more than 1 value per channel.*try batch_size=2"):
        ask(nn.BatchNorm1d(4), (torch.randn(2, 4), torch.randn(2, 4)), loss=F.mse_loss, batch_size=1)


def test_compressed_layers_are_followed_too():
    model = zoo.build("lenet-5")
    task = ex.Task(model, calibration=[images(4)[0]])
    small = ex.run(task, [ex.Quantize(bits=4)])[0]
    profile = ex.memory.predict(small, images(4)[0])
    assert profile.predicted
    held = {t.untyped_storage().data_ptr(): tensor_bytes(t) for t in [*small.parameters(), *small.buffers()]}
    assert profile.by_category[WEIGHTS] <= sum(held.values())
    assert profile.peak_bytes == pytest.approx(ex.memory.record(small, images(4)[0]).peak_bytes, rel=0.03)


@pytest.mark.parametrize("optimizer", [torch.optim.Adafactor, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_other_optimizers_are_foreseen(optimizer):
    model, batch = zoo.build("lenet-300-100"), images(4)
    predicted = ex.memory.predict(model, batch, loss=F.cross_entropy, optimizer=optimizer)
    assert predicted.predicted
    measured = ex.memory.record(model, batch, loss=F.cross_entropy, optimizer=optimizer)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)


def test_what_makes_no_sense_is_refused():
    model, (x, y) = zoo.build("lenet-5"), images(2)
    with pytest.raises(RangeError, match="precision="):
        ex.memory.predict(model, x, precision="8-true")
    with pytest.raises(TaskError, match="pair"):
        ex.memory.predict(model, x, loss=F.cross_entropy)
    with pytest.raises(TaskError, match="no loss"):
        ex.memory.predict(model, x, optimizer=torch.optim.SGD)
    for ask in (ex.memory.predict, ex.memory.record):
        with pytest.raises(TaskError, match="device='tpu' is not here"):
            ask(model, x, device="tpu")
    with pytest.raises(ex.Error, match="batch_size=0"):
        ex.memory.predict(model, (x, y), loss=F.cross_entropy, batch_size=0)


class AdamW8bit(torch.optim.SGD):
    """Stands in for torchao's: its update is compiled, and its states are of another class of tensors."""

    __module__ = "torchao.optim"

    def step(self, closure: object = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["codes"] = torch.zeros_like(parameter, dtype=torch.uint8)


def test_a_compiled_update_holds_two_copies_of_the_largest_parameter():
    model = zoo.build("lenet-300-100")
    profile = ex.memory.predict(model, images(2), loss=F.cross_entropy, optimizer=AdamW8bit)
    weights = sum(map(tensor_bytes, model.parameters()))
    assert profile.by_category[OPTIMIZER] == weights / 4
    assert profile.moments[profile.peak].phase == UPDATE
    assert profile.peak_bytes == weights * 2.25 + 2 * tensor_bytes(model.fc1.weight) + profile.by_category[INPUTS]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lenet-300-100", "resnet-8", "transformer"])
def test_on_a_gpu_tensors_take_what_is_foreseen(name, kind):
    batch = images(64)
    given = batch[0] if kind == "inference" else batch
    asked = {"device": "cuda", **arguments(kind)}
    predicted = ex.memory.predict(zoo.build(name), given, **asked)
    assert predicted.peak_bytes == pytest.approx(
        ex.memory.record(zoo.build(name), given, **asked).peak_bytes, rel=TOLERANCE[kind]
    )


def test_what_a_gpu_needs_inside_an_operator_is_its_mark_beyond_what_stays(monkeypatch):
    """CUDA's own marks, played: 5,000 bytes at most and 2,000 after every operator."""
    for name, answer in {"reset_peak_memory_stats": None, "max_memory_allocated": 5000, "memory_allocated": 2000}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    model, x = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 2)), torch.randn(4, 8)
    levels = []
    for follow in (Tracker, _OnGpu):
        with torch.no_grad(), follow(model) as tracker:
            model(x)
        levels.append(Profile(tracker.blocks(), tuple(tracker.moments), predicted=False).total_bytes)
    assert len(levels[0]) > 3
    assert (levels[1] - levels[0] == 3000).all()


def test_a_linear_of_three_dimensions_adds_its_bias_in_place_as_it_does_unwatched():
    model, x = nn.Linear(8, 300), torch.randn(50, 10, 8).transpose(0, 1)
    held = tensor_bytes(x) + tensor_bytes(model.weight) + tensor_bytes(model.bias)
    with allocations() as reported, torch.no_grad():
        model(x)
    level = itertools.accumulate((change for _, change in reported), initial=held)
    assert ex.memory.predict(model, x).peak_bytes == pytest.approx(max(level), rel=0.01)
    assert ex.memory.record(model, x).peak_bytes == pytest.approx(ex.memory.predict(model, x).peak_bytes, rel=0.01)


@pytest.mark.parametrize("ask", [ex.memory.predict, ex.memory.record])
def test_a_batch_that_is_a_slice_of_a_data_set_counts_as_itself(ask):
    model, images_of_all = nn.Linear(10, 3), torch.randn(1000, 10)
    assert ask(model, images_of_all[:4]).by_category[INPUTS] == 4 * 10 * 4
