"""What each layer of a network loses under each change, and what in it is unstable: plain data, kept as JSON. Needs no torch.

What is measured is in `sensitivities`, what is made of it in `allocation`.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from enxuto.errors import ArtifactError
from enxuto.files import as_path, write_bytes
from enxuto.records import from_plain
from enxuto.sizes import format_bytes

PART = ".part.json"  # how the name of one ends that is not whole yet
FILE, REMEDY = "a file that Sensitivity.save wrote", "measure it again with enxuto.sensitivity"

FaultKind = Literal["input outliers", "weight outliers", "saturation", "dead channels", "overflow", "own error"]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What the outputs lose when one layer alone has fewer bits, more zeros or thin layers in its place, or both.

    `error` is how far outputs moved, squared, of their variance over the samples: 1 is as far as their mean would be. `agreement`
    is the fraction of answers that stayed, where outputs are classes. `bytes` are those of the layer's weights in a file.
    Where there is nothing to measure, `why` says so and both are None.
    """

    bits: int | None = None
    sparsity: float | None = None
    size: float | None = None
    bytes: int | None = None
    error: float | None = None
    agreement: float | None = None
    why: str = ""

    @property
    def what(self) -> str:
        """The change in words: "4 bits", "50% zeros, 4 bits", "25% of the weights"."""
        parts = [f"{self.sparsity:.0%} zeros"] if self.sparsity is not None else []
        parts += [f"{self.size:.0%} of the weights"] if self.size is not None else []
        parts += [f"{self.bits} bits"] if self.bits is not None else []
        return ", ".join(parts) or "as it is"


@dataclass(frozen=True, kw_only=True)
class LayerLosses:
    """One layer: its kind, how many weights it has, their bytes in a file as they are, and what is lost by each change.

    `apart` are layers inside it that are measured by themselves. `why` says why the errors tell nothing: no batch reaches it.
    """

    path: str
    kind: str
    weights: int
    bytes: int
    losses: tuple[Loss, ...] = ()
    apart: tuple[str, ...] = ()
    why: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:
        """What `layers=` of a step selects this layer with, and no other."""
        return (glob.escape(self.path) or "*", *(f"!{glob.escape(path)}" for path in self.apart))

    def whys(self) -> list[tuple[str, str]]:
        """What could not be measured, a whole kind of changes or some of it, and why; no kind where nothing tells anything."""
        found = [("", self.why)] if self.why else []
        for title, holds in TABLES.items():
            kind = [loss for loss in self.losses if holds(loss)]
            for why in dict.fromkeys(loss.why for loss in kind if loss.why):
                those = [loss.what for loss in kind if loss.why == why]
                found.append((title if len(those) == len(kind) else "; ".join(those), why))
        return found


@dataclass(frozen=True, kw_only=True)
class Left:
    """Something that no change was tried on, and why."""

    path: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How far off the output of a layer is when all weights have these bits, relative to its size; `own` is what the layer
    itself adds, on the inputs of the original. Layers come in the order in which they run."""

    path: str
    bits: int
    error: float
    own: float


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What in a layer makes few bits or few digits hurt: `value` is beyond `limit`. `channel` is the worst, `count` are so."""

    kind: FaultKind
    path: str
    value: float
    limit: float
    channel: int | None = None
    count: int = 0
    total: int = 0
    bits: int | None = None
    own: float | None = None

    @property
    def words(self) -> str:
        """What was found, and what would help."""
        return WORDS[self.kind].format(fault=self, layer=f"'{self.path}'" if self.path else "the model")


