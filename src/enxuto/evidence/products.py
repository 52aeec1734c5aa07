"""Which weight multiplies what: every product of a forward pass, as rows of the weight's matrix and the inputs they meet.

Weights are known by their storage under a dispatch mode, so that it does not matter who reads them: a layer, attention past its
projections, a recurrent layer at each step, or the model itself. The matrix of a weight is that of `layers.matrices`, [out, in].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode

from enxuto.batches import Batch
from enxuto.calls import evaluating, finite_answers
from enxuto.surgery import to_float

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Product:
    """Rows start...stop of a weight's matrix meet inputs: in `groups` equal parts, each its own.

    `inputs(rows)` gives those of the `count` inputs that `rows` [m] names, float32 [groups, m, in].
    """

    key: str
    start: int
    stop: int
    groups: int
    width: int
    count: int
    inputs: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Owner:
    """A weight that is watched, in the copy that runs."""

    key: str
    weight: Tensor
    transposed: bool

    @property
    def width(self) -> int:
        """How many inputs a row of its matrix meets, as far as products of matrices go."""
        return math.prod(self.weight.shape[1:])

    def holds(self, value: Tensor) -> bool:
        """True for a part of this weight, which need not have its storage for itself."""
        return 0 <= value.storage_offset() - self.weight.storage_offset() < self.weight.numel()


def watch(model: nn.Module, batches: Iterable[Batch], keys: Sequence[str], see: Callable[[Product], None]) -> dict[str, str]:
    """Shows `see` every product of every batch with one of these weights, and says how they are read otherwise, if they are.

    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    watched = Watch(model, keys, see)
    watched(batches)
    return watched.otherwise


class Watch:
    """A copy of a model as it is now, and who sees its products with these weights; `otherwise` says how else they are read."""

    def __init__(self, model: nn.Module, keys: Sequence[str], see: Callable[[Product], None]) -> None:
        self.plain = to_float(model)
        owners: dict[int, list[_Owner]] = {}
        for key in keys:
            path, _, name = key.rpartition(".")
            module = self.plain.get_submodule(path)
            owner = _Owner(key, module._parameters[name], isinstance(module, _ConvTransposeNd))  # type: ignore[arg-type]
            owners.setdefault(owner.weight.untyped_storage().data_ptr(), []).append(owner)
        self._products = _Products(owners, see)
        self.otherwise = self._products.otherwise

    def __call__(self, batches: Iterable[Batch]) -> None:
        """Runs the batches. Raises: TaskError when the model fails on one or gives values that are not finite."""
        with evaluating(self.plain), _steps_seen(self.plain), self._products:
            for _ in finite_answers(self.plain, batches):
                pass


