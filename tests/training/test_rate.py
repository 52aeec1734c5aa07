"""Training for the bytes of a file, on real digits: files are as large as they were told to be, and smaller where bits cost."""

from __future__ import annotations

import functools
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto import data
from enxuto.errors import RangeError, RecipeError
from enxuto.layers import Coded, Rehearsal
from enxuto.layers.coded import dense
from enxuto.recipe import line, run
from enxuto.records import Record
from enxuto.sites import parameters, sites
from enxuto.training.objective import Moment
from enxuto.training.rate import APART, Rate


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@functools.cache
def trained() -> ex.Task:
    from sklearn.datasets import load_digits

    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x = (x / 16).float()
    torch.manual_seed(0)
    plain = ex.Task(
        Net(),
        calibration=data.inputs(x[:256], 64),
        train=data.batches(x[:1280].view(-1, 1, 8, 8), y[:1280], batch_size=128),
        loss=nn.functional.cross_entropy,
        evaluate=data.accuracy(x[1280:], y[1280:]),
    )
    model, _ = ex.Recover(epochs=20, learning_rate=1e-2, teacher=0.0)(plain.model, plain)
    return ex.Task(model, calibration=plain.calibration, train=plain.train, loss=plain.loss, evaluate=plain.evaluate)


def trained_with(folder: Path, *steps: ex.Step, **arguments: object) -> tuple[int, float, Record, nn.Module]:
    """The bytes of the file, its quality, the record of the training, and the network."""
    task = trained()
    recover = ex.Recover(epochs=20, learning_rate=1e-2, teacher=0.9, temperature=1.0, **arguments)  # type: ignore[arg-type]
    then = [] if isinstance(recover.rate, str) else [ex.Quantize(biases=6, bits=8, per="tensor", fit="absmax")]
    small, records = run(task, [*steps, recover, *then])
    ex.save(small, folder / "small.nxt", original=task.model)
    assert task.evaluate is not None
    loaded = ex.load(folder / "small.nxt", into=task.model)
    record = next(each for each in records if each.step.startswith("Recover"))
    return (folder / "small.nxt").stat().st_size, float(torch.as_tensor(task.evaluate(loaded)).mean()), record, small


FINE = ex.Quantize(bits=8, per="tensor", fit="absmax")
WITH_BIASES = ex.Quantize(bits=8, per="tensor", fit="absmax", biases=6)


def test_two_prices_for_the_same_codes_are_refused() -> None:
    for arguments in ({"rate": 1e-6, "terms": [ex.terms.Rate("2 kB")]}, {"terms": [ex.terms.Rate(), ex.terms.Rate("2 kB")]}):
        with pytest.raises(RecipeError, match="price the same codes; leave one of rate="):
            ex.Recover(**arguments)  # type: ignore[arg-type]


def test_bits_that_cost_become_fewer_and_the_network_still_works(tmp_path: Path) -> None:
    plain, before, _, _ = trained_with(tmp_path, FINE)
    priced, after, record, small = trained_with(tmp_path, FINE, rate=1e-5)
    assert priced < 0.4 * plain
    assert after > before - 0.01
    assert record.figures["loss_per_bit"] == 1e-5
    assert priced - 400 < record.figures["coded_bytes"] < priced, "what the price foresees is what the file takes"
    assert not any(isinstance(module, Rehearsal) for module in small.modules())


@pytest.mark.parametrize("fine", [FINE, WITH_BIASES])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("wanted", [700, 900, 1500])
def test_a_rate_in_bytes_comes_to_that_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, order: int, fine: ex.Step
) -> None:
    shuffled = in_order(order)
    monkeypatch.setattr(sys.modules[__name__], "trained", lambda: shuffled)
    size, quality, record, _ = trained_with(tmp_path, fine, rate=f"{wanted} B")
    assert size == pytest.approx(wanted, rel=0.1), "the promise is 0.15"
    assert quality > 0.6
    assert 0 <= record.figures["loss_per_bit"] < 1e-4, "the price does not pull harder than it has to"
    assert not record.skipped


@functools.cache
def in_order(order: int) -> ex.Task:
    """The same task with the batches of a training in another order, after which numbers go other ways."""
    task = trained()
    batches = list(task.train)  # type: ignore[arg-type]
    turned = [*batches[order:], *batches[:order]]
    return ex.Task(task.model, calibration=task.calibration, train=turned, loss=task.loss, evaluate=task.evaluate)


def test_what_another_step_leaves_meanwhile_stays_out(tmp_path: Path) -> None:
    """A step in `during` and the cut both say what stays; zeros of either are zeros."""
    size, _, _, small = trained_with(tmp_path, WITH_BIASES, rate="1.5 kB", during=[ex.Prune(0.9)])
    values = [site.read() for site in sites(small)]
    assert sum(int((value == 0).sum()) for value in values) >= 0.89 * sum(value.numel() for value in values)
    assert size < 1.1 * 1500


