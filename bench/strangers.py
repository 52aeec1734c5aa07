"""Networks that nobody here designed, under stacks of steps that nobody chose: 300 of each, drawn by number.

Each network goes through a stack of one to four steps; the result is saved, loaded in another process and exported to fp32 and
int8. What counts as a failure: an error that is none of ours, one of ours while saving or loading, an answer that is not
the same bit for bit after loading, an export that answers otherwise without a note, an original that changed. Refusals in plain
words, of a network, a stack or an export, are counted and listed by what they say.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import enxuto as ex
from common import tell
from enxuto.calls import call
from enxuto.recipe import line
from enxuto.surgery import to_float
from stranger_networks import Stranger, stranger

NETWORKS = 300
ALONE = 100  # of them get a single step, the others two to four
PROCESSES = 2
AT_ONCE = 40  # then new processes: what one network leaves behind does not pile up
FP32, INT8 = 1e-3, 0.15  # error of an export, of what its outputs differ between samples; int8 beyond it needs a note
ROUNDING = 1e-4  # of the size of an output: what differs by less is the same to float32 at FP32
SILENT = ("Fold()", "PruneChannels()")  # stacks of these change no output


@dataclass(frozen=True)
class Outcome:
    """What became of one network: "passed", "refused" (by an error of ours, before the work) or "failed", and where."""

    number: int
    network: str
    stack: str
    verdict: str = "passed"
    stage: str = ""
    message: str = ""


class WrongError(Exception):
    """A value that is not what it must be."""


def stack(number: int) -> tuple[Any, ...]:
    """The steps for a network."""
    chance = random.Random(10_000 + number)

    def quantize() -> Any:
        per = chance.choice(("channel", "channel", "tensor", "group", "network"))
        bits, activations = (8, 8) if chance.random() < 0.5 else (chance.choice((2, 3, 4, 6, 8)), None)
        return ex.Quantize(bits, per=per, activations=activations, biases=chance.choice((None, 8)))

    choices = (
        ex.Fold,
        lambda: ex.Prune(chance.choice((0.3, 0.6, 0.9)), scope=chance.choice(("global", "layer"))),
        lambda: ex.Prune(pattern="2:4"),
        lambda: ex.PruneChannels(**chance.choice(({"macs": 0.6}, {"sparsity": 0.25}, {}))),
        lambda: ex.Factorize(energy=chance.choice((0.9, 0.99))),
        quantize,
        quantize,
        lambda: ex.Share(chance.choice((2, 3, 4)), biases=chance.choice((None, 6))),
        lambda: ex.Recover(epochs=1.0, learning_rate=1e-4),
    )
    return tuple(chance.choice(choices)() for _ in range(1 if number < ALONE else chance.choice((2, 3, 4))))


def make(number: int, folder: str) -> Outcome:
    """Compresses, saves and exports one network; what the other process needs is left in the folder."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = stranger(number)
    steps = stack(number)
    outcome = Outcome(number, found.words, " + ".join(map(line, steps)))
    stage = "task"
    try:
        before = _answers(found.model, found.batches)
        task = ex.Task(found.model, calibration=found.batches)
        stage = "run"
        small, _ = ex.run(task, steps)
        after = _answers(small, found.batches)
        stage = "check"
        _same(before, _answers(found.model, found.batches), "the original changed")
        _lively(before, after, exact=all(line(step) in SILENT for step in steps))
        stage = "save"
        path = Path(folder) / f"{number}.nxt"
        ex.save(small, path, original=found.model)
        torch.save(after, path.with_suffix(".pt"))
        for precision in ("fp32", "int8"):
            stage = precision
            # the fp32 file rounds no inputs, whatever the network does
            wanted = after if precision == "int8" else _answers(to_float(small), found.batches)
            _exported(small, found, wanted, path, precision)
    except ex.Error as error:
        verdict = "refused" if stage in ("task", "run", "fp32", "int8") else "failed"
        return replace(outcome, verdict=verdict, stage=stage, message=f"{type(error).__name__}: {error}")
    except WrongError as error:
        return replace(outcome, verdict="failed", stage=stage, message=str(error))
    except Exception as error:  # anything that is not ours is what this bench looks for
        return replace(outcome, verdict="failed", stage=stage, message=_last(error))
    return outcome


