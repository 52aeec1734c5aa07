"""Follows every storage while a model runs: when it came, when it went, whose it is.

A dispatch mode sees each operator's outputs; the storages themselves say when they are gone. Nothing is kept alive, and
tensors without real storage are followed just as well, which is what makes a prediction.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from enxuto.memory.profile import (
    ACTIVATIONS,
    BACKWARD,
    CATEGORIES,
    FORWARD,
    GRADIENTS,
    OPTIMIZER,
    TEMPORARIES,
    UPDATE,
    WEIGHTS,
    Block,
    Moment,
)
from enxuto.sizes import rounded_up

Workspace = Callable[[Any, tuple[Any, ...], Any], int]
"""Bytes that an operator needs beside its inputs and outputs while it runs, from the operator, arguments and outputs."""

GRANULE = {"cuda": 512}
"""Bytes to which a device's allocator rounds up, where it does (CUDACachingAllocator.cpp, kMinBlockSize)."""
PRODUCTS_PER_BYTE = 8
"""Floating point operations that an ordinary core does while it moves a byte from or to memory."""
STARTING = 100_000
"""Bytes that could be moved while an operator is only called: ten microseconds of an ordinary core."""
aten = torch.ops.aten


def plain_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors in plain attributes and in lists and dicts there, neither parameters nor buffers, with their layers' paths."""
    return [
        (path, leaf)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules")
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor)
    ]


class _Life:
    """A storage that is being followed; its category is known at the latest when it is gone."""

    __slots__ = ("born", "category", "computed", "died", "path", "reference", "size_bytes")

    def __init__(self, size_bytes: int, born: int, path: str, computed: bool) -> None:
        self.size_bytes, self.born, self.died = size_bytes, born, -1
        self.path, self.category = path, ""
        self.computed = computed  # by a layer, in the forward pass or once more in the backward pass
        self.reference: Any = None


