"""Compilers and boards, for the tests and for bench/device_size.py: builds the reader in C, and runs it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "src" / "enxuto" / "device"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Werror"]
BOARDS = {"cortex-m0plus": "mps2-an385", "cortex-m3": "mps2-an385", "cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500"}
"""A machine of qemu that runs the code of each; that of an M0+ runs on an M3."""
INSTRUCTIONS = 40  # that pass between two ticks of a board's clock
TENSOR = ("scratch", "fast_scratch", "ticks", "fast_ticks", "stack", "dtype", "symbols", "ndim")


def has(*programs: str) -> bool:
    return all(map(shutil.which, programs))


def build(compiler: str, source: Path, out: Path, *options: str) -> Path:
    """The program, compiled without a warning."""
    standard = [] if any(option.startswith("-std=") for option in options) else ["-std=c99"]
    command = [compiler, *standard, *STRICT, f"-I{HEADERS}", f"-I{HERE}", *options, str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def build_board(cpu: str, files: Sequence[Path], folder: Path, *macros: str) -> Path:
    """A program for a board that holds the files, each at an odd address."""
    lines = [".section .rodata"]
    lines += [f'.balign 4\n.byte 0\nfile{number}: .incbin "{path}"' for number, path in enumerate(files)]
    lines += [".balign 4", ".global files, sizes", "files:", *(f".word file{number}" for number in range(len(files))), ".word 0"]
    lines += ["sizes:", *(f".word {path.stat().st_size}" for path in files)]
    held = folder / f"{cpu}.s"
    held.write_text("\n".join(lines) + "\n")
    options = ("-Os", "-mthumb", f"-mcpu={cpu}", "-ffunction-sections", "-Wl,--gc-sections", "-nostartfiles", "-T")
    return build(
        "arm-none-eabi-gcc", HERE / "board.c", folder / f"{cpu}.elf", *options, str(HERE / "board.ld"), str(held), *macros
    )


def run_board(cpu: str, program: Path) -> str:
    """What the program says; one instruction takes one nanosecond of the board's time, so that it repeats exactly."""
    machine = ["qemu-system-arm", "-M", BOARDS[cpu], "-nographic", "-icount", "shift=0", "-kernel", str(program)]
    machine += ["-semihosting-config", "enable=on,target=native"]
    return subprocess.run(machine, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout


def code_bytes(cpu: str, folder: Path, *leave_out: str) -> tuple[int, int]:
    """Code and constants of the whole reader, in bytes."""
    source = folder / "reader.c"
    source.write_text("#define NXT_IMPLEMENTATION\n#include <nxt.h>\n")
    macros = [f"-DNXT_NO_{name}" for name in leave_out]
    unit = build("arm-none-eabi-gcc", source, folder / "reader.o", "-Os", "-mthumb", f"-mcpu={cpu}", "-c", *macros)
    told = subprocess.run(["arm-none-eabi-size", "-A", str(unit)], capture_output=True, text=True, check=True).stdout
    sections = [line.split() for line in told.splitlines() if line.startswith((".text", ".rodata", ".data", ".bss"))]
    assert not sum(int(size) for name, size, _ in sections if name.startswith((".data", ".bss"))), "the reader has no variables"
    code = sum(int(size) for name, size, _ in sections if name.startswith(".text"))
    return code, sum(int(size) for name, size, _ in sections) - code
