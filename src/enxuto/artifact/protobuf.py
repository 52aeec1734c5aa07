"""Protobuf messages as bytes: their fields, and whether an ONNX model keeps tensors in files of their own.

No onnx here: what is looked for is found by field numbers alone, in any depth and without recursion.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from enxuto.errors import ArtifactError

_LONG = 2  # the wire type of what has a length
Message = bytes | mmap.mmap

# Which fields of a message of ONNX hold messages in which a tensor may be, as {message: {field: message}}.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_OTHER_FORMAT = b"ORTM"  # of ONNX Runtime: no protobuf, and opened all the same


def fields(data: Message, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the content of each field of a message.

    Raises: ValueError when it is none.
    """
    while at < end:
        key, at = varint(data, at, end)
        field, wire = key >> 3, key & 7
        if not field:
            raise ValueError(f"field 0 at byte {at}")
        if wire == _LONG:
            length, at = varint(data, at, end)
        elif wire == 0:
            length = varint(data, at, end)[1] - at
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if length > end - at:
            raise ValueError(f"a field of {length} bytes does not fit at byte {at}")
        yield field, at, at + length
        at += length


def varint(data: Message, at: int, end: int) -> tuple[int, int]:
    """A number, and the place behind it. Raises: ValueError when there is none."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")


def file_beside(data: Message) -> str | None:
    """What an ONNX model says of a tensor whose bytes are in another file; None when it holds all of them itself.

    ONNX Runtime would read that file, whichever it is, from where the process runs.
    Raises: ValueError when it is no ONNX model.
    """
    if data[4:8] == _OTHER_FORMAT:
        raise ValueError("it is in the runtime's own format")
    waiting = [("model", 0, len(data))]
    while waiting:
        message, start, stop = waiting.pop()
        for field, first, last in fields(data, start, stop):
            if message == "tensor" and field == _EXTERNAL_DATA:
                return _said(data, first, last)
            if message == "tensor" and field == _DATA_LOCATION and varint(data, first, last)[0]:
                return "another file"
            inside = _INSIDE.get(message, {}).get(field)
            if inside is not None:
                waiting.append((inside, first, last))
    return None


def refuse_files_beside(data: Message, name: str) -> None:
    """Raises ArtifactError when an ONNX model has tensors in other files, or is none."""
    try:
        found = file_beside(data)
    except ValueError as error:
        raise ArtifactError(f"'{name}' is no readable ONNX file ({error}); export it again.") from error
    if found is not None:
        raise ArtifactError(
            f"'{name}' keeps a tensor in {found}, which enxuto does not read; "
            "write the model as one file: onnx.save(onnx.load(path), one, save_as_external_data=False)."
        )


def _said(data: Message, first: int, last: int) -> str:
    """The name of the file, as an entry of key and value tells it."""
    parts = [bytes(data[start:stop]) for _, start, stop in fields(data, first, last)]
    return repr(parts[1][:200].decode(errors="replace")) if len(parts) == 2 and parts[0] == b"location" else "another file"
