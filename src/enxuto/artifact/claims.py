"""What a file says of a network is compared with the network and with the file's own tensors, before one of them is decoded.

A size has to follow from the tensors, and what no tensor tells (a stride, a padding) has to be the network's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from enxuto.checks import named, whole
from enxuto.errors import ArtifactError
from enxuto.layers.coded import plain_class, sources
from enxuto.layers.grids import CodedTensor
from enxuto.layers.kinds import SIZES, follows
from enxuto.layers.lowrank import THIN
from enxuto.layers.rules import FARTHEST, LARGEST

Shape = tuple[int, ...]
_KEYS = {"path": str, "kind": str, "args": dict, "sizes": dict, "tensors": list, "coded": dict, "dtypes": dict, "input": int}
_SHAPE = ("kernel_size", "stride", "padding", "dilation", "output_padding", "padding_mode")
_WALK = ("num_layers", "bidirectional", "batch_first", "nonlinearity", "mode", "include_last_offset")
_PARTS = ("groups", "num_groups", "num_heads", "head_dim")  # sizes that may be wrong and fit the tensors all the same
_MOST = 10  # times the bytes of a file that its tensors may take where the network itself is no larger


def check_form(edit: object) -> None:
    """Raises ArtifactError unless an edit says what this enxuto knows, each thing in its form."""
    if not isinstance(edit, dict) or "path" not in edit or ("kind" in edit) != ("args" in edit):
        raise ArtifactError(f"the file describes a layer as {str(edit)[:60]}, without a path or half its kind; it is damaged.")
    for key, value in edit.items():
        if key not in _KEYS or type(value) is not _KEYS[key] or (key == "input" and value != 8):
            raise ArtifactError(f"the file says {named(str(key), value)} of a layer, which is not known; upgrade enxuto.")


def check_memory(into: nn.Module, held: int, file_bytes: int) -> None:
    """Raises ArtifactError when the tensors take more bytes than the network they are for, and ten times the file."""
    own = sum(tensor.numel() * tensor.element_size() for tensor in [*into.parameters(), *into.buffers()])
    if held > own + _MOST * file_bytes:
        raise ArtifactError(
            f"its tensors take {held} bytes, the network {own} and the file {file_bytes}; "
            "load it into the network it was made from."
        )


def check_layers(path: str, arguments: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
    """Raises ArtifactError when a recurrent layer says that it has more layers than the file has tensors for it."""
    layers = arguments.get("num_layers", 0)
    if not whole(layers) or layers > sum(name.startswith(f"{path}.") for name in shapes):
        raise ArtifactError(f"the file says that '{path}' has {layers!r} layers, but does not hold them; it is damaged.")


def check_replacement(path: str, made: nn.Module, replaced: nn.Module) -> None:
    """Raises ArtifactError when a layer would walk over its input in another way than the one whose place it takes.

    Where the same tensors fit both, the network says which kind it is; and of one kind, what no tensor tells.
    """
    if own_shapes(made) and own_shapes(made) == own_shapes(replaced) and not isinstance(replaced, type(made)):
        raise ArtifactError(
            f"the file's '{path}' is {type(made).__name__} and this network's {type(replaced).__name__}; "
            "load it into the network it was made from."
        )
    part: nn.Module = made.wide if isinstance(made, THIN) else made
    alike = isinstance(replaced, type(part))
    for name in _SHAPE if isinstance(part, _ConvNd) else _WALK:
        if alike and name in vars(part) and vars(part)[name] != vars(replaced).get(name):
            raise ArtifactError(
                f"the file's '{path}' has {name}={vars(part)[name]!r} and this network's {vars(replaced).get(name)!r}; "
                "load it into the network it was made from."
            )
    if isinstance(part, _ConvNd) and not alike:
        reach = [length * far for length, far in zip(part.kernel_size, part.dilation, strict=True)]
        margins = part.padding if isinstance(part.padding, tuple) else ()
        if max(*reach, *margins, *part.stride) > FARTHEST:
            raise ArtifactError(f"the file's '{path}' ({part}) reaches over more than {FARTHEST} places; it is damaged.")


def own_shapes(module: nn.Module) -> dict[str, Shape]:
    """The shapes of the tensors that a layer keeps in a file, coded or not."""
    kept = {**module._parameters, **module._buffers}
    plain = {n: tuple(t.shape) for n, t in kept.items() if t is not None and n not in module._non_persistent_buffers_set}
    return plain | {name: tensor.shape for name, tensor in sources(module).items() if isinstance(tensor, CodedTensor)}


class Before:
    """A layer as it was, against which it is held after an edit."""

    def __init__(self, module: nn.Module) -> None:
        self.shapes = own_shapes(module)
        try:
            rule = follows(module)
        except ArtifactError:
            rule = None  # a subclass with numbers of its own
        self.ruled = rule is not None and all(self.shapes.get(name) == shape for name, shape in rule.items())

    def resize_(self, module: nn.Module, path: str, sizes: Mapping[str, Any]) -> None:
        """Sets a layer's own numbers. Raises: ArtifactError for what is no size, or one that only ever gets smaller."""
        for name, told in sizes.items():
            value = tuple(told) if isinstance(told, list) else told
            old = vars(module).get(name)
            several = isinstance(old, tuple)
            values: Sequence[object] = value if isinstance(value, tuple) else (value,)
            least = 1 if name != "proj_size" else 0
            fits = name in SIZES and isinstance(value, tuple) == several and all(whole(size, least, LARGEST) for size in values)
            if not fits or old is None or (several and len(old) != len(values)):
                raise ArtifactError(
                    f"the file sets {named(name, told)} of '{path}', which is no size of {type(module).__name__}."
                )
            free = self.ruled and self.shapes and name not in _PARTS
            if not free and any(new > was for new, was in zip(values, old if several else (old,), strict=True)):
                raise ArtifactError(f"the file sets {named(name, told)} of '{path}', which is {old!r}; cutting makes it smaller.")
            setattr(module, name, value)

    def check(self, module: nn.Module, path: str) -> None:
        """Raises ArtifactError when the layer's tensors are not those that its numbers ask for."""
        now = own_shapes(module)
        wanted = (follows(module) if self.ruled else None) or {}
        for name in {**wanted, **now}:
            shape, right = now.get(name), wanted.get(name)
            if name not in wanted and name in self.shapes and shape is not None:
                right = shape if _cut(shape, self.shapes[name]) else self.shapes[name]
            if (name in wanted or name in self.shapes) and shape != right:
                raise ArtifactError(
                    f"'{path}.{name}' is {_told(shape)} in the file and {_told(right)} in this network's "
                    f"{plain_class(type(module)).__name__}; load it into the network it was made from."
                )


