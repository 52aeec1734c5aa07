"""What each layer loses: as if the step had been done, weighed by the real coder, kept and found again, and every fault named."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from enxuto.artifact.save import ledger, save
from enxuto.errors import ArtifactError, LayerError, LimitError, OutputError, RangeError, TaskError
from enxuto.evidence.outputs import Answers
from enxuto.losses import Loss, Sensitivity, newest_sensitivity
from enxuto.progress import listening
from enxuto.sensitivities import UNREACHED, UNTHIN, sensitivity
from enxuto.steps.factorize import Factorize
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.share import Share
from enxuto.task import Task
from toys import Block, Mlp, ResidualCnn, Tied, photograph, seeded, task_of, unchanged

FEW = {"bits": (4,), "sparsity": (), "sizes": ()}


def loss_of(found: Sensitivity, path: str, what: str) -> Loss:
    layer = next(layer for layer in found.layers if layer.path == path)
    return next(loss for loss in layer.losses if loss.what == what)


@pytest.fixture(scope="module")
def cnn() -> tuple[Task, Sensitivity]:
    task = task_of(ResidualCnn)
    return task, sensitivity(task, bits=(8, 4), sparsity=(0.5,), sizes=(0.5,))


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("4 bits", [Quantize(bits=4, layers="conv2")]),
        ("50% zeros", [Prune(0.5, layers="conv2", scope="layer")]),
        ("50% of the weights", [Factorize(size=0.5, layers="conv2")]),
        ("50% zeros, 4 bits", [Prune(0.5, layers="conv2", scope="layer"), Quantize(bits=4, layers="conv2")]),
    ],
)
def test_what_is_measured_is_what_the_steps_do(cnn, tmp_path, what, steps):
    task, found = cnn
    model = task.model
    for step in steps:
        model, _ = step(model, task)
    loss = loss_of(found, "conv2", what)
    assert loss.error == pytest.approx(Answers(task.model, task.calibration).moved(model) ** 2, rel=1e-9)
    if loss.bits is None:  # so few floats share a stream with others in a file
        return
    save(model, tmp_path / "small.nxt", original=task.model)
    written = [entry for entry in ledger(tmp_path / "small.nxt") if entry.path.startswith("conv2") and entry.kind != "bias"]
    assert loss.bytes == pytest.approx(sum(entry.bytes for entry in written), abs=8)


def test_fewer_bits_lose_more_and_take_less(cnn):
    for layer in cnn[1].layers:
        eight, four = layer.losses[:2]
        assert four.error > eight.error
        assert layer.bytes > eight.bytes > four.bytes


def test_what_is_left_of_a_file_is_told(cnn, tmp_path):
    task, found = cnn
    model, _ = Quantize(bits=8)(task.model, task)
    save(model, tmp_path / "small.nxt", original=task.model)
    weights = sum(loss_of(found, layer.path, "8 bits").bytes for layer in found.layers)
    assert found.rest_bytes + weights == pytest.approx((tmp_path / "small.nxt").stat().st_size, abs=1)


def test_errors_grow_along_the_depth_and_hold_what_a_layer_adds(cnn):
    eight, four = ([each for each in cnn[1].depth if each.bits == bits] for bits in (8, 4))
    assert [each.path for each in four] == ["conv1", "conv2", "conv3", "fc"]
    assert four[0].error == pytest.approx(four[0].own, rel=1e-6)  # its inputs are those of the original
    assert all(few.error > many.error for few, many in zip(four, eight, strict=True))
    assert four[1].error > four[1].own


def test_the_same_seed_gives_the_same_numbers_and_the_model_stays():
    task = task_of(Mlp)
    before = photograph(task.model)
    one, two = (sensitivity(task, bits=(4, 3), sparsity=(0.5,), sizes=(0.5,)) for _ in range(2))
    assert one == two
    assert unchanged(task.model, before)


def test_a_loader_that_shuffles_gives_the_same_numbers_too():
    data = torch.randn(40, 12, generator=torch.Generator().manual_seed(2))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)  # type: ignore[arg-type]
    task = Task(seeded(Mlp), calibration=loader)
    one, two = (sensitivity(task, **FEW, samples=8) for _ in range(2))
    assert one.layers == two.layers


def test_it_is_kept_found_again_and_goes_on(tmp_path):
    task = task_of(Mlp)
    said: list[tuple[int, int]] = []

    def stop(what: str, done: int, total: int) -> None:
        said.append((done, total))
        if "lose" in what and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening(stop):
        sensitivity(task, bits=(8, 4), sparsity=(), sizes=(), folder=tmp_path)
    (part,) = tmp_path.iterdir()
    kept = json.loads(part.read_text())
    assert [len(losses) for losses in kept.values()] == [2, 2]
    kept["fc1"][0]["error"] = 0.125  # what was measured is not measured again
    part.write_text(json.dumps(kept))
    found = sensitivity(task, bits=(8, 4), sparsity=(), sizes=(), folder=tmp_path)
    assert loss_of(found, "fc1", "8 bits").error == 0.125
    (whole,) = tmp_path.iterdir()
    assert Sensitivity.load(whole) == found == newest_sensitivity(tmp_path)
    with listening(lambda *_: pytest.fail("it was measured again")):
        assert sensitivity(task, bits=(8, 4), sparsity=(), sizes=(), folder=tmp_path) == found
    assert sensitivity(task, bits=(8, 3), sparsity=(), sizes=(), folder=tmp_path).key != found.key
    assert said[0][0] == 0


def test_what_was_kept_and_is_damaged_is_measured_again(tmp_path, caplog):
    task = task_of(Mlp)
    found = sensitivity(task, **FEW, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    for text in ("{", '{"name": 3}', path.read_text().replace('"samples"', '"sample"')):
        path.write_text(text)
        with caplog.at_level(logging.WARNING):
            assert sensitivity(task, **FEW, folder=tmp_path) == found
        assert "measured again" in caplog.text
    path.write_text("[]")
    with pytest.raises(ArtifactError, match=r"Sensitivity\.save"):
        Sensitivity.load(path)
    assert newest_sensitivity(tmp_path) is None
    with pytest.raises(ArtifactError, match="cannot be read"):
        Sensitivity.load(tmp_path / "nowhere.json")


def test_answers_that_stay_are_counted_where_outputs_are_classes():
    assert loss_of(sensitivity(task_of(Mlp), **FEW), "fc1", "4 bits").agreement is None
    task = task_of(Mlp, outputs="classes")
    made, _ = Quantize(bits=2, layers="fc2")(task.model, task)
    same = task.model(task.sample).argmax(1) == made(task.sample).argmax(1)
    found = sensitivity(task, bits=(2,), sparsity=(), sizes=())
    assert loss_of(found, "fc2", "2 bits").agreement == pytest.approx(float(same.float().mean()))


class Two(nn.Module):
    """A layer that no batch reaches, a parameter of its own, and one whose inputs reach far."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.spare = nn.Linear(12, 40), nn.Linear(40, 4), nn.Linear(40, 4)
        self.own = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.fc1(x))
        return self.fc2(y) @ self.own if len(x) < 10**6 else self.spare(y)


