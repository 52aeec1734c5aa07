"""`sensitivity`: each layer alone with fewer bits, more zeros or thin layers in its place, and what the outputs lose by it.

The real steps make each change and the real coder weighs it. What comes out is plain data: `losses.Sensitivity`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from enxuto.allowance import allowed
from enxuto.artifact.digest import task_digest
from enxuto.artifact.save import layer_bytes, save
from enxuto.batches import batch_size
from enxuto.calls import evaluating, finite_answers, repeatable
from enxuto.changes import arguments, changes, steps_of
from enxuto.checks import named, whole
from enxuto.errors import ArtifactError, LayerError, NothingChangedError, RangeError, ShapeError, TaskError
from enxuto.evidence.channels import inputs_of
from enxuto.evidence.depth import Grown, grown
from enxuto.evidence.faults import input_faults, overflow_faults, own_faults, weight_faults
from enxuto.evidence.outputs import Answers
from enxuto.evidence.products import watch
from enxuto.evidence.samples import apart
from enxuto.files import writable_folder, write_bytes
from enxuto.layers.coded import plain_class, weight_names
from enxuto.losses import PART, Depth, Fault, LayerLosses, Left, Loss, Sensitivity
from enxuto.macs import total_macs
from enxuto.progress import say, unheard
from enxuto.recipe import line
from enxuto.select import Patterns, matches
from enxuto.sites import left_in_float, sites
from enxuto.sizes import file_bytes
from enxuto.steps.quantize import Quantize
from enxuto.surgery import borrowed, to_float
from enxuto.task import Step, Task
from enxuto.thin import thinnable

SAMPLES = 64  # unless asked otherwise
LEAST_SAMPLES = 8
MOST_MACS = 2e13  # that all runs together multiply: about a quarter of an hour of one processor; large networks get fewer samples
EVIDENCE = 7  # times as many samples, others, are what steps that ask the data see; once as many where time is short
PASSES = 4  # over these, of such a step
UNREACHED = "no calibration batch reaches it, so that its errors say nothing"
UNTHIN = "only Linear and convolution layers can be thin ones in a row"
LEAST_RANKS = "its lowest ranks are more of its weights than that"

_log = logging.getLogger(__name__)


def sensitivity(
    task: Task,
    *,
    layers: Patterns = "*",
    bits: Sequence[int | Quantize] = (8, 6, 4, 3, 2),
    sparsity: Sequence[float] = (0.5, 0.7, 0.9),
    sizes: Sequence[float] = (0.75, 0.5, 0.25),
    samples: int = SAMPLES,
    memory: str | int | None = None,
    folder: str | Path | None = None,
) -> Sensitivity:
    """What the outputs lose when one layer alone gets each number of bits, sparsity, or fraction of its weights in thin layers.

    Zeros and thin layers are measured in float and with the two middle ones of the bits. In place of numbers, `bits` may hold
    steps that differ in their bits alone: [Quantize(bits=b, rounding="gptq") for b in (4, 3)]. Outputs are those of the first
    `samples` of the calibration, fewer where a large network would take hours; steps that ask the data see others. With `folder`
    it is kept there under a name made of task and arguments, given back when it is asked for again, and goes on after a kill;
    `memory` is as in `compress`. Layers that a step cannot take are named with the reason, in `notes()`.
    Raises: RangeError when nothing is asked for or a value is out of range; LayerError when no layer matches; TaskError when
    outputs are not finite; LimitError when the memory is not enough.
    """
    if not isinstance(task, Task):
        raise TaskError(f"task is {type(task).__name__}, not a Task; write Task(model, calibration=[batch]).")
    quantize, tried = changes(bits, sparsity, sizes)
    if not whole(samples, 1):
        raise RangeError(f"{named('samples', samples)} is no number of samples; use 1 or more, for example {SAMPLES}.")
    if memory is not None:
        task = allowed(task, memory, ())[0]
    asked = [layers, [(each.bits, each.sparsity, each.size) for each in tried], line(quantize), samples]
    key = hashlib.sha256(json.dumps([task_digest(task), asked], default=list).encode()).hexdigest()[:16]
    kept = _Kept(None if folder is None else writable_folder(folder, "folder") / f"sensitivity-{key}.json")
    found = kept.whole()
    if found is None:
        found = _Work(task, layers, tried, quantize, samples, kept).measured(key)
        kept.finish(found)
    return found


@dataclass
class _Kept:
    """Where a measurement is kept, whole or as far as it is; nowhere without a path."""

    path: Path | None
    known: dict[str, list[Loss]] = field(default_factory=dict)  # by the path of the layer

    def __post_init__(self) -> None:
        if self.path is not None and self._part.is_file():
            try:
                found = json.loads(self._part.read_bytes())
                self.known = {str(path): [Loss(**loss) for loss in losses] for path, losses in found.items()}
            except (ValueError, TypeError, AttributeError, OSError) as error:
                _log.warning("what was measured before is damaged, and is measured again: %s", error)

    @property
    def _part(self) -> Path:
        assert self.path is not None
        return self.path.with_suffix(PART)

    def whole(self) -> Sensitivity | None:
        """What was measured before, if it is there."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            return Sensitivity.load(self.path)
        except ArtifactError as error:
            _log.warning("%s It is measured again.", error)
            return None

    def keep(self, path: str, loss: Loss) -> None:
        """Takes in what one change to one layer lost, and writes all that is known."""
        self.known.setdefault(path, []).append(loss)
        if self.path is not None:
            plain = {path: [asdict(loss) for loss in losses] for path, losses in self.known.items()}
            write_bytes(self._part, json.dumps(plain, allow_nan=False).encode())

    def finish(self, found: Sensitivity) -> None:
        """Writes the whole in place of its parts."""
        if self.path is not None:
            found.save(self.path)
            self._part.unlink(missing_ok=True)


