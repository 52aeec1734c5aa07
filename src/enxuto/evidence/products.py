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
from torch.utils._python_dispatch import TorchDispatchMode

from enxuto.layers.coded import weight_names
from enxuto.surgery import to_float
from enxuto.task import Batch, evaluating, finite_answers

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


def watch(model: nn.Module, batches: Iterable[Batch], see: Callable[[Product], None]) -> dict[str, str]:
    """Shows `see` every product of every batch, and says how weights are read otherwise, if they are.

    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    plain = to_float(model)
    owners = {
        module._parameters[name].untyped_storage().data_ptr(): (f"{path}.{name}" if path else name, module._parameters[name])
        for path, module in reversed(list(plain.named_modules()))
        for name in weight_names(module)
    }
    mode = _Products(owners, see)
    with evaluating(plain), _steps_seen(plain), mode:
        for _ in finite_answers(plain, batches):
            pass
    return mode.otherwise


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

    def __init__(self, owners: Mapping[int, tuple[str, Tensor]], see: Callable[[Product], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners, self.see = owners, see
        self.otherwise: dict[str, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if not func.is_view and func is not aten.detach.default:
            for place, value in enumerate(args):
                owner = self.owners.get(value.untyped_storage().data_ptr()) if isinstance(value, Tensor) else None
                if owner is not None and value.ndim > 1:
                    self._note(func, args, place, *owner)
        return func(*args, **named)

    def _note(self, func: Any, args: tuple[Any, ...], place: int, key: str, weight: Tensor) -> None:
        reader = READERS.get(func)
        product = reader(key, weight, args, place) if reader is not None else None
        if product is not None:
            self.see(product)
        elif func in LOOKUPS:
            self.otherwise.setdefault(key, "its rows are looked up, and multiply nothing")
        else:
            self.otherwise[key] = f"{func} reads it, which multiplies nothing with its rows"


def _matrix_product(key: str, weight: Tensor, args: tuple[Any, ...], place: int) -> Product | None:
    """Rows of W, turned, as the second factor (a layer's x @ W.T), or as they are as the first."""
    last = place == len(args) - 1
    rows = args[place].t() if last else args[place]
    inputs = args[-2] if last else args[-1].t() if args[-1].ndim == 2 else args[-1][None]
    width = weight[0].numel()
    if place < len(args) - 2 or rows.shape[1:] != (width,) or rows.stride() != (width, 1) or rows.storage_offset() % width:
        return None
    start = rows.storage_offset() // width
    return Product(key, start, start + len(rows), 1, width, len(inputs), lambda chosen: inputs[chosen].float()[None])


def _bilinear_product(key: str, weight: Tensor, args: tuple[Any, ...], place: int) -> Product | None:
    """y = x1 W x2 for each output: one row of W meets all products of an entry of x1 with one of x2."""
    if place != 1 or args[1].shape != weight.shape:
        return None
    first, second = args[0], args[2]

    def inputs(chosen: Tensor) -> Tensor:
        return (first[chosen][:, :, None] * second[chosen][:, None, :]).flatten(1).float()[None]

    return Product(key, 0, len(weight), 1, weight[0].numel(), len(first), inputs)


def _convolution(key: str, weight: Tensor, args: tuple[Any, ...], place: int) -> Product | None:
    """Each output channel meets a patch of its group's channels; a transposed one those of an input with gaps."""
    given, kernel, _, stride, padding, dilation, transposed, more, groups = args
    if place != 1 or kernel.shape != weight.shape:
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
    return Product(key, 0, rows, groups, width, len(given) * math.prod(places), inputs)


def _with_gaps(given: Tensor, stride: Sequence[int]) -> Tensor:
    """The input with stride - 1 zeros between its values."""
    if all(step == 1 for step in stride):
        return given
    lengths = [(length - 1) * step + 1 for length, step in zip(given.shape[2:], stride, strict=True)]
    wide = given.new_zeros(*given.shape[:2], *lengths)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = given
    return wide


READERS: dict[Any, Callable[[str, Tensor, tuple[Any, ...], int], Product | None]] = {
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