def test_a_layer_that_no_batch_reaches_is_named():
    found = sensitivity(Task(seeded(Two), calibration=[torch.randn(8, 12)]), **FEW)
    assert {layer.path: layer.why for layer in found.layers} == {"fc1": "", "fc2": "", "spare": UNREACHED}
    assert loss_of(found, "spare", "4 bits").bytes > 0
    assert any(note.startswith("'spare': no calibration batch reaches it") for note in found.notes())
    assert any(note.startswith("'own': a parameter that Two holds itself") for note in found.notes())


def test_layers_that_a_step_cannot_take_are_named_with_the_reason():
    found = sensitivity(task_of(Block), layers=["attention", "embed"], bits=(4,), sparsity=(), sizes=(0.5, 0.01))
    assert loss_of(found, "attention", "50% of the weights").why == UNTHIN
    assert "forward of its own" in loss_of(found, "attention.out_proj", "50% of the weights").why
    assert "lowest ranks" in loss_of(found, "embed", "1% of the weights").why
    assert loss_of(found, "attention", "4 bits").error > 0
    assert f"'attention' (thin layers): {UNTHIN}." in found.notes()
    assert any(note.startswith("'embed' (1% of the weights; 1% of the weights, 4 bits): its lowest") for note in found.notes())
    (tied,) = sensitivity(Task(seeded(Tied), calibration=[torch.arange(12).view(3, 4)]), layers=["embed", "head"], **FEW).left
    assert (tied.path, tied.why) == ("head", "its weight is that of 'embed', with which it changes")


