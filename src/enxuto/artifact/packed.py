"""What a packed file says of itself, believed only where it can be: its tensors in a row, and the bytes between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from enxuto.artifact.container import Reader, memory_limit_bytes
from enxuto.artifact.index import NUMPY, Entry
from enxuto.artifact.sections import Section
from enxuto.artifact.spans import REST
from enxuto.errors import ArtifactError

SMALL = 1 << 20  # bytes that are tried in every way, without asking whether they repeat
_ONE_STREAM = 1 << 22  # bytes that one stream of bytes holds; elements of 16 bytes reach 16 times as far
PathLike = str | os.PathLike[str]


def checked(reader: Reader, parent: PathLike | None) -> tuple[list[int], dict[str, int], list[str]]:
    """The gaps, the checksums of the parent's tensors, and the tensor that stands between each two gaps.

    Raises: ArtifactError when the file is no packed one, contradicts itself, or needs a parent that is not given.
    """
    gaps, differences = reader.meta.get("gaps"), reader.meta.get("differences", {})
    if "packed" not in reader.meta or not isinstance(gaps, list):
        raise ArtifactError(
            f"'{reader.path}' holds a network, not a packed file; load it with enxuto.load, or write it with `enxuto export`."
        )
    names = _names(reader)
    whole = all(type(gap) is int and gap >= 0 for gap in gaps) and isinstance(differences, dict)
    rest = rest_entry(sum(gaps)) if whole and any(gaps) else None
    if (
        not whole
        or names is None
        or len(gaps) != len(names) + 1
        or reader.entries.get(REST) != rest
        or set(differences) - set(names)
    ):
        raise ArtifactError(f"'{reader.path}' says of itself what cannot be; it is damaged: copy or pack it again.")
    if differences and parent is None:
        raise ArtifactError(
            f"'{reader.path}' holds differences to '{reader.meta.get('parent')}'; unpack it with that file as --parent."
        )
    return gaps, differences, names


def firsts(reader: Reader) -> dict[str, str]:
    """By the name of a tensor that is not kept, as it is there twice: that of its first one; of a file that was `checked`."""
    return {name: first for _, name, first in reader.meta.get("again", [])}


def spliced(reader: Reader) -> bytes:
    """The whole packed file in memory, for those who only want to open it.

    Raises: ArtifactError as `pack.unpack`; a file that was packed with a parent is refused.
    """
    gaps, _, names = checked(reader, None)
    rest = reader.array(REST).tobytes() if REST in reader.entries else b""
    parts, at = [], 0
    for name, gap in zip([*names, ""], gaps, strict=True):
        parts.append(rest[at : at + gap])
        at += gap
        if name:
            parts.append(reader.array(name).tobytes())
    return b"".join(parts)


def rest_entry(nbytes: int) -> Entry:
    """How the bytes between the tensors are kept: many of them as elements of 16 bytes, for longer streams."""
    wide = nbytes > _ONE_STREAM
    return Entry(REST, "complex128", (-(-nbytes // 16),), None) if wide else Entry(REST, "uint8", (nbytes,), None)


def rest_section(data: bytes, *, repeats: bool) -> Section:
    """The bytes between the tensors; `repeats` as for any section."""
    entry = rest_entry(len(data))
    array = np.frombuffer(data + bytes(-len(data) % NUMPY[entry.dtype].itemsize), NUMPY[entry.dtype])
    return Section(REST, entry.dtype, entry.shape, None, array, repeats)


def _names(reader: Reader) -> list[str] | None:
    """The kept tensor that stands at each place of the file: its own, or the one that it repeats; None where that is a lie."""
    own = [name for name in reader.entries if name != REST]
    total, kept = sum(entry.nbytes for entry in reader.entries.values()), set(own)
    names: list[str] = []
    taken = 0
    for place, first in _again(reader.meta.get("again", [])):
        step = place - len(names)
        if step < 0 or step > len(own) - taken or place == 0 or first not in kept:
            return None
        names += [*own[taken : taken + step], first]
        taken += step
        total += reader.entries[first].nbytes
        if total > memory_limit_bytes(reader.size):
            return None
    return names + own[taken:]


def _again(told: Any) -> Iterator[tuple[int, str]]:
    """Place and first one of each tensor that is there twice; a place below all others for what is no such thing."""
    for item in told if isinstance(told, list) else [None]:
        if isinstance(item, list) and [type(part) for part in item] == [int, str, str]:
            yield item[0], item[2]
        else:
            yield -1, ""
