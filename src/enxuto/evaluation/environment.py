"""What the numbers were measured with: versions, processor, threads. No paths, no host names."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy
import onnxruntime
import torch

_DOT_PRODUCTS = (
    "avx512_vnni",
    "avx_vnni",
    "asimddp",
)  # without one of these int8 gains little, and u8 x s8 may saturate


def environment() -> dict[str, str]:
    """Versions of Python, torch, ONNX Runtime and numpy; processor, its int8 dot product, cores, threads, system."""
    model, flags = _processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": numpy.__version__,
        "cpu": model,
        "int8_dot_product": next((name for name in _DOT_PRODUCTS if name in flags), "none" if flags else "unknown"),
        "cores": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
        "os": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> tuple[str, frozenset[str]]:
    """The processor's model name and instruction flags, as far as the system tells."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor() or platform.machine(), frozenset()
    lines = dict(reversed([line.split(":", 1) for line in file.read_text().splitlines() if ":" in line]))
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.machine()), frozenset(flags.split())
