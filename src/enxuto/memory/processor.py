"""Which processor oneDNN takes this one for, and whether the rules of `workspace.py` and `convolutions.py` were read on it."""

from __future__ import annotations

import os
import platform

import torch

KINDS = ("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX")
"""Processors by what oneDNN uses of them, each with all that those before it have; names of its ONEDNN_MAX_CPU_ISA."""
HALF = KINDS[3:5]
"""Those on which the rules of convolutions in half precision were read."""
READ = f"torch 2.13 on x86; convolutions in half precision on {' and '.join(HALF)}"
"""Where the rules were read."""


def kind() -> str:
    """The kind of this processor, or the lesser one that it is told to play; of others than x86 the machine's name."""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return machine
    has = [
        torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
        torch.cpu._is_vnni_supported(),
        torch.cpu._is_avx512_bf16_supported(),
        torch.ops.mkldnn._is_mkldnn_fp16_supported(),
        torch.cpu._is_amx_tile_supported(),
    ]
    level = next((at for at, there in enumerate(has) if not there), len(has))
    asked = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    return KINDS[min(level, KINDS.index(asked)) if asked in KINDS else level]


def read_here(*, half_convolution: bool) -> bool:
    """True if the rules were read on such a processor; those of convolutions in half precision were on few."""
    known = HALF if half_convolution else KINDS
    return torch.__version__.startswith("2.13.") and kind() in known


LANES = 8 if kind() == "AVX2" else 16
"""Channels that oneDNN keeps together in its blocked layouts: the floats of one vector register."""
