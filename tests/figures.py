"""Measurements of no network, for tests of what is said of them."""

from __future__ import annotations

from enxuto.evaluation.measurement import Evaluation, Measurement


def measurement(quality: float, size: int) -> Measurement:
    return Measurement(
        file_bytes=size,
        quality=quality,
        parameters=1,
        macs=1,
        latency_ms=None,
        latency_samples_ms=(),
        peak_memory_bytes=None,
        precision="none",
    )


def evaluation(before: float, after: float, blank: float | None = 0.1, *, size: int = 500) -> Evaluation:
    """An original of 6,000 bytes and what became of it, judged by a test that gives one number."""
    return Evaluation(
        original=measurement(before, 6000),
        compressed=measurement(after, size),
        quality_name="test",
        quality_change=after - before,
        quality_change_interval=None,
        samples=0,
        blank_quality=blank,
    )
