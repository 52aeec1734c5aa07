"""Where the tensors are inside a file of another kind: safetensors, a torch checkpoint, ONNX.

Every such file is tensors in a row with something between them. Nothing is unpickled, and no library of those formats is
needed: what is not understood stays between the tensors, and comes back byte for byte all the same.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from enxuto.artifact.index import MOST_AXES, NUMPY
from enxuto.errors import ArtifactError

_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "C64": "complex64",
}
_ONNX = {
    1: "float32",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    19: "float8_e5m2",
}
_TORCH = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
}
REST = "(between the tensors)"  # the name that a packed file gives to all bytes outside of tensors
_LARGEST_HEADER = 100 << 20  # that of safetensors itself
_LONGEST_PATH = 1000  # letters; a pickle may nest its lists a million deep
# What a damaged zip file or pickle raises in the standard library.
_BROKEN = (
    *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, RuntimeError),
)
_GRAPH, _INITIALIZER = 7, 5  # fields of ModelProto and GraphProto
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 1, 2, 4, 8, 9  # of TensorProto
_LONG = 2  # the wire type of what has a length


@dataclass(frozen=True)
class Span:
    """One tensor inside a file: `count` elements from `offset` on. Of a dtype that is not known, its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def find_spans(path: Path) -> tuple[str, list[Span]]:
    """The kind of a file ("safetensors", "torch" or "onnx") and its tensors, in the order of their bytes.

    Raises: ArtifactError when the file is missing, of another kind, or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"'{path}' {'is not a file' if path.exists() else 'does not exist'}; name the file to pack.")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}; check its permissions.") from error
    if start.startswith(b"PK\3\4"):
        kind, found = "torch", _torch_spans(path)
    elif path.suffix == ".onnx":  # whose ninth byte may be anything
        kind, found = "onnx", _onnx_spans(path)
    elif len(start) == 9 and start[8:] == b"{":
        kind, found = "safetensors", _safetensors_spans(path)
    elif start.startswith(b"\x80\2"):
        raise ArtifactError(f"'{path}' is a checkpoint of torch before 1.6; load it and write it again with torch.save.")
    else:
        raise ArtifactError(
            f"'{path}' begins with {start[:4]!r}, which is neither safetensors nor a torch checkpoint, and it is not named "
            ".onnx; give a .safetensors, .pt (saved by torch.save) or .onnx file."
        )
    return kind, list(_settled(found, path.stat().st_size))


def _settled(found: list[Span], size: int) -> Iterator[Span]:
    """The spans in order, each once, with names that differ; those that overlap or leave the file stay where they are."""
    taken = {REST}
    end = 0
    for span in sorted(found, key=lambda span: (span.offset, -span.nbytes)):
        if span.offset < end or span.offset + span.nbytes > size or span.nbytes <= 0:
            continue
        end = span.offset + span.nbytes
        if not _fits(span):
            span = replace(span, dtype="uint8", shape=(span.nbytes,))
        plain = span.name.encode(errors="replace").decode().replace("\0", " ")
        name = next(name for name in chain([plain], (f"{plain}#{number}" for number in count(2))) if name not in taken)
        taken.add(name)
        yield replace(span, name=name)


def _fits(span: Span) -> bool:
    """Whether dtype and shape describe the bytes of a span."""
    whole = len(span.shape) <= MOST_AXES and all(type(size) is int and size >= 0 for size in span.shape)
    return whole and span.dtype in NUMPY and math.prod(span.shape) * NUMPY[span.dtype].itemsize == span.nbytes


def _safetensors_spans(path: Path) -> list[Span]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LARGEST_HEADER, path.stat().st_size - 8):
            raise ArtifactError(
                f"'{path}' has a header of {length} bytes, which does not fit; it is damaged or no safetensors file."
            )
        try:
            header = json.loads(file.read(length))
            return [
                Span(name, _SAFETENSORS.get(item["dtype"], ""), tuple(item["shape"]), 8 + length + int(first), int(last - first))
                for name, item in header.items()
                if name != "__metadata__"
                for first, last in [item["data_offsets"]]
            ]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ArtifactError(f"the header of '{path}' is not that of safetensors ({error}); it is damaged.") from error


def _torch_spans(path: Path) -> list[Span]:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            records = {item.filename: item for item in archive.infolist() if item.compress_type == zipfile.ZIP_STORED}
            pickled = next((name for name in records if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise ArtifactError(f"'{path}' is a zip file without data.pkl; give a file that torch.save wrote.")
            storages = _storages(archive.read(pickled))
            folder = f"{pickled.removesuffix('data.pkl')}data/"
            spans = []
            for record, item in records.items():
                if not record.startswith(folder):
                    continue
                key = record.removeprefix(folder)
                name, dtype, shape = storages.get(key, (f"data/{key}", "", ()))
                file.seek(item.header_offset + 26)  # the lengths of name and extra field in the local header
                lengths = file.read(4)
                start = item.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                spans.append(Span(name, dtype, shape, start, item.file_size))
            return spans
    except _BROKEN as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"'{path}' is no readable torch checkpoint ({error}); save it again with torch.save.") from error


class _Stub:
    """Stands for whatever a pickle names; it keeps what it is called with, and does nothing."""

    name = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.arguments = arguments

    def __repr__(self) -> str:
        return self.name  # as a key of a dict it becomes part of a name, which is the same every time

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """A list that forgets."""

    def extend(self, values: Any) -> None:
        """A list that forgets."""


class _Storages(pickle.Unpickler):
    """Reads which storages a torch pickle holds, without importing or calling anything that it names."""

    def find_class(self, module: str, name: str) -> Any:
        """A stub for everything but an ordered dict."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type(name, (_Stub,), {"name": name})

    def persistent_load(self, identity: Any) -> Any:
        """Key and dtype of a storage."""
        _, kind, key = identity[:3]
        return str(key), _TORCH.get(getattr(kind, "name", ""), "")