WORDS: dict[FaultKind, str] = {
    "input outliers": (
        "{layer}: channel {fault.channel} of its inputs is {fault.value:.3g} times as large as the middle one, and in 8 bits "
        "leaves the others few codes; put Equalize before Quantize, or leave {layer} out of the Quantize that has activations=8."
    ),
    "weight outliers": (
        "{layer}: the largest weight of row {fault.channel} is {fault.value:.3g} times the row's root mean square, and in few "
        "bits leaves the others next to no code; use Quantize(per='group') there, or more bits."
    ),
    "saturation": (
        "{layer}: {fault.value:.2%} of its inputs lie outside of the range that half of the samples show, and 8 bits would cut "
        "them; calibrate on more samples, or keep these inputs in float."
    ),
    "dead channels": (
        "{layer}: {fault.count} of {fault.total} channels of its inputs are zero on every sample; PruneChannels takes out what "
        "is always zero, or calibrate on samples that differ more."
    ),
    "overflow": (
        "{layer}: values up to {fault.value:.3g} come near to 65,504, where float16 ends; run it in bfloat16 or float32, or make "
        "the weights before it smaller."
    ),
    "own error": (
        "{layer}: at {fault.bits} bits it adds {fault.own:.2%} of error itself, {fault.value:.3g} times what the layers beside "
        "it add; give it more bits: enxuto.allocate shares them out."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What each layer loses by each change to it alone, how errors grow along the depth, and what is unstable.

    `samples` were compared; `apart` says that steps that ask the data saw others. `rest_bytes` are those of a file that no change
    to a weight moves: names, biases, norms, and layers that were not asked for. `quantize` are the arguments of the step that
    gave bits. `key` names the task and what was asked: measured again with the same, it is the same.
    """

    name: str
    key: str
    samples: int
    apart: bool
    rest_bytes: int
    layers: tuple[LayerLosses, ...]
    quantize: Mapping[str, object] = field(default_factory=dict)
    left: tuple[Left, ...] = ()
    depth: tuple[Depth, ...] = ()
    faults: tuple[Fault, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, whole or not at all. Raises: OutputError when that cannot be."""
        write_bytes(path, (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """What was saved. Raises: ArtifactError when there is no such file, or it holds something else."""
        file = as_path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ArtifactError(f"'{path}' cannot be read: {error.strerror}; name {FILE}.") from error
        except ValueError as error:
            raise ArtifactError(f"'{path}' is not JSON: {error}; {REMEDY}.") from error
        return from_plain(cls, data, FILE, REMEDY)

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Of each kind of change that was tried a title, the heads and the rows: a layer, its weights, and what it loses."""
        found = []
        for title, holds in TABLES.items():
            asked = list(dict.fromkeys(loss.what for layer in self.layers for loss in layer.losses if holds(loss)))
            rows = []
            for layer in self.layers:
                by = {loss.what: loss for loss in layer.losses}
                rows.append([layer.path or "(model)", f"{layer.weights:,}", *(_cell(by.get(what)) for what in asked)])
            if asked:
                found.append((title, ["layer", "weights", *asked], rows))
        return found

    def notes(self) -> list[str]:
        """What is to be known beside the tables: the faults, and what could not be measured and why."""
        said: dict[str, dict[str, None]] = {}
        asked = self.quantize.get("rounding", "nearest") != "nearest" or any(
            loss.size is not None for layer in self.layers for loss in layer.losses
        )
        few = [FEW.format(samples=self.samples)] if asked and not self.apart else []
        for layer in self.layers:
            for what, why in layer.whys():
                said.setdefault(why, {})[f"'{layer.path or '(model)'}'" + (f" ({what})" if what else "")] = None
        for each in self.left:
            said.setdefault(each.why, {})[f"'{each.path}'"] = None
        return [
            *(fault.words for fault in self.faults),
            *few,
            *(f"{_few([*places])}: {why}." for why, places in said.items() if why),
        ]


def newest_sensitivity(place: Path) -> Sensitivity | None:
    """The last that was kept in a folder, or beside a file in it; None where there is none that can be read."""
    folder = place if place.is_dir() else place.parent
    for path in sorted(folder.glob("sensitivity-*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if path.name.endswith(PART):
            continue
        try:
            return Sensitivity.load(path)
        except ArtifactError:  # of another version: a result can be shown without it
            continue
    return None


TABLES: dict[str, Callable[[Loss], bool]] = {
    "fewer bits": lambda loss: loss.sparsity is loss.size is None,
    "zeros": lambda loss: loss.sparsity is not None,
    "thin layers": lambda loss: loss.size is not None,
}
MOST_PLACES = 6
FEW = (
    "Steps that ask the data saw the very samples that are compared, as there are no {samples} others; they look better by that "
    "than they are: calibrate on more samples."
)


def _few(places: list[str]) -> str:
    more = f" and {len(places) - MOST_PLACES} more" if len(places) > MOST_PLACES else ""
    return ", ".join(places[:MOST_PLACES]) + more


def _cell(loss: Loss | None) -> str:
    if loss is None or loss.error is None or loss.bytes is None:
        return "–"
    agreed = "" if loss.agreement is None else f"\n{loss.agreement:.1%} agree"
    return f"{loss.error:.2g}\n{format_bytes(loss.bytes)}{agreed}"
