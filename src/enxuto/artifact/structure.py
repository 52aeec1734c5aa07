"""What a model is, as plain data: for every layer that differs from a fresh model, its path, kind and sizes.

`edits` writes the differences down, `apply` makes them on a fresh model. Nothing here knows how they came about, so no
technique has load code, and no class is ever imported by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from enxuto.artifact.claims import Before, check_form, check_layers, check_replacement
from enxuto.copies import copied
from enxuto.errors import ArtifactError, LayerError
from enxuto.layers.activations import ActivationGrid
from enxuto.layers.affine import AffineTensor
from enxuto.layers.coded import code_, coded_names, plain_class
from enxuto.layers.computed import without_computed_
from enxuto.layers.grids import CodedTensor
from enxuto.layers.kinds import SIZES, build, describe
from enxuto.layers.table import TableTensor
from enxuto.surgery import borrowed, replace_

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
GRIDS: dict[str, type[CodedTensor]] = {kind.kind: kind for kind in (AffineTensor, TableTensor)}

Edit = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def edits(model: nn.Module, original: nn.Module | None) -> list[Edit]:
    """The differences between a model and the network it was made from; without one, every known layer is described.

    Raises: ArtifactError for a layer that cannot be described.
    """
    reference = skeleton(original) if original is not None else None
    found = []
    for path, module in model.named_modules():
        if _inside_coded(model, path):
            continue
        edit: Edit = {}
        before = _at(reference, path)
        kind = plain_class(type(module))
        if before is None or not _same_kind(before, kind):
            edit |= _named(path, module, required=original is not None)
            if edit and reference is not None and path:
                before = build(edit["kind"], edit["args"])
                reference.set_submodule(path, before)
        if before is not None:
            edit |= _resized(module, before)
        if coded_names(module):
            edit["coded"] = {name: _grid(module.coded[name], path) for name in coded_names(module)}
            dtypes = {n: str(t.dtype).removeprefix("torch.") for n, t in module.coded.items() if t.dtype != torch.float32}
            if dtypes:
                edit["dtypes"] = dtypes
        if "input_grid" in module._modules and isinstance(module.input_grid, ActivationGrid):
            edit["input"] = 8
        if edit:
            found.append({"path": path, **edit})
    return found


def told(found: Sequence[Edit]) -> dict[str, Any]:
    """The edits as a file tells them: the commonest grid is told once, and no layer that has nothing else to say."""
    grids = Counter(tuple(grid) for edit in found for grid in edit.get("coded", {}).values())
    if not grids:
        return {"edits": [*found]}
    common = list(grids.most_common(1)[0][0])
    short = []
    for edit in found:
        coded = {name: grid for name, grid in edit.get("coded", {}).items() if grid != common}
        short.append({key: value for key, value in edit.items() if key != "coded"} | ({"coded": coded} if coded else {}))
    return {"edits": [edit for edit in short if edit.keys() != {"path"}], "grid": common}


def untold(meta: Mapping[str, Any], codes: Sequence[str]) -> list[Edit]:
    """The edits that `told` was given, parents first, then those of layers, and of further names of layers, of which the codes
    alone tell; `codes` are the names of the codes of all coded weights.

    Raises: ArtifactError when the meta is not as `told` gives it.
    """
    try:
        found = [{**edit, "coded": {**edit.get("coded", {})}} for edit in meta["edits"]]
        found.sort(key=lambda edit: edit["path"].count(".") + bool(edit["path"]))
        by_path = {edit["path"]: edit for edit in found}
        for name in codes:
            *parts, _, weight, _ = name.split(".")
            path = ".".join(parts)
            if path not in by_path:
                by_path[path] = {"path": path, "coded": {}}
                found.append(by_path[path])
            if weight not in by_path[path]["coded"]:
                by_path[path]["coded"][weight] = meta["grid"]
        return found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"it does not say how its layers are coded ({error!r}); it is damaged.") from error


def apply(model: nn.Module, found: Sequence[Edit], shapes: Shapes) -> nn.Module:
    """A copy of a fresh model with the edits made; tensors of edited layers are on the meta device, to be assigned.

    Raises: ArtifactError when the model is not the network the edits were made for.
    """
    model = borrowed(model)  # each of its tensors is replaced by one of the file
    seen: set[str] = set()
    done: set[tuple[nn.Module, str]] = set()  # a layer of two names is met twice, and told of once, first
    places = {name: place for place, name in enumerate(shapes)}
    for edit in found:
        try:
            check_form(edit)
            if edit["path"] in seen:
                raise ArtifactError(f"the file describes the layer '{edit['path']}' twice; it is damaged.")
            seen.add(edit["path"])
            _apply_one(model, edit, shapes, places, done)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(
                f"the file says {edit!r}, which this network cannot follow ({error}); load it into the network it was made from."
            ) from error
    return model


def _apply_one(model: nn.Module, edit: Edit, shapes: Shapes, places: Mapping[str, int], done: set[tuple[nn.Module, str]]) -> None:
    path = edit["path"]
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if module is None:
        raise ArtifactError(
            f"the file holds a layer '{path}' that this network lacks; load it into the network it was made from."
        )
    if "kind" in edit:
        check_layers(path, edit["args"], shapes)
        made = build(edit["kind"], edit["args"])
        if not path:
            raise ArtifactError("the file replaces the whole network; load it into a module that holds it as a part.")
        check_replacement(path, made, module)
        replace_(model, path, made)
        module = made
    before = Before(module)
    before.resize_(module, path, edit.get("sizes", {}))
    if "tensors" in edit:
        _retensor_(module, path, edit["tensors"], shapes)
    coded = {name: f"{path}.coded.{name}.codes" if path else f"coded.{name}.codes" for name in edit.get("coded", {})}
    for name in sorted(coded, key=lambda name: places[coded[name]]):  # JSON has sorted them; the tensors are as they were
        if (module, name) in done:
            continue
        done.add((module, name))
        if name not in module._parameters and name not in coded_names(module):
            raise ArtifactError(f"the file codes '{path}.{name}', which {type(module).__name__} does not have.")
        kind, *arguments = edit["coded"][name]
        shape = shapes[coded[name]]
        code_(module, name, _tensor(kind, arguments, shape, edit.get("dtypes", {}).get(name, "float32")))
    if "input" in edit:
        if not coded:
            raise ArtifactError(f"the file gives '{path}' a grid for its input, but no coded weight; it is damaged.")
        module.input_grid = ActivationGrid()
    before.check(module, path)


def _retensor_(module: nn.Module, path: str, names: Sequence[str], shapes: Shapes) -> None:
    """Gives a layer exactly these plain tensors, in the file's shapes."""
    if not all(name in module._parameters or name in module._buffers for name in names):
        raise ArtifactError(f"the file gives '{path}' the tensors {names}, which {type(module).__name__} does not have.")
    for name in list(module._parameters):
        if name not in names:
            module._parameters[name] = None
    for name in names:
        shape = shapes[f"{path}.{name}" if path else name]
        if name in module._buffers and module._buffers[name] is not None:
            old = module._buffers[name]
            module._buffers[name] = torch.empty(shape, dtype=old.dtype, device="meta")  # type: ignore[union-attr]
        else:
            module._parameters[name] = nn.Parameter(torch.empty(shape, device="meta"))


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device: its structure without its memory."""
    return without_computed_(copied(model, lambda tensor: torch.empty_like(tensor, device="meta")))


def _at(reference: nn.Module | None, path: str) -> nn.Module | None:
    try:
        return reference.get_submodule(path) if reference is not None else None
    except AttributeError:
        return None


def _same_kind(before: nn.Module, kind: type[nn.Module]) -> bool:
    """True for one class; each GraphModule has a class of its own, made from its graph, which no step changes."""
    return plain_class(type(before)) is kind or (isinstance(before, GraphModule) and issubclass(kind, GraphModule))


def _inside_coded(model: nn.Module, path: str) -> bool:
    """True for what a coded layer holds: its dict of tensors, the tensors, the input grid."""
    parts = path.split(".")
    modules = [model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts) + 1)]
    return any(isinstance(module, (CodedTensor, ActivationGrid)) for module in modules) or (
        bool(path) and parts[-1] == "coded" and bool(coded_names(model.get_submodule(".".join(parts[:-1]))))
    )


def _named(path: str, module: nn.Module, *, required: bool) -> Edit:
    try:
        return {"kind": plain_class(type(module)).__name__, "args": describe(module)}
    except LayerError as error:
        if not required:
            return {}  # a container: `into` brings it
        raise ArtifactError(f"'{path}' is new and cannot be kept: {error}") from error


def _resized(module: nn.Module, before: nn.Module) -> Edit:
    edit: Edit = {}
    sizes = {
        name: getattr(module, name)
        for name in SIZES
        if name in module.__dict__ and name in before.__dict__ and getattr(module, name) != getattr(before, name)
    }
    if sizes:
        edit["sizes"] = sizes
    now, then = _plain_shapes(module), _plain_shapes(before)
    gone = set(then) - set(now) - set(coded_names(module))
    if gone or any(then.get(name) != shape for name, shape in now.items()):
        edit["tensors"] = list(now)
    return edit


def _plain_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    kept = {**module._parameters, **module._buffers}
    names = [n for n, tensor in kept.items() if tensor is not None and n not in module._non_persistent_buffers_set]
    return {name: tuple(kept[name].shape) for name in names}  # type: ignore[union-attr]


def _grid(tensor: nn.Module, path: str) -> list[Any]:
    if isinstance(tensor, CodedTensor):
        return tensor.told()
    raise ArtifactError(f"'{path}' is still in training ({type(tensor).__name__}); call enxuto.convert before saving.")


def _tensor(kind: str, arguments: Sequence[Any], shape: tuple[int, ...], dtype: str) -> CodedTensor:
    if dtype not in DTYPES:
        raise ArtifactError(f"the file names a dtype {dtype!r} of a weight that is not known; use one of {', '.join(DTYPES)}.")
    if kind not in GRIDS:
        raise ArtifactError(f"the file names a grid {kind!r} that is not known; use one of {', '.join(map(repr, GRIDS))}.")
    with torch.device("meta"):
        return GRIDS[kind].untold(arguments, shape, DTYPES[dtype])
