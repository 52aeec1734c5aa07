"""The ONNX graph of a network inside its .nxt file, without the weights, which the file holds already.

The graph is the .onnx file with its large constants cut out. A constant that is one of the network's own weights, decoded, is
named; any other is kept beside it. No torch and no onnx here: a device puts the file together with numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enxuto.artifact.container import Reader
from enxuto.artifact.index import NUMPY
from enxuto.artifact.sections import Section
from enxuto.artifact.spans import find_spans
from enxuto.errors import ArtifactError

GRAPH = "(graph)"  # the name of the tensor that holds the file without its constants; theirs begin with it
_LARGEST = 8  # times the bytes of the file's tensors: a code of a byte becomes a float, and a tied weight occurs twice
_LEAST_BYTES = 64  # of a constant that is cut out; smaller ones cost less where they are
Array = NDArray[Any]


def attach(path: Path, tensors: Mapping[str, Array]) -> tuple[dict[str, Any], list[Section]]:
    """What to keep of an .onnx file beside a network with these float tensors: its meta and its own tensors."""
    data = path.read_bytes()
    gaps: list[int] = []
    constants: list[list[Any]] = []
    sections: list[Section] = []
    rest, at = [], 0
    by_bytes = {array.tobytes(): name for name, array in reversed(list(tensors.items())) if array.nbytes >= _LEAST_BYTES}
    turned = {array.T.tobytes(): name for name, array in reversed(list(tensors.items())) if array.ndim == 2}
    for span in find_spans(path)[1]:
        if span.nbytes < _LEAST_BYTES:
            continue
        raw = data[span.offset : span.offset + span.nbytes]
        rest.append(data[at : span.offset])
        gaps.append(span.offset - at)
        at = span.offset + span.nbytes
        if raw in by_bytes:
            constants.append([by_bytes[raw]])
        elif raw in turned:
            constants.append([turned[raw], "T"])
        else:
            name = f"{GRAPH}{span.name}"
            constants.append([name])
            array = np.frombuffer(raw, NUMPY[span.dtype].newbyteorder("<")).reshape(span.shape)
            sections.append(Section(name, span.dtype, span.shape, None, array))
    rest.append(data[at:])
    gaps.append(len(data) - at)
    letters = np.frombuffer(b"".join(rest), np.uint8)
    return {"gaps": gaps, "constants": constants}, [*sections, Section(GRAPH, "uint8", letters.shape, None, letters)]


def onnx_bytes(reader: Reader) -> bytes:
    """The .onnx file that `attach` took apart, in memory.

    Raises: ArtifactError when the file carries no graph, or is damaged.
    """
    graph = reader.meta.get("graph")
    if not isinstance(graph, dict) or GRAPH not in reader.entries:
        raise ArtifactError(
            f"'{reader.path}' carries no graph that could be run; write it with enxuto.save(..., graph=True), "
            "or load it into its network with enxuto.load."
        )
    try:
        gaps, constants = graph["gaps"], graph["constants"]
        rest, parts, at, size = reader.array(GRAPH).tobytes(), [], 0, 0
        largest = _LARGEST * sum(entry.nbytes for entry in reader.entries.values())
        if any(gap < 0 for gap in gaps) or sum(gaps) != len(rest):
            raise ValueError(f"gaps of {sum(gaps)} bytes in {len(rest)}")
        for gap, constant in zip(gaps, [*constants, None], strict=True):
            parts.append(rest[at : at + gap])
            at += gap
            if constant is not None:
                array = decoded(reader, constant[0])
                parts.append((array.T if constant[1:] == ["T"] else array).tobytes())
                size += array.nbytes
            if size > largest:
                raise ValueError(f"constants of {size} bytes and more")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"the graph of '{reader.path}' does not fit its tensors ({error}); save it again.") from error
    return b"".join(parts)


def decoded(reader: Reader, name: str) -> Array:
    """A tensor of the network as float32 numbers, whether it is coded or not; the same bits as the layer itself gives.

    Raises: KeyError when there is none of that name.
    """
    same = reader.meta.get("same", {})
    name = same.get(name, name)
    if name in reader.entries:
        return reader.array(name)
    path, _, leaf = name.rpartition(".")
    base = f"{path}.coded.{leaf}" if path else f"coded.{leaf}"
    first = same.get(f"{base}.codes", f"{base}.codes").removesuffix(".codes")
    codes = reader.array(f"{first}.codes").astype(np.int32)
    if f"{first}.codebook" in reader.entries:
        return reader.array(f"{first}.codebook").astype(np.float32).reshape(-1)[codes]
    held = reader.entries[f"{first}.scale"]
    scale = reader.array(held.name)
    if held.dtype == "bfloat16":
        scale = (scale.astype(np.uint32) << 16).view(np.float32)
    symbols = reader.entries[f"{first}.codes"].symbols or 2
    signed = codes * 2 - 1 if symbols == 2 else codes - symbols // 2
    rows: Array = signed.reshape(scale.size, -1).astype(np.float32) * scale.astype(np.float32)[:, None]
    return rows.reshape(codes.shape)
