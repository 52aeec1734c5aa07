"""From a model to a .nxt file and back: `save`, `load`, and where the bytes went, `ledger`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from enxuto.artifact.claims import check_dtypes, check_grid, check_memory, check_parts
from enxuto.artifact.container import HEADER, Reader, sizes, tables, write
from enxuto.artifact.graph import GRAPH, attach
from enxuto.artifact.index import Entry as Stored
from enxuto.artifact.sections import Section
from enxuto.artifact.structure import apply, edits, told, untold
from enxuto.errors import ArtifactError, TaskError
from enxuto.layers.activations import ActivationGrid
from enxuto.layers.coded import Coded
from enxuto.layers.grids import CodedTensor
from enxuto.layers.state import is_state, set_states_, states
from enxuto.surgery import to_float, without_computed

KINDS_OF_BYTES = {".codes": "payload", ".scale": "grid", ".zero_point": "grid", ".codebook": "codebook"}


@dataclass(frozen=True)
class Entry:
    """Bytes of the file that belong together: one tensor of one layer, or the header."""

    path: str
    kind: str  # "payload" (codes), "table", "grid", "codebook", "bias", "float", "graph" or "header"
    name: str
    bytes: int


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    original: nn.Module | None = None,
    graph: Path | None = None,
    device: bool = False,
    about: Mapping[str, str] | None = None,
) -> list[Entry]:
    """Writes the model to a .nxt file, whole or not at all, and says where the bytes went.

    With `original`, the network the model was made from, only the layers that differ are described. `graph` is an .onnx file
    of the model, whose graph is kept too. `device` leaves the index uncoded and the slow coders out, for readers with
    little memory. `about` is for people: an author, a licence, a date; it counts as header.
    Raises: ArtifactError for a model that cannot be kept; OutputError when the file cannot be written.
    """
    model = without_computed(model)
    extra = states(model)
    sections, same = _sections(model)
    meta = told(edits(model, original))
    if extra:
        meta["extra"] = extra
    if same:
        meta["same"] = same
    if about:
        meta["about"] = {str(key): str(value) for key, value in about.items()}
    if graph is not None:
        meta["graph"], more = attach(graph, _float_tensors(model, sections))
        sections += more
    write(path, meta, sections, plain=device, fast=device)
    return ledger(path)


def load(path: str | os.PathLike[str], into: nn.Module | None = None) -> nn.Module:
    """The model in the file, built from a fresh network of the class it was made from; `into` itself is left alone.

    Nothing is decoded before all that the file says has been found to fit the network.
    Raises: ArtifactError when the file is missing, damaged or foreign, or was made from another network; TaskError without a
    network.
    """
    with Reader(path) as reader:
        if not isinstance(into, nn.Module):
            raise TaskError(
                f"'{path}' holds weights, not the code of the network, and into={into!r} is no network; "
                f"write enxuto.load('{path}', into=Net()) with a fresh network of the class it was made from."
            )
        reader.check()
        try:
            return _loaded(reader, into)
        except ArtifactError as error:
            raise ArtifactError(str(error) if str(path) in str(error) else f"'{path}': {error}") from error


def _loaded(reader: Reader, into: nn.Module) -> nn.Module:
    same, extra = reader.meta.get("same", {}), reader.meta.get("extra", {})
    said = all(isinstance(names, dict) and all(type(text) is str for text in names.values()) for names in (same, extra))
    if not said or not isinstance(reader.meta.get("edits"), list):
        raise ArtifactError("it holds no enxuto model; pack and unpack are for plain tensors.")
    entries = {name: entry for name, entry in reader.entries.items() if not name.startswith(GRAPH)}
    for name, first in same.items():
        if first not in entries or name in reader.entries:
            raise ArtifactError(f"'{name}' is said to equal '{first}', but the file lacks that or holds both; it is damaged.")
    check_memory(into, sum(entry.nbytes for entry in entries.values()), reader.size)
    every = entries | {name: entries[first] for name, first in same.items()}
    coded = [name for name, entry in every.items() if entry.symbols is not None]
    model = apply(into, untold(reader.meta, coded), {name: entry.shape for name, entry in every.items()})
    _check_names(model, every, extra)
    _check_made(model)
    for name, entry in every.items():
        _check_entry(model, name, entry)
        codebook = every.get(name.removesuffix("codes") + "codebook")
        if codebook is not None and codebook.count < (entry.symbols or 0):
            raise ArtifactError(f"'{name}' has {entry.symbols} different codes, more than its codebook; the file is damaged.")
    for first in entries:
        tensor = _to_torch(reader.section(first))
        for name in (first, *(name for name, other in same.items() if other == first)):
            _assign_(model, name, tensor)
    _tie_(model, same)
    check_dtypes(model, into)
    check_parts(model)
    set_states_(model, extra)
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and not isinstance(module, Coded):
            module._flat_weights = [module._parameters.get(name) for name in module._flat_weights_names]
    return model.to(next((tensor.device for tensor in into.parameters() if not tensor.is_meta), None)).eval()


def _check_made(model: nn.Module) -> None:
    """Raises ArtifactError for what no file holds and only the network's own code makes: buffers that are not persistent."""
    kept = set(model.state_dict())
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in kept]
    if lost:
        raise ArtifactError(
            f"the network was built on the meta device, where its buffer '{lost[0]}' has no values, and no file holds it: the "
            "network makes it when it is built; build the network without torch.device('meta') and load again."
        )


