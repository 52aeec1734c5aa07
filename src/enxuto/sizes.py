"""Bytes: of a tensor, a module, a file, and as people write them ("100 kB").

Units are decimal (1 kB = 1000 bytes), as on disks and data sheets; `KiB` and `MiB` are understood too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from enxuto.checks import named, within
from enxuto.errors import RangeError

if TYPE_CHECKING:
    from torch import Tensor, nn

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)


def rounded_up(count: int, step: int) -> int:
    """The least multiple of `step` that is not below `count`.

    >>> rounded_up(17, 16), rounded_up(16, 16), rounded_up(0, 16)
    (32, 16, 0)
    """
    return -(-count // step) * step


def parse_bytes(text: str | int | float, noun: str = "size", *, least: int = 1, unit: bool = False) -> int:
    """The number of bytes that "100 kB", "1.5MB", "64 KiB" or a plain number means.

    Raises: RangeError, which calls it `noun`, when the text is no size, or the size is below `least`; with `unit`, for those to
    whom a number says something else, when the text has none.
    >>> parse_bytes("100 kB"), parse_bytes("1.5MiB"), parse_bytes(512)
    (100000, 1572864, 512)
    """
    if isinstance(text, str):
        match = _SIZE.fullmatch(text)
        if not match or match[2].lower() not in UNITS:
            raise RangeError(f"{noun}={text!r} is not understood; write a number and a unit, as in '100 kB' or '1.5 MB'.")
        if unit and not match[2]:
            raise RangeError(
                f"{noun}={text!r} is a text without a unit; write '{match[1]} kB' for bytes, or {match[1]} for a number."
            )
        count = float(match[1]) * UNITS[match[2].lower()]
    else:
        count = float(text) if within(text, "(-inf, inf)") else -1.0
    if not least <= count < float("inf"):
        kind = "a positive number of bytes" if least else "a number of bytes"
        raise RangeError(f"{named(noun, text)} is not {kind}; write for example '100 kB'.")
    return round(count)


def format_bytes(count: float) -> str:
    """A size as people read it, three significant digits.

    >>> format_bytes(999), format_bytes(17_750), format_bytes(1_066_440)
    ('999 B', '17.8 kB', '1.07 MB')
    """
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit, size in (("kB", 10**3), ("MB", 10**6), ("GB", 10**9)):
        if abs(count) / size < 999.5 or unit == "GB":
            value = count / size
            digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable: gigabytes always return")


def ample_bytes(count: int) -> str:
    """The same for a size to ask for: no less than `count` when it is read again, and at most a hundredth more.

    >>> ample_bytes(2_308), format_bytes(2_304), ample_bytes(2_304)
    ('2.32 kB', '2.30 kB', '2.32 kB')
    """
    return format_bytes(count * 1.005)  # half of the last of three digits, at most


def parse_fraction(text: str | float, noun: str = "fraction") -> float:
    """The fraction that "0.5%", "0.005" or 0.005 means.

    Raises: RangeError, which calls it `noun`, when the text is none.
    >>> parse_fraction("0.5%"), parse_fraction(0.25)
    (0.005, 0.25)
    """
    try:
        if isinstance(text, str) and text.strip().endswith("%"):
            return float(text.strip()[:-1]) / 100
        return float(text if not isinstance(text, bool) else "")
    except (ValueError, TypeError, OverflowError):
        raise RangeError(f"{noun}={text!r} is not understood; write '0.5%' or 0.005.") from None


def parse_seconds(text: str | float, noun: str = "time") -> float:
    """The seconds that "20m", "20 min", "1h", "90s" or a plain number means.

    Raises: RangeError, which calls it `noun`, when the text is no time, or the time is not positive.
    >>> parse_seconds("20 min"), parse_seconds("1.5h"), parse_seconds(90)
    (1200.0, 5400.0, 90.0)
    """
    units = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
    if isinstance(text, str):
        match = _SIZE.fullmatch(text)
        if not match or match[2].lower() not in units:
            raise RangeError(f"{noun}={text!r} is not understood; write for example '20 min', '90s' or '1h'.")
        seconds = float(match[1]) * units[match[2].lower()]
    else:
        seconds = float(text) if within(text, "[-inf, inf]") else 0.0
    if not seconds > 0:
        raise RangeError(f"{noun}={text!r} is not positive; write for example '20 min'.")
    return seconds


def tensor_bytes(tensor: Tensor) -> int:
    """The bytes the elements of a tensor take."""
    return tensor.numel() * tensor.element_size()


def module_bytes(module: nn.Module) -> int:
    """The bytes of all parameters and buffers of a module; a shared tensor counts once."""
    return sum(map(tensor_bytes, [*module.parameters(), *module.buffers()]))


def file_bytes(path: str | os.PathLike[str]) -> int:
    """The size of a file, from the file system."""
    return Path(path).stat().st_size
