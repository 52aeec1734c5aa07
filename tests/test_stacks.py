"""Every ordered pair of steps on three small networks: save, load, equal outputs; and each pair once in ONNX Runtime.

A new step needs one line in `STEPS_HERE` and is then tested against all others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from enxuto.artifact.save import load, save
from enxuto.errors import NothingChangedError, RecipeError
from enxuto.exporters import export
from enxuto.recipe import run
from enxuto.records import Record
from enxuto.steps.table import STEPS
from enxuto.surgery import duplicate
from enxuto.task import Step, Task
from toys import Block, Mlp, ResidualCnn, inputs, output, photograph, seeded, task_of, unchanged

NETS = (Mlp, ResidualCnn, Block)

# Arguments of each step when it comes first, and what is different when it comes second, so that it still has work to do.
STEPS_HERE: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "Fold": ({}, {}),
    "Equalize": ({"bits": 4, "activations": None}, {}),
    "Prune": ({"sparsity": 0.6}, {"sparsity": 0.85}),
    "PruneChannels": ({"sparsity": 0.25}, {"sparsity": 0.5}),
    "Factorize": ({"rank": 3}, {"rank": 1}),
    "Quantize": ({"bits": 4, "activations": 8, "biases": 8}, {}),
    "Share": ({"bits": 3}, {}),
    "Regrow": ({}, {}),
    "Repair": ({}, {}),
    "Tune": ({"passes": 3}, {}),
    "Recover": ({"epochs": 1}, {}),
}

# What is rightly refused, with the words of the refusal. Whatever is not here must work, and whatever is here must not.
NO_NORM = "the model has no batch norm"
AGREES = "where the original's are"
IDLE = ("Fold", "Repair", "Tune")  # have nothing to do beside each other on some networks
TRAINS = "does nothing by itself"  # Regrow works inside a training
ASIDE = "kept aside"  # Tune finds nothing lost on them
MOVED = "for the better"  # Repair compares layers with the original's, and their channels have other factors
REFUSED: dict[tuple[type[nn.Module], str, str], str] = {
    **{(net, "Fold", name): NO_NORM for net in (Mlp, Block) for name in ("Fold", "Repair")},
    **{(net, "Repair", "Repair"): AGREES for net in NETS},
    **{(net, "Repair", "Fold"): AGREES for net in (Mlp, Block)},
    **{(net, "Fold", "Tune"): NO_NORM for net in (Mlp, Block)},
    **{(net, "Repair", "Tune"): AGREES for net in NETS},
    **{(net, "Tune", name): ASIDE for net in NETS for name in ("Repair", "Tune")},
    **{(net, "Tune", "Fold"): ASIDE for net in (Mlp, Block)},
    **{(net, name, "Regrow"): TRAINS for net in NETS for name in STEPS_HERE},
    **{(net, "Regrow", name): TRAINS for net in NETS for name in STEPS_HERE},
}

# Steps that find nothing to do beside one that does: the place of the step in the pair, and the words of its record.
SKIPPED: dict[tuple[type[nn.Module], str, str], tuple[int, str]] = {
    **{(net, "Fold", name): (0, NO_NORM) for net in (Mlp, Block) for name in STEPS_HERE if name not in IDLE},
    **{(net, name, "Fold"): (1, NO_NORM) for net in (Mlp, Block) for name in STEPS_HERE if name not in IDLE},
    **{(net, "Factorize", "Factorize"): (1, "one part of a factorized layer") for net in NETS},
    **{(net, "Repair", name): (0, AGREES) for net in NETS for name in STEPS_HERE if name not in IDLE},
    **{(net, "Recover", "Repair"): (1, AGREES) for net in (Mlp, Block)},
    **{(net, "Tune", name): (0, ASIDE) for net in NETS for name in STEPS_HERE if name not in IDLE},
    **{(net, "Equalize", "Tune"): (1, ASIDE) for net in NETS},
    **{(net, "Recover", "Tune"): (1, ASIDE) for net in (Mlp, Block)},
    (ResidualCnn, "Tune", "Fold"): (0, ASIDE),
    (ResidualCnn, "Fold", "Tune"): (1, ASIDE),
    (ResidualCnn, "Fold", "Fold"): (1, NO_NORM),
    (ResidualCnn, "Fold", "Repair"): (1, AGREES),
    (ResidualCnn, "Repair", "Fold"): (0, AGREES),
    (Block, "Factorize", "Repair"): (1, "for the better"),  # four samples of a network that was never trained
    (ResidualCnn, "Share", "Fold"): (1, "fold first, then share"),
    **{(net, "Share", "Share"): (1, "shared values") for net in NETS},
    **{(net, name, "Equalize"): (1, "coded already") for net in NETS for name in ("Quantize", "Share")},
    **{(net, "Equalize", "Equalize"): (1, "as even as factors") for net in (Mlp, ResidualCnn)},
    **{(net, "Equalize", "Repair"): (1, MOVED) for net in (Mlp, Block)},
    (ResidualCnn, "Equalize", "Repair"): (1, AGREES),
    (Block, "Prune", "Equalize"): (1, "no better with it"),  # four samples of a network that was never trained
}

PAIRS = list(itertools.product(STEPS_HERE, repeat=2))
ONCE = [(one, two) if (i + j) % 2 else (two, one) for (i, one), (j, two) in itertools.combinations(enumerate(STEPS_HERE), 2)]
ONCE += [(name, name) for name in STEPS_HERE]
CASES = [(net, first, second) for net in NETS for first, second in PAIRS]


def exported() -> list[tuple[type[nn.Module], str, str]]:
    """Each pair, in one order or the other, on one of the networks that take it, in turn: an export of all would take minutes."""
    found = []
    for place, pair in enumerate(ONCE):
        takers = [net for net in NETS if (net, *pair) not in REFUSED]
        found += [(takers[place % len(takers)], *pair)] if takers else []
    return found


def steps_of(first: str, second: str):
    one, two = STEPS_HERE[first][0], STEPS_HERE[second][0] | STEPS_HERE[second][1]
    return [STEPS[first](**one), STEPS[second](**two)]


def task_for(net: type[nn.Module], *names: str) -> Task:
    """Four samples, and a hundred where some are kept aside."""
    if "Tune" not in names:
        return task_of(net)
    chance = torch.Generator().manual_seed(0)
    return Task(seeded(net), calibration=[torch.randn(96, *inputs(net).shape[1:], generator=chance)])


class FirstSteps:
    """What the first step of a recipe gave, which is the same whatever comes second."""

    def __init__(self) -> None:
        self.known: dict[tuple[object, ...], tuple[nn.Module, tuple[Record, ...]]] = {}

    def find(self, task: Task, steps: Sequence[Step]) -> tuple[nn.Module, tuple[Record, ...]] | None:
        model, records = self.known.get(self._name(task, steps), (None, ()))
        return (duplicate(model), records) if model is not None else None

    def keep(self, task: Task, steps: Sequence[Step], model: nn.Module, records: Sequence[Record]) -> None:
        if len(steps) == 1:
            self.known[self._name(task, steps)] = duplicate(model), tuple(records)

    def evidence(self, task: Task, steps: Sequence[Step]) -> None:
        """Kept nowhere."""

    @staticmethod
    def _name(task: Task, steps: Sequence[Step]) -> tuple[object, ...]:
        return type(task.model), len(task.sample), repr(steps)  # the weights and samples of a network here are always the same


BEGUN = FirstSteps()


def named(case: object) -> str:
    return case.__name__ if isinstance(case, type) else str(case)


def test_every_step_is_here():
    assert set(STEPS_HERE) == set(STEPS)


def test_every_pair_that_any_network_takes_is_exported():
    assert len(exported()) == len(ONCE) - sum(all((net, *pair) in REFUSED for net in NETS) for pair in ONCE)
    assert {net for net, _, _ in exported()} == set(NETS)


@pytest.mark.parametrize(("net", "first", "second"), [case for case in CASES if case in REFUSED], ids=named)
def test_what_makes_no_sense_is_refused_and_harms_nothing(net, first, second):
    task = task_for(net, first, second)
    before = photograph(task.model)
    with pytest.raises(
        RecipeError if REFUSED[net, first, second] is TRAINS else NothingChangedError, match=REFUSED[net, first, second]
    ):
        run(task, steps_of(first, second))
    assert unchanged(task.model, before)


@pytest.mark.parametrize(("net", "first", "second"), [case for case in CASES if case not in REFUSED], ids=named)
def test_two_steps_save_and_load_with_equal_outputs(net, first, second, tmp_path):
    task = task_for(net, first, second)
    before = photograph(task.model)
    model, records = run(task, steps_of(first, second), checkpoints=BEGUN)
    assert unchanged(task.model, before)
    assert [record.step.partition("(")[0] for record in records] == [first, second]
    place, words = SKIPPED.get((net, first, second), (-1, ""))
    for at, record in enumerate(records):
        assert bool(record.changes) == (at != place)
        assert at != place or any(words in f"{change.what} {change.why}" for change in record.skipped)
    save(model, tmp_path / "a.nxt", original=task.model)
    loaded = load(tmp_path / "a.nxt", into=seeded(net, seed=1))
    x = inputs(net)
    assert torch.equal(output(loaded, x), output(model, x))
    assert torch.isfinite(output(loaded, x)).all()
    idle = {name for at, name in enumerate((first, second)) if at != place} == {"Recover"}  # nothing is there to recover
    idle = idle and not any(isinstance(module, nn.BatchNorm2d) for module in task.model.modules())  # whose batches differ
    assert torch.equal(output(loaded, x), output(task.model, x)) == idle
    again, _ = run(task, steps_of(first, second))  # anew from the start
    assert torch.equal(output(again, x), output(model, x))


@pytest.mark.parametrize(("net", "first", "second"), exported(), ids=named)
def test_two_steps_export_and_run_with_close_outputs(net, first, second, tmp_path):
    import onnxruntime

    model, _ = run(task_for(net, first, second), steps_of(first, second), checkpoints=BEGUN)
    x = inputs(net)
    export(model, tmp_path / "a.onnx", calibration=[x])
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for batch in (x, x[:1]):
        (given,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        expected = plain_output(model, batch).numpy()
        assert np.abs(given - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def plain_output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What float32 runtimes compute: the decoded weights, and inputs that are not rounded."""
    from enxuto.surgery import to_float

    return output(to_float(model), x)