def about(path: str | os.PathLike[str]) -> dict[str, str]:
    """What the file says of itself to people.

    Raises: ArtifactError when the file is missing, damaged or foreign.
    """
    with Reader(path) as reader:
        said = reader.meta.get("about", {})
        return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}


def ledger(path: str | os.PathLike[str]) -> list[Entry]:
    """Where the bytes of a file are, by tensor; the entries sum to the file's size.

    Raises: ArtifactError when the file is missing, damaged or foreign.
    """
    inside = tables(path)
    entries = []
    for name, count in sizes(path).items():
        entry = _entry(name, count - inside.get(name, 0))
        entries.append(entry)
        if name in inside:
            entries.append(Entry(entry.path, "table", entry.name, inside[name]))
    return entries


def layer_bytes(layer: nn.Module, original: nn.Module, apart: Sequence[str] = ()) -> tuple[int, int]:
    """The bytes that the weights of a layer alone take in a file, with their grids and tables, and those of a header that says
    how it differs from the original; neither biases nor the modules inside it that are `apart` count.
    """
    holder, was = nn.Sequential(without_computed(layer)), nn.Sequential(without_computed(original))
    with tempfile.TemporaryDirectory() as folder:
        found = write(Path(folder) / "layer.nxt", told(edits(holder, was)), _sections(holder)[0])
    inside = [_entry(name, count) for name, count in found.items() if not name.startswith(tuple(f"0.{path}." for path in apart))]
    return sum(entry.bytes for entry in inside if entry.kind not in ("bias", "header")), found[HEADER]


def _entry(name: str, count: int) -> Entry:
    if name == HEADER:
        return Entry("", "header", "header", count)
    if name.startswith(GRAPH):
        return Entry("", "graph", name, count)
    kind = next((kind for end, kind in KINDS_OF_BYTES.items() if name.endswith(end)), "float")
    owner = name.partition(".coded.")[0] if ".coded." in name else name.rpartition(".")[0]
    plain = name.replace(".coded.", ".")
    for end in KINDS_OF_BYTES:
        plain = plain.removesuffix(end)
    if plain.rpartition(".")[2].startswith("bias"):
        kind = "bias"
    return Entry(owner.removesuffix(".input_grid"), kind, plain, count)


def _sections(model: nn.Module) -> tuple[list[Section], dict[str, str]]:
    coded = {path: module for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, CodedTensor)}
    sections: list[Section] = []
    same: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in model.state_dict().items():
        if is_state(name):
            continue
        if tensor.layout != torch.strided:
            raise ArtifactError(f"'{name}' is a {tensor.layout} tensor; only dense ones can be kept: use .to_dense().")
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and identity in seen:
            same[name] = seen[identity]
            continue
        seen[identity] = name
        owner = name.rpartition(".")[0]
        if owner in coded and name.endswith(".codes"):
            codes = coded[owner].symbol_bytes().cpu().numpy()
            sections.append(Section(name, "uint8", coded[owner].shape, coded[owner].symbols, codes))
        else:
            sections.append(_from_torch(name, tensor, half=owner in coded and name.endswith(".codebook")))
    return sections, same


def _float_tensors(model: nn.Module, sections: list[Section]) -> dict[str, NDArray[Any]]:
    """The tensors of a network by name, decoded; only those that `graph.decoded` gives with the same bits."""
    plain = {section.name for section in sections if section.symbols is None}
    return {
        name: np.asarray(_from_torch(name, tensor, half=False).array)
        for name, tensor in to_float(model).state_dict().items()
        if name in plain or (not is_state(name) and tensor.dtype == torch.float32)
    }


