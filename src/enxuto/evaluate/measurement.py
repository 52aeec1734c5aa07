"""The numbers of one network and of two beside each other; plain data, written to result.json as it stands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One exported file of a network, as it behaved in its runtime."""

    runtime: str  # "onnxruntime"
    precision: str  # "fp32" or "int8"
    file_bytes: int
    quality: float
    quality_change: float  # against the original; paired where there is one value per sample
    quality_change_interval: tuple[float, float]
    latency_ms: float  # median
    latency_samples_ms: tuple[float, ...]
    peak_memory_bytes: int
    integer_operators: int = 0  # in the optimised graph
    float_operators: int = 0  # convolutions, matrix products and adds that stayed in float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a network costs and gives. Latency and memory are those of the export that `runtime` and `precision` name."""

    file_bytes: int
    quality: float
    parameters: int
    macs: int
    latency_ms: float
    latency_samples_ms: tuple[float, ...]
    peak_memory_bytes: int
    precision: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The original beside the compressed network, each measured on its own file."""

    original: Measurement
    compressed: Measurement
    quality_name: str  # "test", "evaluate" (validation) or "agreement" (with the original's outputs)
    quality_change: float
    quality_change_interval: tuple[float, float]  # 95 %
    samples: int  # how many paired samples the interval rests on; 0 when evaluate gives one number
    exports: tuple[Exported, ...] = ()
    notes: tuple[str, ...] = ()  # what must be said aloud: int8 slower than fp32, not reloaded in a fresh process, ...
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def compression(self) -> float:
        """Bytes of the original's file over bytes of the compressed one."""
        return self.original.file_bytes / self.compressed.file_bytes

    @property
    def speedup(self) -> float:
        """Median latency of the original over that of the compressed network, interleaved in one run."""
        return self.original.latency_ms / self.compressed.latency_ms