def read(number: int, folder: str) -> str:
    """Loads the file in this process, into a network of other weights; what is wrong, or nothing."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = Path(folder) / f"{number}.nxt"
    fresh = stranger(number, seed=1)
    try:
        model = ex.load(path, into=fresh.model)
        _same(torch.load(path.with_suffix(".pt")), _answers(model, fresh.batches), "not bit for bit after loading")
    except WrongError as error:
        return str(error)
    except Exception as error:  # ours too: a file that was written must load
        return _last(error)
    return ""


def _answers(model: nn.Module, batches: list[Any]) -> list[list[Tensor]]:
    model.eval()
    with torch.no_grad():
        return [[leaf.clone() for leaf in _leaves(call(model, batch))] for batch in batches]


def _leaves(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor))


def _same(one: list[list[Tensor]], other: list[list[Tensor]], words: str) -> None:
    for a, b in zip((x for row in one for x in row), (x for row in other for x in row), strict=True):
        if not torch.equal(a, b):
            raise WrongError(f"{words}: {_error(a, b):.2g} of the output")


def _lively(before: list[list[Tensor]], after: list[list[Tensor]], *, exact: bool) -> None:
    for a, b in zip((x for row in before for x in row), (x for row in after for x in row), strict=True):
        if a.shape != b.shape or not bool(torch.isfinite(b).all()):
            raise WrongError(f"the result answers {tuple(b.shape)} {'finite' if a.shape != b.shape else 'NaN or infinite'}")
        if exact and _error(a, b) > 1e-3:
            raise WrongError(f"steps that change nothing changed {_error(a, b):.2g} of the output")


def _error(a: Tensor, b: Tensor) -> float:
    """The difference, of how far `a` differs between its rows (and places of maps); where that is rounding, of its size."""
    middle = a.mean((0, 2, 3) if a.ndim == 4 else 0, keepdim=True)
    size, spread = (float((a - center).double().norm()) for center in (0.0, middle))
    return float((a - b).double().norm()) / (spread if spread > ROUNDING * size else size or 1.0)


def _all(answers: list[list[Tensor]]) -> list[Tensor]:
    """Each output on all batches; on the largest where lengths differ from one to the next."""
    several = [list(each) for each in zip(*answers, strict=True)]
    same = [len({each.shape[1:] for each in some}) == 1 and some[0].ndim > 0 for some in several]
    return [torch.cat(some) if joins else max(some, key=Tensor.numel) for some, joins in zip(several, same, strict=True)]


def _exported(small: nn.Module, found: Stranger, wanted: list[list[Tensor]], path: Path, precision: Any) -> None:
    from enxuto.evaluation.onnxmodel import OnnxModel

    file = ex.export(small, path.with_suffix(f".{precision}.onnx"), calibration=found.batches, precision=precision)
    answers = _answers(OnnxModel(file.path), found.batches)
    worst = max(_error(a, b) for a, b in zip(_all(wanted), _all(answers), strict=True))
    if worst > (FP32 if precision == "fp32" else INT8) and not (precision == "int8" and file.notes):
        raise WrongError(f"the {precision} file is {worst:.2g} of the output off, without a note")


def _last(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({Path(place.filename).name}:{place.lineno})"


def _each(work: Callable[[int, str], Any], numbers: Sequence[int], folder: str) -> dict[int, Any]:
    """What `work` gives for each number, in processes that are new now and then; words where it killed its process."""
    found: dict[int, Any] = {}
    for start in range(0, len(numbers), AT_ONCE):
        some = numbers[start : start + AT_ONCE]
        found |= _together(work, some, folder, PROCESSES)
        for number in [number for number in some if found[number] is None]:  # one of them ended the process of all
            alone = _together(work, [number], folder, 1)[number]
            found[number] = f"network {number} killed the process" if alone is None else alone
        print(f"{work.__name__}: {start + len(some)} of {len(numbers)}", file=sys.stderr, flush=True)
    return found


def _together(work: Callable[[int, str], Any], numbers: Sequence[int], folder: str, processes: int) -> dict[int, Any]:
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {number: pool.submit(work, number, folder) for number in numbers}
        return {number: _done(future) for number, future in futures.items()}


def _done(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        return None


def main() -> int:
    """Prints what failed and what was refused; 1 when anything failed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--networks", type=int, default=NETWORKS)
    chosen = options.parse_args()
    numbers = range(chosen.first, chosen.first + chosen.networks)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = _each(make, numbers, folder)
        for number, outcome in outcomes.items():
            if isinstance(outcome, str):
                outcomes[number] = Outcome(number, stranger(number).words, "", "failed", "process", outcome)
        kept = [number for number in numbers if (Path(folder) / f"{number}.pt").exists()]
        for number, wrong in _each(read, kept, folder).items():
            if wrong:
                outcomes[number] = replace(outcomes[number], verdict="failed", stage="load", message=wrong)
    verdicts = Counter(outcome.verdict for outcome in outcomes.values())
    for outcome in outcomes.values():
        if outcome.verdict == "failed":
            print(f"{outcome.number} [{outcome.network}] {outcome.stack}\n    {outcome.stage}: {outcome.message}")
    reasons = Counter((o.stage, _kind(o.message)) for o in outcomes.values() if o.verdict == "refused")
    rows = [{"networks": count, "what": f"refused at {stage}", "says": says} for (stage, says), count in reasons.most_common()]
    total = [{"networks": verdicts[name], "what": name} for name in ("passed", "refused", "failed")]
    claim = f"{len(outcomes)} strangers' networks under stacks of steps: {verdicts['failed']} fail"
    tell("strangers", claim, total + rows, outcomes=[asdict(outcome) for outcome in outcomes.values()], loaded=len(kept))
    return 1 if verdicts["failed"] else 0


def _kind(message: str) -> str:
    """The same words for the same reason: paths and numbers left out."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", re.sub(r"'[^']*'", "'...'", message))[:150]


if __name__ == "__main__":
    sys.exit(main())
