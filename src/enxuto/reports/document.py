"""What a report is made from: one result as plain data, read back from `result.json` and checked on the way in.

Ratios are not stored: compression and speedup follow from the two measurements. No model and no torch is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from enxuto.errors import ArtifactError
from enxuto.evaluation.points import is_fraction
from enxuto.records import from_plain


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What was asked for; `size` in bytes, `macs` and `latency` as fractions left, `max_drop` absolute."""

    size: int | None = None
    compression: float | None = None
    macs: float | None = None
    latency: float | None = None
    max_drop: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one network costs and gives; None where it was not measured."""

    file_bytes: int
    quality: float | None = None
    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    latency_samples_ms: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None
    precision: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One exported file and how it behaved in its runtime."""

    runtime: str
    precision: str
    file_bytes: int
    quality: float | None = None
    quality_change: float | None = None
    quality_change_interval: tuple[float, float] | None = None
    latency_ms: float | None = None
    latency_samples_ms: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None
    integer_operators: int | None = None
    float_operators: int | None = None


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One file that a person may ship, with what was measured of this very file; None where it was not."""

    name: str
    file_bytes: int
    quality: float | None = None
    quality_change: float | None = None
    quality_change_interval: tuple[float, float] | None = None
    precision: str = ""
    latency_ms: float | None = None
    latency_samples_ms: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """What was done to one layer, or that it was left alone, and why."""

    path: str
    what: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did."""

    step: str
    changes: tuple[LayerChange, ...] = ()
    skipped: tuple[LayerChange, ...] = ()
    figures: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Some bytes of a file: of which layer, of which kind, of which tensor. The header has an empty path."""

    path: str
    bytes: int
    name: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One recipe the search tried; `kept` when it was the best so far."""

    recipe: str
    file_bytes: int
    quality: float | None = None
    seconds: float = 0.0
    kept: bool = False
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class MemoryRun:
    """The memory of one run, moment by moment; lists of the same length, and the layers at the fullest moment."""

    moments: int
    peak: int
    peak_bytes: int
    at: tuple[int, ...]
    phases: tuple[str, ...]
    paths: tuple[str, ...]
    operators: tuple[str, ...]
    bytes: Mapping[str, tuple[int, ...]]
    layers: tuple[tuple[str, str, int], ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(line) for line in (self.at, self.phases, self.paths, self.operators, *self.bytes.values())}
        if len(lengths) != 1 or not 0 <= self.peak < len(self.at):
            raise ArtifactError(
                "'memory' holds lists of different lengths or a peak outside of them; make result.json again with "
                "`enxuto compress`."
            )

    @property
    def by_category(self) -> dict[str, int]:
        """Bytes of each category at the fullest moment."""
        return {category: line[self.peak] for category, line in self.bytes.items()}


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """One kind of run, an inference or a training step, before and after, or what `names` says; `words` is about it, or why
    it is not known.
    """

    what: str
    names: tuple[str, str] = ("original", "compressed")
    batch: int = 0
    before: MemoryRun | None = None
    after: MemoryRun | None = None
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One result: what was asked, what came out, how, and where every byte is."""

    original: Measured
    compressed: Measured
    name: str = ""
    seed: int | None = None
    created: str = ""
    enxuto: str = ""
    target: Goal | None = None
    met: bool | None = None
    verdict: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    recipe: tuple[Mapping[str, object], ...] = ()
    quality_name: str = "evaluate"
    quality_change: float | None = None
    quality_change_interval: tuple[float, float] | None = None
    samples: int = 0
    ship: tuple[Shipped, ...] = ()
    exports: tuple[ExportedFile, ...] = ()
    records: tuple[StepRecord, ...] = ()
    ledger: tuple[Entry, ...] = ()
    before_ledger: tuple[Entry, ...] = ()
    history: tuple[Trial, ...] = ()
    judged_quality: float | None = None  # of the original, on the data on which the trials were judged
    judged_name: str | None = None  # what they were judged by: "evaluate" or "agreement"
    memory: tuple[MemoryUse, ...] = ()
    notes: tuple[str, ...] = ()
    environment: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for which in ("original", "compressed"):
            if getattr(self, which).file_bytes <= 0:
                raise ArtifactError(
                    f"'{which}.file_bytes' is {getattr(self, which).file_bytes}, which no file has; "
                    "make result.json again with `enxuto compress`."
                )

    @classmethod
    def from_json(cls, data: object) -> Document:
        """The document that parsed JSON describes; fields it does not know are passed over.

        A number that is NaN or infinite reads as "not measured" where that is allowed.
        Raises: ArtifactError, naming the field, when one is missing or of another type.
        """
        return from_plain(cls, data, "a result.json that enxuto wrote", "make result.json again with `enxuto compress`")

    @property
    def compression(self) -> float:
        """Bytes of the original's file over bytes of the compressed one."""
        return self.original.file_bytes / self.compressed.file_bytes

    @property
    def files(self) -> tuple[Shipped, ...]:
        """The files there are to ship; the artifact alone where the document names none."""
        artifact = Shipped(
            name="small.nxt",
            file_bytes=self.compressed.file_bytes,
            quality=self.compressed.quality,
            quality_change=self.change,
            quality_change_interval=self.quality_change_interval,
        )
        return self.ship or (artifact,)

    @property
    def change(self) -> float | None:
        """Quality of the compressed network minus that of the original, paired where it was measured so."""
        if self.quality_change is not None:
            return self.quality_change
        if self.original.quality is None or self.compressed.quality is None:
            return None
        return self.compressed.quality - self.original.quality

    @property
    def is_fraction(self) -> bool:
        """True when every quality lies in [0, 1], so that it reads as a percentage and its changes as points."""
        found = [self.original.quality, self.compressed.quality]
        found += [file.quality for file in self.ship]
        found += [export.quality for export in self.exports]
        found += [trial.quality for trial in self.history]
        return is_fraction(*(quality for quality in found if quality is not None))


def read_document(path: str | os.PathLike[str]) -> Document:
    """The document in a `result.json`, or in the folder that holds one.

    Raises: ArtifactError when there is none, it is not JSON, or a field is missing or of another type.
    """
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"'{path}' cannot be read: {error.strerror}; name the folder or the result.json that enxuto wrote."
        ) from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise ArtifactError(f"'{path}' is not JSON: {error}; make it again with `enxuto compress`.") from error
    return Document.from_json(data)