def test_steps_tighten_inside_one_training(tmp_path: Path) -> None:
    size, quality, record, small = trained_with(tmp_path, during=[ex.Prune(0.8), ex.Share(3)])
    values = [site.read() for site in sites(small)]
    assert sum(int((value == 0).sum()) for value in values) >= 0.79 * sum(value.numel() for value in values)
    assert quality > 0.8
    assert size < 2500
    assert record.step == (
        "Recover(epochs=20, learning_rate=0.01, teacher=0.9, temperature=1.0, during=[Prune(sparsity=0.8), Share(bits=3)])"
    )


def test_with_nothing_gradual_all_is_tight_from_the_first_batch() -> None:
    task = trained()
    step = ex.Recover(epochs=0.1, during=[ex.Prune(0.8), ex.Quantize(4, per="tensor")], tight=0, rate=1e-6)
    small, _ = step(task.model, task)
    assert all(isinstance(site.module, Coded) for site in sites(small))
    assert line(step) == (
        "Recover(epochs=0.1, during=[Prune(sparsity=0.8), Quantize(bits=4, per='tensor')], tight=0, rate=1e-06)"
    )


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        trained_with(tmp_path, FINE, rate="1.2 kB")
        found.append((tmp_path / "small.nxt").read_bytes())
    assert found[0] == found[1]


def test_the_term_pulls_weights_to_zero_and_steps_apart() -> None:
    task = trained()
    student = ex.prepare(task, [FINE])
    term = Rate(student, weight=1.0)
    moment = Moment(student, None, torch.zeros(1), None, progress=0.5)
    loss = term(moment)
    loss.backward()
    leaf = next(module for module in student.modules() if isinstance(module, Rehearsal))
    assert leaf.change is not None
    assert isinstance(leaf.leaf.grad, Tensor)
    assert isinstance(leaf.change.grad, Tensor)
    assert bool((leaf.leaf.grad * leaf.leaf >= 0).all()), "descent makes every weight smaller"
    assert float(leaf.change.grad) < 0, "and the step wider"
    assert term.coded_bytes > 1000


def test_biases_that_nothing_needs_become_zero(tmp_path: Path) -> None:
    """Where no weight of a neuron is left, neither is its bias: its bits count too."""
    _, _, _, small = trained_with(tmp_path, WITH_BIASES, rate=1e-5)
    first, second = (site.read() for site in sites(small))
    unread = (second == 0).all(0)
    bias = dense(next(site for site in parameters(small) if site.key == "1.bias").tensor)
    assert int(unread.sum()) > 5
    assert not bool(bias[unread].any())
    assert int((first[~unread] != 0).any(1).sum()) > 5


def test_the_last_part_has_no_price_and_zeros_stay() -> None:
    task = trained()
    student = ex.prepare(task, [WITH_BIASES])
    term = Rate(student, weight=1.0)
    for progress in (0.5, 0.79):
        assert bool(term(Moment(student, None, torch.zeros(1), None, progress=progress)) > 0)
    term.since = APART
    assert not term(Moment(student, None, torch.zeros(1), None, progress=0.81))
    leaves = [module for module in student.modules() if isinstance(module, Rehearsal)]
    assert len(leaves) == 4
    for leaf in leaves:
        assert leaf.keep is not None
        assert torch.equal(leaf.keep, leaf() != 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rate": 0.0}, "rate=0.0"),
        ({"rate": "much"}, "much"),
        ({"rate": "2"}, "rate='2' is a text without a unit; write '2 kB' for bytes, or 2 for a number"),
        ({"rate": "3e-6"}, "3e-6"),
        ({"tight": 1.5}, "tight=1.5"),
        ({"tight": 0.5}, "tight=0.5 is for steps in during=, and there are none"),
        ({"during": [ex.PruneChannels(macs=0.5)]}, "PruneChannels in during="),
        ({"during": [ex.Prune]}, "Prune in during="),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments: dict[str, object], words: str) -> None:
    with pytest.raises((RangeError, RecipeError, ValueError), match=words):
        ex.Recover(**arguments)  # type: ignore[arg-type]


def test_bytes_that_were_missed_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """More than training comes to without any price is out of reach, and the price does not fall below none."""
    task = trained()
    fine, _ = FINE(task.model, task)
    _, record = ex.Recover(epochs=0.3, rate="10 kB")(fine, task)
    assert [change.what for change in record.skipped] == ["missed"]
    assert "in place of 10.0 kB" in record.skipped[0].why
    assert "in place of 10.0 kB" in caplog.text
    assert record.figures["loss_per_bit"] == 0


def test_few_batches_come_to_the_bytes_too(tmp_path: Path) -> None:
    """What three batches make of the network is another matter, but not one of the file."""
    task = trained()
    small, _ = run(task, [FINE, ex.Recover(epochs=0.3, rate="1.2 kB")])
    ex.save(small, tmp_path / "small.nxt", original=task.model)
    assert (tmp_path / "small.nxt").stat().st_size == pytest.approx(1200, rel=0.15)


@pytest.mark.parametrize(
    ("rate", "first", "words"), [(1e-6, [], "none is on a grid"), ("100 B", [FINE], "less than what is no code")]
)
def test_a_rate_that_cannot_be_is_refused_before_anything_is_trained(
    rate: object, first: list[ex.Step], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(RangeError, match=words):
        run(trained(), [*first, ex.Recover(rate=rate)])  # type: ignore[arg-type]
