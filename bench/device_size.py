"""The reader in C on Cortex-M: bytes of code, and for each method what a symbol costs, with the scratch and stack that it takes.

Instructions are counted by qemu, which gives each a nanosecond (`-icount shift=0`); they are not cycles. Where a line says
"fast", nxt_read had the scratch that `nxt_scratch_bytes(.., fast=1)` asks for.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import common
from enxuto.artifact.container import write
from enxuto.artifact.sections import Section

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "device"))
import specimens
import toolchain

CPU = "cortex-m3"
PAGE = Path(__file__).parents[1] / "docs" / "device.md"
LEFT_OUT = {
    "everything": (),
    "without adaptive": ("ADAPTIVE",),
    "without text": ("TEXT",),
    "without adaptive and text": ("ADAPTIVE", "TEXT"),
    "codes only: constant, raw, static, classes, runs": ("ADAPTIVE", "TEXT", "PLANES", "SPARSE", "MESSAGES"),
    "least: constant, raw, static": ("ADAPTIVE", "TEXT", "PLANES", "SPARSE", "CLASSES", "RUNS", "MESSAGES"),
}
METHODS = ("constant", "raw", "static", "classes", "runs", "adaptive", "text")


def sizes(folder: Path) -> list[dict[str, Any]]:
    """Code and constants in bytes, by what is left out and by core; built with -Os."""
    rows = []
    for name, leave_out in LEFT_OUT.items():
        row: dict[str, Any] = {"built": name}
        for cpu in toolchain.BOARDS:
            code, constants = toolchain.code_bytes(cpu, folder, *leave_out)
            row[cpu] = code + constants
            row[f"_{cpu}"] = {"code": code, "constants": constants}
        rows.append(row)
    return rows


def costs(folder: Path) -> list[dict[str, Any]]:
    """Instructions a symbol, scratch and stack of each method: 128 x 144 codes of 16 symbols, mostly one of them, and floats."""
    codes = specimens.codes(128, 144, 16)
    streams = {}
    for method in METHODS:
        symbols = 256 if method == "text" else 16
        array = np.full_like(codes, 3) if method == "constant" else codes
        streams[method] = specimens.coded(method, array, symbols), specimens.stream_of(method, array, symbols)
    files = [specimens.forced(folder / "methods.nxt", streams, plain=True), folder / "floats.nxt", folder / "coded.nxt"]
    noise = (specimens.scattered(16384) / 2.0**32 - 0.5).astype(np.float32)
    few = np.where(specimens.scattered(16384, 1) % 16 == 0, noise, np.float32(0))
    floats = [specimens.plain("float32, planes", noise), specimens.plain("float32, sparse", few)]
    write(files[1], {}, floats, plain=True)
    tensors: list[Section] = [section for section, _ in streams.values()] + floats
    names = [f"layers.{number}.weight" for number in range(12)]
    write(files[2], {}, [specimens.plain(name, np.zeros(3, np.float32)) for name in names])
    lines = toolchain.run_board(CPU, toolchain.build_board(CPU, files, folder)).splitlines()
    rows = []
    told = [line.split() for line in lines if line.startswith("tensor")]
    for section, words in zip(tensors, told, strict=False):
        scratch, fast_scratch, ticks, fast_ticks, stack = map(int, words[1:6])
        each = toolchain.INSTRUCTIONS / section.array.size
        bits = 8 * len(streams[section.name][1]) / section.array.size if section.name in streams else None
        rows.append({
            "method": section.name, "bits a symbol": bits, "instructions a symbol": ticks * each, "scratch": scratch,
            "fast: instructions": fast_ticks * each, "fast: scratch": fast_scratch, "stack": stack,
        })  # fmt: skip
    opened = [line.split() for line in lines if line.startswith("file")]
    for name, words in (
        ("nxt_open, plain index (in all)", opened[0]),
        ("nxt_open, coded index (in all)", opened[2]),
    ):
        _, _, _, _, _, scratch, ticks, stack = words
        total = int(ticks) * toolchain.INSTRUCTIONS
        rows.append({"method": name, "instructions a symbol": total, "scratch": int(scratch), "stack": int(stack)})
    return rows


def into_page(built: list[dict[str, Any]], read: list[dict[str, Any]]) -> None:
    """Both tables into docs/device.md, between its two comments."""
    lines = ["", "| built | bytes |", "|---|---|", *(f"| {row['built']} | {row[CPU]:,} |" for row in built), ""]
    lines += [
        "| method | instructions a symbol | scratch | fast: instructions | fast: scratch | stack |",
        "|---|---|---|---|---|---|",
    ]
    for row in read:
        keys = ("instructions a symbol", "scratch", "fast: instructions", "fast: scratch", "stack")
        cells = (f"{row[key]:,.0f}" if key in row else "" for key in keys)
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    begin, end = "<!-- bench/device_size.py -->", "<!-- end -->"
    text = PAGE.read_text()
    head, tail = text.split(begin)[0], text.split(end)[1]
    PAGE.write_text(head + begin + "\n".join([*lines, ""]) + "\n" + end + tail)


def main() -> None:
    """Both tables."""
    with tempfile.TemporaryDirectory() as folder:
        built, read = sizes(Path(folder)), costs(Path(folder))
    common.tell("device_size", "Bytes of code and constants of the reader in C, -Os", built)
    common.tell("device_cost", f"What a symbol costs on {CPU}, -Os: instructions, bytes of scratch and stack", read)
    into_page(built, read)


if __name__ == "__main__":
    main()
