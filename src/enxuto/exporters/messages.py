"""Graphs of ONNX as files that are written piece by piece: protobuf's own way holds all weights two more times meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator

import onnx
from google.protobuf.message import Message

_LARGE = (onnx.ModelProto, onnx.GraphProto, onnx.TensorProto)  # what is taken apart; all else is small
_LONG = 2  # the wire type of what has a length


def save(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Writes the bytes of `proto.SerializeToString()`, of which no more than one weight is in memory at once."""
    with open(path, "wb") as file:
        file.writelines(_pieces(proto))


def size_bytes(proto: onnx.ModelProto) -> int:
    """How long the file is (`proto.ByteSize()` makes all of it)."""
    return sum(map(len, _pieces(proto)))


def _pieces(message: Message) -> Iterator[bytes]:
    for field, value in message.ListFields():  # in the order of their numbers, which is that of the file
        key = _varint(field.number << 3 | _LONG)
        if isinstance(value, bytes):
            yield key + _varint(len(value))
            yield value
        elif field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                if isinstance(item, _LARGE):
                    yield key + _varint(sum(map(len, _pieces(item))))
                    yield from _pieces(item)
                else:
                    whole = item.SerializeToString()
                    yield key + _varint(len(whole)) + whole
        else:
            alone = type(message)()
            if isinstance(value, (int, float, str)):
                setattr(alone, field.name, value)
            else:
                getattr(alone, field.name).extend(value)
            yield alone.SerializeToString()


def _varint(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
