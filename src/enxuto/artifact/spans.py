"""Where the tensors are inside a file of another kind: safetensors, a torch checkpoint, ONNX.

Every such file is tensors in a row with something between them. Nothing is unpickled, and no library of those formats is
needed: what is not understood stays between the tensors, and comes back byte for byte all the same.
"""

from __future__ import annotations

import json
import math
import mmap
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from enxuto.artifact.index import MOST_AXES, NUMPY
from enxuto.artifact.pickles import storages
from enxuto.artifact.protobuf import fields, refuse_files_beside, varint
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
REST = "(between the tensors)"  # the name that a packed file gives to all bytes outside of tensors
_LARGEST_HEADER = 100 << 20  # that of safetensors itself
# What a damaged zip file or pickle raises in the standard library.
_BROKEN = (
    *(zipfile.BadZipFile, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, RuntimeError),
)
_GRAPH, _FUNCTION = 7, 25  # fields of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_BODY = 7  # of FunctionProto: its nodes
_OUTPUT, _ATTRIBUTE = 2, 5  # of NodeProto
_TENSOR, _SUBGRAPH = 5, 6  # of AttributeProto
_LEAST_CONSTANT = 256  # bytes of a tensor in a node; the sizes and axes that most nodes hold stay between the tensors
_LONGEST_NAME = 1000  # bytes of a node's name
_DEEPEST_GRAPH = 16  # graphs inside of graphs (loops, branches) that are looked into
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 1, 2, 4, 8, 9  # of TensorProto


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
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))
    end = 0
    for span in sorted(found, key=lambda span: (span.offset, -span.nbytes)):
        if span.offset < end or span.offset + span.nbytes > size or span.nbytes <= 0:
            continue
        end = span.offset + span.nbytes
        if not _fits(span):
            span = replace(span, dtype="uint8", shape=(span.nbytes,))
        plain = span.name.encode(errors="replace").decode().replace("\0", " ")
        name = plain
        while name in taken:
            name = f"{plain}#{next(numbers[plain])}"
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
            spans = [
                Span(name, _SAFETENSORS.get(item["dtype"], ""), tuple(item["shape"]), 8 + length + int(first), int(last - first))
                for name, item in header.items()
                if name != "__metadata__"
                for first, last in [item["data_offsets"]]
            ]
            end = max((span.offset + span.nbytes for span in spans), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ArtifactError(f"the header of '{path}' is not that of safetensors ({error}); it is damaged.") from error
    if end > path.stat().st_size:
        raise ArtifactError(
            f"'{path}' ends after {path.stat().st_size} bytes, its tensors at {end}; it was cut off: copy it again."
        )
    return spans


def _torch_spans(path: Path) -> list[Span]:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            records = {item.filename: item for item in archive.infolist() if item.compress_type == zipfile.ZIP_STORED}
            pickled = next((name for name in records if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise ArtifactError(f"'{path}' is a zip file without data.pkl; give a file that torch.save wrote.")
            held = storages(archive.read(pickled))
            folder = f"{pickled.removesuffix('data.pkl')}data/"
            spans = []
            for record, item in records.items():
                if not record.startswith(folder):
                    continue
                key = record.removeprefix(folder)
                name, dtype, shape = held.get(key, (f"data/{key}", "", ()))
                file.seek(item.header_offset + 26)  # the lengths of name and extra field in the local header
                lengths = file.read(4)
                start = item.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                spans.append(Span(name, dtype, shape, start, item.file_size))
            return spans
    except _BROKEN as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"'{path}' is no readable torch checkpoint ({error}); save it again with torch.save.") from error


def _onnx_spans(path: Path) -> list[Span]:
    found: list[Span] = []
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            refuse_files_beside(data, str(path))
            for field, start, end in fields(data, 0, len(data)):
                if field == _GRAPH:
                    found += _graph_tensors(data, start, end, 1)
                elif field == _FUNCTION:
                    for inner, first, last in fields(data, start, end):
                        found += _node_tensors(data, first, last, 1) if inner == _BODY else []
    except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"'{path}' is no readable ONNX file ({error}); export it again.") from error
    return found


def _graph_tensors(data: mmap.mmap, start: int, end: int, depth: int) -> list[Span]:
    """The tensors that a graph holds as its own and inside its nodes (Constant, and the graphs of loops and branches)."""
    found: list[Span] = []
    for field, first, last in fields(data, start, end):
        if field == _INITIALIZER:
            found += _onnx_tensor(data, first, last)
        elif field == _NODE and last - first >= _LEAST_CONSTANT:
            found += _node_tensors(data, first, last, depth)
    return found


def _node_tensors(data: mmap.mmap, start: int, end: int, depth: int) -> list[Span]:
    name, found = "", []
    for field, first, last in fields(data, start, end):
        if field == _OUTPUT and not name:
            name = data[first : min(last, first + _LONGEST_NAME)].decode(errors="replace")  # given to all that the node holds
        elif field == _ATTRIBUTE and last - first >= _LEAST_CONSTANT:
            for inner, begin, stop in fields(data, first, last):
                if inner == _TENSOR and stop - begin >= _LEAST_CONSTANT:
                    found += _onnx_tensor(data, begin, stop)
                elif inner == _SUBGRAPH and depth < _DEEPEST_GRAPH:
                    found += _graph_tensors(data, begin, stop, depth + 1)
    return [replace(span, name=span.name or name) for span in found]


def _onnx_tensor(data: mmap.mmap, start: int, end: int) -> list[Span]:
    dims: list[int] = []
    kind, name, place = 0, "", (0, 0)
    for field, first, last in fields(data, start, end):
        if field == _DIMS and last > first:  # packed or one by one: varints in a row either way
            at = first
            while at < last:
                size, at = varint(data, at, last)
                dims.append(size)
        elif field == _DATA_TYPE:
            kind, _ = varint(data, first, last)
        elif field == _NAME:
            name = data[first:last].decode(errors="replace")
        elif field in (_RAW_DATA, _FLOAT_DATA):
            place = (first, last)
    return [Span(name, _ONNX.get(kind, ""), tuple(dims), place[0], place[1] - place[0])]
