"""The numbers of one network and of two beside each other; plain data, written to result.json as it stands."""

from __future__ import annotations

from dataclasses import dataclass, field

from enxuto.evaluation.points import is_fraction, shown

ALIVE = 0.5
"""Of what the original does better than a network that knows nothing, so much must be left for the same network."""

Interval = tuple[float, float] | None
"""95 % interval of a paired difference; None when `evaluate` gives a single number, which has no spread."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One exported file of a network, as it behaved in its runtime; not timed if the original was not exported."""

    runtime: str  # "onnxruntime"
    precision: str  # "fp32" or "int8"
    file_bytes: int
    quality: float
    quality_change: float  # against the original; paired where there is one value per sample
    quality_change_interval: Interval
    latency_ms: float | None  # median
    latency_samples_ms: tuple[float, ...]
    peak_memory_bytes: int | None
    integer_operators: int = 0  # in the optimised graph
    float_operators: int = 0  # convolutions, matrix products and adds that stayed in float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a network costs and gives. Bytes and quality are those of its own file (small.nxt, original.safetensors).

    Latency and memory are those of the export that `precision` names, another file: `Evaluation.ship` holds what belongs
    together. They are None, without samples and with precision "none", when the network could not be exported.
    """

    file_bytes: int
    quality: float
    parameters: int
    macs: int
    latency_ms: float | None
    latency_samples_ms: tuple[float, ...]
    peak_memory_bytes: int | None
    precision: str


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One file that a person may ship, with all that was measured of this very file and of no other."""

    name: str  # "small.nxt", "small.onnx"
    file_bytes: int
    quality: float
    quality_change: float
    quality_change_interval: Interval
    precision: str = ""  # of an export
    latency_ms: float | None = None  # None for a file that no runtime opens
    latency_samples_ms: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The original beside the compressed network, each measured on its own file."""

    original: Measurement
    compressed: Measurement
    quality_name: str  # "test", "evaluate" (validation) or "agreement" (with the original's outputs)
    quality_change: float
    quality_change_interval: Interval
    samples: int  # how many paired samples the interval rests on; 0 when evaluate gives one number
    blank_quality: float | None = None  # of the original with all weights at zero; None when it could not be judged
    exports: tuple[Exported, ...] = ()
    notes: tuple[str, ...] = ()  # what must be said aloud: int8 slower than fp32, not reloaded in a fresh process, ...
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def compression(self) -> float:
        """Bytes of the original's file over bytes of the compressed one."""
        return self.original.file_bytes / self.compressed.file_bytes

    @property
    def alive(self) -> float | None:
        """What is left of all that the original does better than a network that knows nothing; None where that is not known."""
        blank = self.blank_quality
        if blank is None or not self.original.quality > blank:
            return None
        return (self.compressed.quality - blank) / (self.original.quality - blank)

    @property
    def ruined(self) -> bool:
        """True when less than half of it is left: this is no longer the same network."""
        return self.alive is not None and self.alive < ALIVE

    @property
    def ruin(self) -> str:
        """The same in words; empty unless it is ruined."""
        if not self.ruined:
            return ""
        fraction = is_fraction(self.original.quality, self.compressed.quality)
        before, after, blank = (
            shown(quality, fraction) for quality in (self.original.quality, self.compressed.quality, self.blank_quality or 0.0)
        )
        return (
            f"this is no longer the same network: quality ({self.quality_name}) {after}, where the original has {before} "
            f"and one whose weights are all zero {blank}"
        )

    @property
    def speedup(self) -> float | None:
        """Median latency of the original over that of the compressed one, interleaved in one run; None if unknown."""
        if self.original.latency_ms is None or self.compressed.latency_ms is None:
            return None
        return self.original.latency_ms / self.compressed.latency_ms

    @property
    def ship(self) -> tuple[Shipped, ...]:
        """The artifact, small.nxt, and small.onnx, which is a copy of the export that was chosen; each with its own figures."""
        artifact = Shipped(
            name="small.nxt",
            file_bytes=self.compressed.file_bytes,
            quality=self.compressed.quality,
            quality_change=self.quality_change,
            quality_change_interval=self.quality_change_interval,
        )
        chosen = (
            Shipped(
                name="small.onnx",
                file_bytes=export.file_bytes,
                quality=export.quality,
                quality_change=export.quality_change,
                quality_change_interval=export.quality_change_interval,
                precision=export.precision,
                latency_ms=export.latency_ms,
                latency_samples_ms=export.latency_samples_ms,
                peak_memory_bytes=export.peak_memory_bytes,
            )
            for export in self.exports
            if export.precision == self.compressed.precision
        )
        return (artifact, *chosen)