class Tracker(TorchDispatchMode):
    """Follows the storages of a model, its optimizers and whatever they compute, from `with tracker:` on.

    `workspace` tells what operators need inside themselves, `complete_` sizes outputs that have none yet. `on_moment` is called
    after each operator. With `weigh`, moments say how much work they are.
    """

    def __init__(
        self,
        model: nn.Module,
        *optimizers: torch.optim.Optimizer,
        workspace: Workspace | None = None,
        complete_: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
        on_moment: Callable[[], None] | None = None,
        weigh: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.optimizers = model, optimizers
        self.workspace, self.complete_, self.on_moment, self.weigh = workspace, complete_, on_moment, weigh
        self.moments: list[Moment] = []
        self.lives: list[_Life] = []
        self.now_bytes = 0
        self._alive: dict[int, _Life] = {}
        self._layers: list[str] = []  # paths of the layers that run now, the innermost last
        self._updating = False
        self._backward: list[int] = []  # the moments at which a backward pass began
        self._made_by: dict[int, str] = {}  # number of an autograd node -> path of the layer in whose forward pass it was made
        self._hooks: list[Any] = []
        self._product: Tensor | None = None  # what the last operator gave, if it was the product of a Linear
        self.undone: dict[int, int] = {}  # bytes of copies at moments where they are only there because somebody watches

    # what runs

    def __enter__(self) -> Tracker:
        self._follow_layers()
        self._follow_optimizers()
        for path, tensor in plain_tensors(self.model):
            self.follow(tensor, WEIGHTS, path)
        for path, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            self.follow(tensor, WEIGHTS, path.rpartition(".")[0])
            if isinstance(tensor.grad, Tensor):
                self.follow(tensor.grad, GRADIENTS, path.rpartition(".")[0])
        self._follow_states()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for life in self._alive.values():
            life.reference = None
            life.died = len(self.moments)
        self._alive.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if func.namespace in ("prim", "profiler"):
            return outputs
        if self.complete_ is not None:
            self.complete_(func, args, outputs)
        phase, path = self._where()
        at = len(self.moments)
        self._undo_copy(func, args, at)
        work = self._work(func, args, kwargs or {}, outputs) if self.weigh else 0.0
        self.moments.append(Moment(phase, path, str(func), work))
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._add(output, at, path)
        if self.workspace is not None and (needed := self.workspace(func, args, outputs)):
            self.brief(at, needed, path)
        if self.on_moment is not None:
            self.on_moment()
        self._product = outputs if func is aten._unsafe_view.default else None
        return outputs

    def _undo_copy(self, func: Any, args: tuple[Any, ...], at: int) -> None:
        """A Linear of three dimensions adds its bias in place, except while a mode sees it (ATen's `linear`): that is no copy."""
        if func is aten.add.Tensor and self._product is not None and args[0] is self._product and args[1].ndim == 1:
            self.undone[at] = self._alive[self._product.untyped_storage()._cdata].size_bytes
            self._gone(self._product.untyped_storage()._cdata)

    @staticmethod
    def _work(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> float:
        moved = sum(
            tensor.numel() * tensor.element_size() for tensor in tree_leaves((args, outputs)) if isinstance(tensor, Tensor)
        )
        count = flop_registry.get(func.overloadpacket)
        return STARTING + moved + (count(*args, **kwargs, out_val=outputs) / PRODUCTS_PER_BYTE if count is not None else 0.0)

    def follow(self, tensor: Tensor, category: str, path: str = "") -> None:
        """Says whose a tensor is; one that was not seen before is there from now on."""
        for life in self._add(tensor, len(self.moments), path):
            life.category, life.path = category, path

    def add(self, tensor: Tensor) -> None:
        """Follows a tensor that came from elsewhere; whose it is stays open."""
        self._add(tensor, len(self.moments), "")

    def brief(self, at: int, size_bytes: int, path: str) -> None:
        """Notes memory that was there for one moment, inside an operator."""
        life = _Life(size_bytes, at, path, computed=False)
        life.category, life.died = TEMPORARIES, at + 1
        self.lives.append(life)

    def update(self, size_bytes: int) -> None:
        """Notes an update that is not followed itself, with what it needs inside."""
        self.moments.append(Moment(UPDATE, "", "compiled update"))
        self.brief(len(self.moments) - 1, size_bytes, "")

    def blocks(self) -> tuple[Block, ...]:
        """What was followed until now; what is still alive lives up to here."""
        end = len(self.moments)
        closed = ((life, life.died if life.died >= 0 else end) for life in self.lives)
        return tuple(
            Block(life.size_bytes, life.born, died, self._category(life), life.path) for life, died in closed if died > life.born
        )

    def cut(self) -> tuple[tuple[Block, ...], tuple[Moment, ...]]:
        """What was followed until now; from here on only what is alive is known, and the next moment is number 0.

        So a run of any length is followed in the memory of one step. What nobody has named by now is left over from before.
        """
        passed = self.blocks(), tuple(self.moments)
        self.lives = list(self._alive.values())
        for life in self.lives:
            life.born, life.computed = 0, False
        self.moments, self._backward = [], []
        self._made_by.clear()
        return passed

    @property
    def leaves_something(self) -> bool:
        """True if something that was made meanwhile is still there, and nobody has said whose it is."""
        return any(not life.category for life in list(self._alive.values()))

    def name_outside(self, category: str) -> None:
        """Says whose all is that was made outside of the layers until now, and that nobody has named."""
        for life in list(self._alive.values()):
            if not life.category and not life.path:
                life.category = category

    def now(self) -> dict[str, int]:
        """Bytes of each category at this moment; until a backward pass begins, all that layers computed are activations."""
        parts = dict.fromkeys(CATEGORIES, 0)
        for life in list(self._alive.values()):
            parts[self._category(life)] += life.size_bytes
        return parts

    def _category(self, life: _Life) -> str:
        """Whose a storage is: as somebody said, or by its life (see CATEGORIES)."""
        if life.category:
            return life.category
        if not life.computed:
            return TEMPORARIES
        begun = bisect_left(self._backward, life.born)
        passed = begun < len(self._backward) and 0 <= life.died <= self._backward[begun]
        return TEMPORARIES if passed else ACTIVATIONS

    # storages

    def _add(self, tensor: Tensor, at: int, path: str) -> list[_Life]:
        """Follows the storage of a tensor, or those of the tensors that a sparse one or one of another class is made of."""
        if tensor.layout == torch.sparse_coo:
            return [life for part in (tensor._indices(), tensor._values()) for life in self._add(part, at, path)]
        if tensor.layout != torch.strided:
            return []
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            return [life for name in names for life in self._add(getattr(tensor, name), at, path)]
        return [self._add_plain(tensor, at, path)]

    def _add_plain(self, tensor: Tensor, at: int, path: str) -> _Life:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return self._alive[key]
        granule = GRANULE.get(tensor.device.type, 1)
        computed = bool(self._layers) or not (self._updating or self._in_backward())
        life = _Life(rounded_up(storage.nbytes(), granule), at, path, computed)
        life.reference = weakref.ref(storage, lambda _: self._gone(key))
        self._alive[key] = life
        self.lives.append(life)
        self.now_bytes += life.size_bytes
        return life

    def _gone(self, key: int) -> None:
        life = self._alive.pop(key, None)
        if life is not None:
            life.died = len(self.moments)
            self.now_bytes -= life.size_bytes

    # where it happens

    @staticmethod
    def _in_backward() -> bool:
        return torch._C._current_graph_task_id() != -1

    def _where(self) -> tuple[str, str]:
        """The phase and the layer that run now."""
        path = self._layers[-1] if self._layers else ""
        backward = self._in_backward()
        if self._updating and not self._layers and not backward:  # not a closure, in which an optimizer runs the model
            return UPDATE, ""
        if not backward or self._layers:  # a layer runs, for the first time or, in a checkpoint, once more
            self._made_by.setdefault(torch._C._autograd._get_sequence_nr() - 1, path)  # its own operators come first
        if not backward:
            return FORWARD, path
        if not self.moments or self.moments[-1].phase != BACKWARD:
            self._backward.append(len(self.moments))
        node = torch._C._current_autograd_node()
        if not self._layers and node is not None:
            path = self._made_by.get(node._sequence_nr(), "")
        return BACKWARD, path

    def _follow_layers(self) -> None:
        for path, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            self._hooks.append(module.register_forward_pre_hook(self._entering(path)))
            self._hooks.append(module.register_forward_hook(self._leaving, always_call=True))
        for path, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter.is_leaf:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._gradient(path.rpartition(".")[0])))

    def _entering(self, path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: self._layers.append(path)

    def _leaving(self, module: nn.Module, args: Any, outputs: Any) -> None:
        if self._layers:
            self._layers.pop()

    def _gradient(self, path: str) -> Callable[[Tensor], None]:
        def gradient(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.follow(parameter.grad, GRADIENTS, path)

        return gradient

    def _follow_optimizers(self) -> None:
        def before(*_: Any) -> None:
            self._updating = True

        def after(*_: Any) -> None:
            self._updating = False
            self._follow_states()

        for optimizer in self.optimizers:
            self._hooks += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def _follow_states(self) -> None:
        if not any(optimizer.state for optimizer in self.optimizers):
            return
        paths: dict[Tensor, str] = {parameter: path.rpartition(".")[0] for path, parameter in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for value in tree_leaves(state):
                    if isinstance(value, Tensor):
                        self.follow(value, OPTIMIZER, paths.get(parameter, ""))