def faulty() -> tuple[nn.Module, Tensor]:
    """A chain of layers with one fault of each kind, and its inputs."""
    torch.manual_seed(0)
    sizes = itertools.pairwise((40, 40, 300, 40, 40, 4))
    chain = nn.Sequential(*(part for size in sizes for part in (nn.Linear(*size), nn.Tanh())))[:-1]
    x = torch.randn(64, 40)
    x[:, 3] *= 50
    x[:, 20:25] = 0
    x[32:, 7] *= 1000
    with torch.no_grad():
        chain[0].weight[:, [3, 7]] *= 1e-4
        chain[2].weight[0], chain[2].bias[0] = 0, 0  # so that nobody hears the weights that stand out behind it
        chain[4].weight[:, 0] = 30
        chain[8].weight.mul_(1e6)
    return chain, x


def test_every_fault_is_named_with_its_figures_and_a_remedy():
    model, x = faulty()
    found = sensitivity(Task(model, calibration=[x]), **FEW)
    kinds = {(fault.path, fault.kind): fault for fault in found.faults}
    assert kinds.keys() == {
        *(("0", kind) for kind in ("input outliers", "saturation", "dead channels")),
        *(("4", kind) for kind in ("weight outliers", "own error")),
        ("8", "overflow"),
    }
    assert kinds["0", "input outliers"].channel == 7
    assert kinds["0", "dead channels"].count == 5
    assert kinds["0", "saturation"].value == pytest.approx(1 / 40, rel=0.3)
    assert kinds["8", "overflow"].value == pytest.approx(float(model(x).detach().abs().max()), rel=1e-6)
    assert kinds["4", "own error"].bits == 4
    assert kinds["4", "own error"].own == pytest.approx(1, abs=0.3)
    for fault in found.faults:
        assert fault.words.startswith(f"'{fault.path}': ")
        assert fault.words.endswith(".")
        assert fault.value > fault.limit
    assert [fault.words for fault in found.faults] == found.notes()[: len(found.faults)]


def test_a_healthy_network_has_no_fault():
    model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 4))
    torch.manual_seed(0)
    assert sensitivity(Task(model, calibration=[torch.randn(256, 12)]), samples=256, **FEW).faults == ()


def test_samples_are_few_and_memory_bounds_them():
    task = Task(seeded(Mlp), calibration=[torch.randn(50, 12), torch.randn(50, 12)])
    assert sensitivity(task, **FEW).samples == 64
    one = sensitivity(Task(task.model, calibration=[task.sample[:8]]), **FEW)
    assert one.samples == 8
    assert sensitivity(task, samples=8, **FEW).layers == one.layers
    assert sensitivity(task, memory="1 GB", **FEW).layers == sensitivity(task, **FEW).layers
    with pytest.raises(LimitError, match="memory='1 MB'"):
        sensitivity(task, memory="1 MB", **FEW)


def test_steps_that_ask_the_data_see_other_samples_where_there_are_some():
    x = torch.randn(48, 12, generator=torch.Generator().manual_seed(3))
    model = seeded(Mlp)
    few = {"layers": "fc2", "bits": (), "sparsity": (), "sizes": (0.5,), "samples": 16}
    found = sensitivity(Task(model, calibration=[x[:32], x[32:]]), **few)
    made, _ = Factorize(size=0.5, layers="fc2")(model, Task(model, calibration=[x[16:32], x[32:]]))
    assert found.apart
    assert not found.notes()
    expected = Answers(model, [x[:16]]).moved(made) ** 2
    assert loss_of(found, "fc2", "50% of the weights").error == pytest.approx(expected, rel=1e-9)
    same = sensitivity(Task(model, calibration=[x[:16], x[16:20]]), **few)
    assert not same.apart
    assert any("there are no 16 others" in note for note in same.notes())