def _from_torch(name: str, tensor: Tensor, *, half: bool) -> Section:
    tensor = tensor.detach().cpu().contiguous()
    if half and bool((tensor.half().float() == tensor).all()):
        tensor = tensor.half()  # TableTensor rounds codebooks so that this loses nothing
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        bits = tensor.view(torch.int16 if dtype == "bfloat16" else torch.uint8).numpy()
        return Section(name, dtype, tuple(tensor.shape), None, bits.view(np.uint16) if dtype == "bfloat16" else bits)
    return Section(name, dtype, tuple(tensor.shape), None, tensor.numpy())


def _to_torch(section: Section) -> Tensor:
    array: NDArray[Any] = np.ascontiguousarray(section.array).reshape(section.shape)
    if not array.flags.writeable:
        array = array.copy()
    if section.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if section.dtype.startswith("float8"):
        return torch.from_numpy(array).view(getattr(torch, section.dtype))
    return torch.from_numpy(array)


def _check_names(model: nn.Module, tensors: Mapping[str, Stored], extra: Mapping[str, str]) -> None:
    """Raises ArtifactError when the file holds other tensors and extra state than the network."""
    held = {(name, False) for name in tensors} | {(name, True) for name in extra}
    wanted = {(name, is_state(name)) for name in model.state_dict()}
    missing, unknown = ([name for name, _ in sorted(names)] for names in (wanted - held, held - wanted))
    if missing or unknown:
        parts = [f"it lacks {', '.join(missing[:4])}"] if missing else []
        parts += [f"it also holds {', '.join(unknown[:4])}"] if unknown else []
        raise ArtifactError(
            f"it is not a file of this network ({type(model).__name__}): {'; '.join(parts)}; "
            "load it into a fresh instance of the network it was made from, with the same arguments."
        )


def _check_entry(model: nn.Module, name: str, entry: Stored) -> None:
    """Raises ArtifactError when a tensor of the file is not what the network has in its place."""
    owner, leaf = _place(model, name)
    if isinstance(owner, CodedTensor):
        _check_coded(owner, name, leaf, entry)
        return
    old = {**owner._parameters, **owner._buffers}[leaf]
    dtype = getattr(torch, entry.dtype)
    kind = dtype.is_floating_point, dtype.is_complex
    assert old is not None
    like = old.dtype == dtype or (old.is_meta and kind == (old.dtype.is_floating_point, old.dtype.is_complex))
    if tuple(old.shape) != entry.shape or not like or entry.symbols is not None:
        raise ArtifactError(
            f"it is not a file of this network: '{name}' is {dtype} {list(entry.shape)} in the file and "
            f"{old.dtype} {list(old.shape)} here; load it into a network made with the same arguments."
        )


def _check_coded(owner: CodedTensor, name: str, leaf: str, entry: Stored) -> None:
    if not owner.could_be(leaf, entry.shape, getattr(torch, entry.dtype), entry.symbols):
        raise ArtifactError(
            f"'{name}' is {entry.dtype} {list(entry.shape)} with {entry.symbols} symbols, which does not fit a weight of "
            f"{list(owner.shape)} on {owner.grid}; the file is damaged."
        )


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _assign_(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, leaf = _place(model, name)
    if isinstance(owner, CodedTensor):
        if leaf != "codes":
            check_grid(name, tensor)
        owner.put_(leaf, tensor)
    elif leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=owner._parameters[leaf].requires_grad)  # type: ignore[union-attr]
    else:
        if isinstance(owner, ActivationGrid):
            check_grid(name, tensor)
        owner._buffers[leaf] = tensor


def _tie_(model: nn.Module, same: dict[str, str]) -> None:
    """Gives layers that were tied the very same parameter, or the very same coded tensor, again."""
    for name, first in same.items():
        (path, _, leaf), (other_path, _, other_leaf) = name.rpartition("."), first.rpartition(".")
        owner, other = model.get_submodule(path), model.get_submodule(other_path)
        if isinstance(owner, CodedTensor) and isinstance(other, CodedTensor):
            if all(same.get(f"{path}.{part}") == f"{other_path}.{part}" for part in owner._buffers):
                model.set_submodule(path, other)
        elif leaf in owner._parameters and other_leaf in other._parameters:
            owner._parameters[leaf] = other._parameters[other_leaf]