@contextmanager
def _steps_seen(model: nn.Module) -> Iterator[None]:
    """Recurrent layers run step by step: oneDNN's own loop shows no product."""
    before = bool(torch.backends.mkldnn.enabled)
    hooks = []
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            hooks.append(module.register_forward_pre_hook(lambda *_: torch._C._set_mkldnn_enabled(False)))
            hooks.append(module.register_forward_hook(lambda *_: torch._C._set_mkldnn_enabled(before), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Products(TorchDispatchMode):
    """Sees each operator that takes a weight."""

    def __init__(self, owners: Mapping[int, Sequence[_Owner]], see: Callable[[Product], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners, self.see = owners, see
        self.otherwise: dict[str, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not func.is_view and func is not aten.detach.default:
            for place, value in enumerate(args):
                if isinstance(value, Tensor) and value.layout == torch.strided and value.ndim > 1:
                    for owner in self.owners.get(value.untyped_storage().data_ptr(), ()):
                        if owner.holds(value):
                            self._note(func, args, place, owner)
        return func(*args, **(kwargs or {}))

    def _note(self, func: Any, args: tuple[Any, ...], place: int, owner: _Owner) -> None:
        reader = READERS.get(func)
        product = reader(owner, args, place) if reader is not None else None
        if product is not None:
            self.see(product)
        elif func in LOOKUPS:
            self.otherwise.setdefault(owner.key, "its rows are looked up, and multiply nothing")
        else:
            self.otherwise[owner.key] = f"{func} reads it, which multiplies nothing with its rows"


def _matrix_product(owner: _Owner, args: tuple[Any, ...], place: int) -> Product | None:
    """Rows of W, turned, as the second factor (a layer's x @ W.T), or as they are as the first."""
    last = place == len(args) - 1
    rows = args[place].t() if last else args[place]
    inputs = args[-2] if last else args[-1].t() if args[-1].ndim == 2 else args[-1][None]
    step = owner.weight.stride(0)
    if place < len(args) - 2 or owner.transposed or rows.shape[1:] != (owner.width,) or not step:
        return None
    if rows.stride() != owner.weight.flatten(1).stride():
        return None
    start, beside = divmod(rows.storage_offset() - owner.weight.storage_offset(), step)
    if beside or start + len(rows) > len(owner.weight):
        return None
    return Product(owner.key, start, start + len(rows), 1, owner.width, len(inputs), lambda few: inputs[few].float()[None])


def _bilinear_product(owner: _Owner, args: tuple[Any, ...], place: int) -> Product | None:
    """y = x1 W x2 for each output: one row of W meets all products of an entry of x1 with one of x2."""
    if place != 1 or args[1].shape != owner.weight.shape:
        return None
    first, second = args[0], args[2]

    def inputs(chosen: Tensor) -> Tensor:
        return (first[chosen][:, :, None] * second[chosen][:, None, :]).flatten(1).float()[None]

    return Product(owner.key, 0, len(owner.weight), 1, owner.width, len(first), inputs)


def _convolution(owner: _Owner, args: tuple[Any, ...], place: int) -> Product | None:
    """Each output channel meets a patch of its group's channels; a transposed one those of an input with gaps."""
    given, kernel, _, stride, padding, dilation, transposed, more, groups = args
    if place != 1 or kernel.shape != owner.weight.shape or transposed != owner.transposed:
        return None
    sizes = kernel.shape[2:]
    if transposed:
        given = _with_gaps(given, stride)
        edges = [(d * (k - 1) - p, d * (k - 1) - p + m) for d, k, p, m in zip(dilation, sizes, padding, more, strict=True)]
        stride = [1] * len(sizes)
    else:
        edges = [(p, p) for p in padding]
    given = pad(given, [edge for pair in reversed(edges) for edge in pair])
    places = [
        (length - d * (k - 1) - 1) // s + 1 for length, d, k, s in zip(given.shape[2:], dilation, sizes, stride, strict=True)
    ]
    steps, inner = given.stride()[:2], given.stride()[2:]
    windows = given.as_strided(
        (len(given), *places, given.shape[1], *sizes),
        (
            steps[0],
            *(s * n for s, n in zip(stride, inner, strict=True)),
            steps[1],
            *(d * n for d, n in zip(dilation, inner, strict=True)),
        ),
        given.storage_offset(),
    )

    def inputs(chosen: Tensor) -> Tensor:
        patches = windows[torch.unravel_index(chosen, (len(given), *places))]
        if transposed:
            patches = patches.flip(tuple(range(2, patches.ndim)))
        return patches.reshape(len(chosen), groups, -1).transpose(0, 1).float()

    rows = kernel.shape[1] * groups if transposed else kernel.shape[0]
    width = kernel.numel() // rows
    return Product(owner.key, 0, rows, groups, width, len(given) * math.prod(places), inputs)


def _with_gaps(given: Tensor, stride: Sequence[int]) -> Tensor:
    """The input with stride - 1 zeros between its values."""
    if all(step == 1 for step in stride):
        return given
    lengths = [(length - 1) * step + 1 for length, step in zip(given.shape[2:], stride, strict=True)]
    wide = given.new_zeros(*given.shape[:2], *lengths)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = given
    return wide


READERS: dict[Any, Callable[[_Owner, tuple[Any, ...], int], Product | None]] = {
    aten.mm.default: _matrix_product,
    aten.addmm.default: _matrix_product,
    aten.mv.default: _matrix_product,
    aten.addmv.default: _matrix_product,
    aten._trilinear.default: _bilinear_product,
    aten.convolution.default: _convolution,
}
LOOKUPS = (
    aten.embedding.default,
    aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
)  # rows come out as they are