def test_a_large_network_gets_fewer_samples(monkeypatch):
    task = Task(seeded(Mlp), calibration=[torch.randn(200, 12)])
    monkeypatch.setattr("enxuto.sensitivities.MOST_MACS", 1_272 * 3 * 20.0)  # twenty passes of one sample for each layer
    assert sensitivity(task, **FEW).samples == 20
    assert sensitivity(task, samples=10, **FEW).samples == 10
    thin = sensitivity(task, bits=(), sparsity=(), sizes=(0.5,))
    assert (thin.samples, thin.apart) == (8, True)


def test_rounding_by_the_data_is_measured_too():
    task = task_of(Mlp)
    near = sensitivity(task, bits=(3,), sparsity=(), sizes=())
    by_data = sensitivity(task, bits=[Quantize(bits=3, rounding="gptq")], sparsity=(), sizes=())
    assert by_data.quantize["rounding"] == "gptq"
    made, _ = Quantize(bits=3, layers="fc2", rounding="gptq")(task.model, task)
    expected = Answers(task.model, task.calibration).moved(made) ** 2
    assert loss_of(by_data, "fc2", "3 bits").error == pytest.approx(expected, rel=1e-9)
    assert loss_of(by_data, "fc2", "3 bits") != loss_of(near, "fc2", "3 bits")


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"bits": (), "sparsity": (), "sizes": ()}, RangeError, "all empty"),
        ({"bits": (9,)}, RangeError, "bits=9"),
        ({"sparsity": (1.0,)}, RangeError, "sparsity=1.0"),
        ({"sizes": (0.0,)}, RangeError, "size=0.0"),
        ({"bits": 4}, RangeError, "bits=4 is no list"),
        ({"bits": [Quantize(4), Quantize(3, rounding="gptq")]}, RangeError, "differ"),
        ({"bits": [Quantize(tolerance=0.001)]}, RangeError, r"tolerance=0\.001"),
        ({"samples": 0}, RangeError, "samples=0"),
        ({"bits": [Share]}, RangeError, "bits holds the class Share, which is no number of bits and no Quantize step"),
        ({"bits": [Share(3)]}, RangeError, r"bits holds Share\(bits=3"),
        ({"folder": __file__}, OutputError, "test_sensitivities.py' cannot be written: .*; name another one with folder="),
        ({"layers": "nothing*"}, LayerError, r"layers='nothing\*'"),
        ({"layers": "bn1"}, LayerError, "selects no layer"),
    ],
)
def test_what_makes_no_sense_is_refused_first(asked, error, words):
    with listening(lambda *_: pytest.fail("it was begun")), pytest.raises(error, match=words):
        sensitivity(task_of(ResidualCnn), **asked)


def test_samples_that_are_not_finite_are_refused():
    model = seeded(Mlp)
    with pytest.raises(TaskError, match="NaN or infinite outputs"):
        sensitivity(Task(model, calibration=[torch.randn(4, 12), torch.full((4, 12), torch.nan)]), **FEW)
    late = [torch.randn(64, 12), torch.randn(64, 12), torch.full((4, 12), torch.nan)]
    with pytest.raises(TaskError, match="NaN or infinite outputs on calibration batch 3"):
        sensitivity(Task(model, calibration=late), **FEW)
    with pytest.raises(TaskError, match="not a Task"):
        sensitivity(model, **FEW)


def test_a_whole_network_of_one_layer_is_measured(tmp_path: Path):
    found = sensitivity(Task(nn.Linear(12, 4), calibration=[torch.randn(8, 12)]), **FEW)
    assert found.layers[0].patterns == ("*",)
    assert found.layers[0].losses[0].error > 0
    found.save(tmp_path / "one.json")
    assert Sensitivity.load(tmp_path / "one.json") == found