def _told(shape: Shape | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _cut(shape: Shape, before: Shape) -> bool:
    """Whether a tensor may have this shape because something was cut out of it."""
    return len(shape) == len(before) and all(size <= was for size, was in zip(shape, before, strict=True))


def check_parts(model: nn.Module) -> None:
    """Raises ArtifactError for a thin layer whose parts do not go with what is said of it beside them."""
    for path, module in model.named_modules():
        if isinstance(module, THIN) and not module.fits:
            raise ArtifactError(f"the parts of the file's '{path}' do not make one {type(module).__name__}; the file is damaged.")


def check_dtypes(model: nn.Module, into: nn.Module) -> None:
    """Raises ArtifactError when weights and statistics of one dtype come back in several, which no layer could run."""
    found = _dtypes(model)
    if len(_dtypes(into)) <= 1 < len(found):
        told = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        raise ArtifactError(f"its weights are {told}, where the network has one dtype; the file is damaged.")


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    """The floating dtypes of all weights, coded or not, and of the statistics of norms."""
    found = {module.dtype for module in model.modules() if isinstance(module, CodedTensor)}
    kept = [
        *model.parameters(),
        *(t for module in model.modules() if isinstance(module, _NormBase) for t in module.buffers(recurse=False)),
    ]
    return found | {tensor.dtype for tensor in kept if tensor.is_floating_point()}


def check_grid(name: str, tensor: torch.Tensor) -> None:
    """Raises ArtifactError for scales or shared values that are not finite."""
    if not bool(torch.isfinite(tensor).all()):
        raise ArtifactError(f"'{name}' holds values that are not finite; the file is damaged.")