def _storages(data: bytes) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of the largest tensor on each storage of a pickle, by its key."""
    for code, argument, _ in pickletools.genops(data):
        if code.name.endswith("PUT") and int(argument or 0) > len(data):
            raise ValueError(f"it puts something at place {argument} of its memory")  # which would be taken for it
    found: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    for name, (key, dtype), shape in _tensors(_Storages(io.BytesIO(data)).load()):
        if key not in found or math.prod(shape) > math.prod(found[key][2]):
            found[key] = (name, dtype, shape)
    return found


def _tensors(root: Any) -> Iterator[tuple[str, tuple[str, str], tuple[int, ...]]]:
    """Path, storage and shape of every tensor in nested dicts, lists and objects, which may hold themselves."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _Stub) and value.name.startswith("_rebuild_tensor") and len(value.arguments) > 2:
            yield path, value.arguments[0], tuple(value.arguments[2])
        elif isinstance(value, _Stub):
            waiting += [(path, item) for item in (value.state, *reversed(value.arguments))]
        elif isinstance(value, (Mapping, list, tuple)):
            items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
            waiting += [(f"{path}.{key}"[-_LONGEST_PATH:] if path else str(key), item) for key, item in reversed(items)]


def _onnx_spans(path: Path) -> list[Span]:
    found: list[Span] = []
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for field, start, end in _fields(data, 0, len(data)):
                if field == _GRAPH:
                    for inner, first, last in _fields(data, start, end):
                        if inner == _INITIALIZER:
                            found += _onnx_tensor(data, first, last)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise ArtifactError(f"'{path}' is no readable ONNX file ({error}); export it again.") from error
    return found


def _onnx_tensor(data: mmap.mmap, start: int, end: int) -> list[Span]:
    dims: list[int] = []
    kind, name, place = 0, "", (0, 0)
    for field, first, last in _fields(data, start, end):
        if field == _DIMS and last > first:  # packed or one by one: varints in a row either way
            at = first
            while at < last:
                size, at = _varint(data, at, last)
                dims.append(size)
        elif field == _DATA_TYPE:
            kind, _ = _varint(data, first, last)
        elif field == _NAME:
            name = data[first:last].decode(errors="replace")
        elif field in (_RAW_DATA, _FLOAT_DATA):
            place = (first, last)
    return [Span(name, _ONNX.get(kind, ""), tuple(dims), place[0], place[1] - place[0])]


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the content of each field of a protobuf message."""
    while at < end:
        key, at = _varint(data, at, end)
        field, wire = key >> 3, key & 7
        if wire == _LONG:
            length, at = _varint(data, at, end)
        elif wire == 0:
            length = _varint(data, at, end)[1] - at
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if length > end - at:
            raise ValueError(f"a field of {length} bytes does not fit at byte {at}")
        yield field, at, at + length
        at += length


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")