class _Work:
    """One measurement: the plain network, the samples, and the layers that are looked at."""

    def __init__(
        self, task: Task, layers: Patterns, changes: Sequence[Loss], quantize: Quantize, samples: int, kept: _Kept
    ) -> None:
        self.model = borrowed(task.model).eval()
        self.weights = sites(self.model, layers)
        self.chosen, self.changes, self.quantize, self.kept = layers, changes, quantize, kept
        self.paths = list(dict.fromkeys(weight.path for weight in self.weights))
        most, evidence = self._affordable(task, samples)
        with repeatable(self.model):  # a loader that shuffles gives the same samples each time
            self.few, others = apart(self.model, task.calibration, most, evidence * most)
        self.apart = bool(others)
        self.samples = sum(max(1, batch_size(batch)) for batch in self.few)
        self.task = replace(task, model=self.model, calibration=others or self.few)
        self.answers = Answers(self.model, self.few, task.outputs)
        self.whole = self._whole()
        # what had zeros or thin layers last, and what came of it: bits follow on the same
        self.base: tuple[tuple[str, Loss], nn.Module, str] = (("", Loss(bits=0)), self.model, "")
        self.headers: dict[str, tuple[int, int]] = {}  # bytes of each layer as it is, and of a header that has nothing to say

    def _affordable(self, task: Task, samples: int) -> tuple[int, int]:
        """How many samples are compared, and how many times as many others steps may ask."""
        asking = sum(each.size is not None or self.quantize.rounding != "nearest" for each in self.changes)
        runs = MOST_MACS / max(1, total_macs(to_float(self.model), task.sample)) / len(self.paths)
        most = min(samples, max(LEAST_SAMPLES, int(runs / (len(self.changes) + PASSES * EVIDENCE * asking))))
        return most, min(EVIDENCE, max(1, int((runs / most - len(self.changes)) / max(1, PASSES * asking))))

    def measured(self, key: str) -> Sensitivity:
        """Everything there is to know. Raises: TaskError when the outputs are not finite."""
        with evaluating(self.model):
            for _ in finite_answers(self.model, [*self.few, *self.task.calibration]):
                pass  # what is wrong with the samples shows before the work
        inputs = inputs_of(to_float(self.model), self.few)
        unreached = self._unreached()
        layers = tuple(self._layers(unreached))
        rest, depth, outputs = self._deep()
        faults: list[Fault] = [*input_faults(inputs, self.paths), *weight_faults(self.weights)]
        faults += overflow_faults(inputs, next(iter(outputs.values()), {}))
        middle = min(outputs, key=lambda bits: abs(bits - 4), default=None)
        if middle is not None:
            faults += own_faults(outputs[middle], middle)
        name = self.task.name or type(self.task.model).__name__
        left = tuple(self._left())
        return Sensitivity(
            name=name,
            key=key,
            samples=self.samples,
            apart=self.apart,
            quantize=arguments(self.quantize),
            rest_bytes=rest,
            layers=layers,
            left=left,
            depth=depth,
            faults=tuple(faults),
        )

    def _unreached(self) -> set[str]:
        """The layers of which no weight is read on any batch."""
        keys = [weight.key for weight in self.weights]
        read: set[str] = set()
        otherwise = watch(self.model, self.few, keys, lambda product: read.add(product.key))
        read |= set(otherwise)
        return set(self.paths) - {weight.path for weight in self.weights if weight.key in read}

    def _left(self) -> Iterator[Left]:
        yield from (Left(path=change.path, why=change.why) for change in left_in_float(self.model, self.chosen))
        for weight in self.weights:
            for twin in weight.tied:
                if twin.path not in self.paths and matches(twin.path, self.chosen):
                    yield Left(path=twin.path, why=f"its weight is that of '{weight.path}', with which it changes")

    def _layers(self, unreached: set[str]) -> Iterator[LayerLosses]:
        total = len(self.paths) * len(self.changes)
        for place, path in enumerate(self.paths):
            layer = self._layer(path, UNREACHED if path in unreached else "")
            losses = []
            for number, change in enumerate(self.changes):
                say("measuring what layers lose", place * len(self.changes) + number, total)
                losses.append(self._known(path, change) or self._tried(layer, change))
            yield replace(layer, losses=tuple(losses))
        say("measuring what layers lose", total, total)

    def _layer(self, path: str, why: str) -> LayerLosses:
        module = self.model.get_submodule(path)
        start = f"{path}." if path else ""
        inside = self._inside(path)
        return LayerLosses(
            path=path,
            kind=plain_class(type(module)).__name__,
            weights=sum(weight.read().numel() for weight in self.weights if weight.path == path),
            bytes=self._bytes(self.model, path),
            apart=tuple(f"{start}{other}" for other in inside),
            why=why,
        )

    def _known(self, path: str, change: Loss) -> Loss | None:
        asked = (change.bits, change.sparsity, change.size)
        known = self.kept.known.get(path, [])
        return next((loss for loss in known if (loss.bits, loss.sparsity, loss.size) == asked), None)

    def _whole(self) -> dict[str, str]:
        """The layers that cannot be thin, and why."""
        try:
            layers, left = thinnable(self.model, self.chosen, self.task.sample)
        except LayerError:
            return dict.fromkeys(self.paths, UNTHIN)
        return {path: UNTHIN for path in self.paths if path not in layers} | {change.path: change.why for change in left}

    def _tried(self, layer: LayerLosses, change: Loss) -> Loss:
        base = replace(change, bits=None)
        if self.base[0] != (layer.path, base):
            why = self.whole.get(layer.path, "") if change.size is not None else ""
            steps = steps_of(base, layer.patterns, self.quantize)
            self.base = ((layer.path, base), *((self.model, why) if why else self._made(self.model, steps)))
        _, made, why = self.base
        if not why and change.bits is not None:
            made, why = self._made(made, steps_of(Loss(bits=change.bits), layer.patterns, self.quantize))
        loss = replace(change, why=why)
        if not why:
            size = self._bytes(made, layer.path)
            moved, agreement = self.answers.compared(made)
            loss = replace(loss, bytes=size, error=moved**2, agreement=agreement)
            if not math.isfinite(moved):
                loss = replace(change, why="outputs are no longer finite or have another shape")
        self.kept.keep(layer.path, loss)
        return loss

    def _made(self, model: nn.Module, steps: Sequence[Step]) -> tuple[nn.Module, str]:
        """The network after these steps; or why there is none."""
        try:
            for step in steps:
                with repeatable(model), unheard("enxuto.steps"):
                    model = step(model, self.task)[0].eval()
        except RangeError:  # of a step that was checked before: Factorize, when a layer cannot be so thin
            return model, LEAST_RANKS
        except (NothingChangedError, ShapeError) as error:
            return model, str(error).rstrip(".")
        return model, ""

    def _deep(self) -> tuple[int, tuple[Depth, ...], dict[int, dict[str, Grown]]]:
        """The bytes that no change moves, how errors grow with all weights at each of the bits, and the figures of it."""
        bits = [change.bits for change in self.changes if change.bits is not None and change.sparsity is change.size is None]
        found: dict[int, dict[str, Grown]] = {}
        rest: int | None = None
        for done, each in enumerate(bits):
            say("following errors along the depth", done, len(bits))
            chosen = [self.chosen] if isinstance(self.chosen, str) else [*self.chosen]
            made, why = self._made(self.model, steps_of(Loss(bits=each), chosen, self.quantize))
            if why:
                continue
            rest = self._rest(made) if rest is None else rest
            found[each] = grown(to_float(self.model), made, self.few, self.paths)
        say("following errors along the depth", len(bits), len(bits))
        depth = tuple(
            Depth(path=path, bits=each, error=figures.error, own=figures.own)
            for each, layers in found.items()
            for path, figures in layers.items()
            if math.isfinite(figures.error) and math.isfinite(figures.own)
        )
        return self._rest(self.model) if rest is None else rest, depth, found

    def _rest(self, made: nn.Module) -> int:
        """The bytes of a whole file that are not its chosen weights'."""
        with TemporaryDirectory() as folder:
            save(made, path := Path(folder) / "whole.nxt", original=self.task.model)
            size = file_bytes(path)
        return size - sum(self._bytes(made, path) for path in self.paths)

    def _bytes(self, made: nn.Module, path: str) -> int:
        """Those of the weights of a layer in a file, and what its header says more than of the original."""
        layer, original = made.get_submodule(path), self.model.get_submodule(path)
        if path not in self.headers:
            self.headers[path] = layer_bytes(original, original, self._inside(path))
        if layer is original:
            return self.headers[path][0]
        size, header = layer_bytes(layer, original, self._inside(path))
        return size + header - self.headers[path][1]

    def _inside(self, path: str) -> list[str]:
        """The layers with weights of their own that are part of this one, as it knows them."""
        start = f"{path}." if path else ""
        found = [p for p, m in self.model.named_modules() if p != path and p.startswith(start) and weight_names(m)]
        return [other[len(start) :] for other in found]
