"""A copy of a network that has nothing in common with it: also where hooks and attributes reach back into the original.

`copy.deepcopy` keeps functions as they are, so that a hook which closes over a network writes into that one for ever; and it
stops at a lock, a file, or a tensor on an autograd graph. Here they are rebound, shared, or named.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.errors import TaskError

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, types.BuiltinFunctionType)
_RUNNING = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
_CODE = (types.FunctionType, types.MethodType, types.ModuleType)
_OWN = ("_parameters", "_buffers", "_modules")


def copied(model: nn.Module, tensor: Callable[[Tensor], Tensor] | None = None, *, share: bool = False) -> nn.Module:
    """A deep copy; functions that hold parts of the model hold those of the copy. Tensors come without the graph of a
    training, or as `tensor` gives them; with `share`, parameters are new ones over the same values, which nobody may write
    into. What Python cannot copy and holds nothing (a lock, a file, a module) is shared.

    Raises: TaskError, with the attribute, for what can be neither copied nor shared.
    """
    reached = list(_reached([model]))
    memo = _tensors(reached, tensor)
    if share:
        memo |= {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in _own_parameters(reached)}
    try:
        return _copied(model, reached, dict(memo))
    except (TypeError, RuntimeError, AttributeError, NotImplementedError, copy.Error):
        memo |= {id(value): value for value in reached if _is_shared(value)}
    try:
        return _copied(model, reached, dict(memo))
    except (TypeError, RuntimeError, AttributeError, NotImplementedError, copy.Error) as error:
        place, value = _culprit(model, memo)
        raise TaskError(
            f"'{place}' of the model is {type(value).__name__}, which cannot be copied ({error}), and steps work on copies; "
            "make it in forward, or take it out of the model before compressing."
        ) from error


def separate_(made: nn.Module, model: nn.Module) -> nn.Module:
    """Gives a copy made with `share` values of its own wherever it still holds those of the model."""
    held = {p.untyped_storage().data_ptr() for p in _own_parameters(_reached([model]))}
    for parameter in _own_parameters(_reached([made])):
        if parameter.untyped_storage().data_ptr() in held:
            parameter.data = parameter.data.clone()
    return made


def _own_parameters(reached: Iterable[object]) -> Iterator[nn.Parameter]:
    """The parameters that can be shared: plain ones, as training makes them."""
    for value in reached:
        if type(value) is nn.Parameter and value.is_leaf and not value.is_inference():
            yield value


def strays(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Tensors in plain attributes that hang on an autograd graph, with their places: a cached activation, a weight that a
    hook computes before each call (the old weight_norm)."""
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and not value.is_leaf
    ]


def without_graphs_(model: nn.Module) -> nn.Module:
    """Cuts strays from the graph of the training that left them, so that the model can be copied and kept."""
    for module, name, value in strays(model):
        vars(module)[name] = value.detach()
    return model


def _tensors(reached: Iterable[object], tensor: Callable[[Tensor], Tensor] | None) -> dict[int, Any]:
    """Copies of the tensors that torch does not copy itself (on a graph, of inference mode), or of all by `tensor`."""
    memo: dict[int, Any] = {}
    for value in reached:
        if isinstance(value, Tensor) and (tensor is not None or not value.is_leaf or value.is_inference()):
            with torch.no_grad():
                made = value.detach().clone() if tensor is None else tensor(value)
                made = made.clone() if made.is_inference() else made
            if isinstance(value, nn.Parameter):
                memo[id(value)] = nn.Parameter(made, value.requires_grad)
            else:
                memo[id(value)] = made.requires_grad_(value.requires_grad and value.is_leaf)
    return memo


def _copied(model: nn.Module, reached: Sequence[object], memo: dict[int, Any]) -> nn.Module:
    owned = _owned(model)
    bound = [value for value in reached if isinstance(value, types.FunctionType) and _reaches(value, owned)]
    cells: dict[int, tuple[types.CellType, types.CellType]] = {}
    twins = _Twins(reached)
    for function in bound:
        for cell in function.__closure__ or ():
            cells.setdefault(id(cell), (cell, types.CellType()))
        twins.put(function, _twin(function, tuple(cells[id(cell)][1] for cell in function.__closure__ or ())))

    def whole(value: Any) -> Any:
        made = copy.deepcopy(value, memo)
        return twins.within(made) if bound else made

    made: nn.Module = whole(model)
    for old, new in cells.values():
        if _is_filled(old):
            new.cell_contents = whole(old.cell_contents) if _reaches(old.cell_contents, owned) else old.cell_contents
    for function in bound:
        twin = twins.within(function)
        twin.__defaults__, twin.__kwdefaults__ = whole((function.__defaults__, function.__kwdefaults__))
    return made


class _Twins:
    """Functions and what takes their place in a copy: deepcopy leaves functions as they are, since Python 3.14 whatever its memo
    says. What belongs to the original is not edited."""

    def __init__(self, originals: Iterable[object]) -> None:
        self.known: dict[int, tuple[object, Any]] = {}  # the old one is held, so its id stays its own
        for value in originals:
            if not isinstance(value, (tuple, frozenset)):  # deepcopy returns such as they are, where they hold functions alone
                self.put(value, value)

    def put(self, old: object, new: object) -> None:
        self.known[id(old)] = (old, new)

    def within(self, value: Any) -> Any:
        """The value with the twins in it; edited where that is possible, else made anew."""
        if isinstance(value, _ATOMS):
            return value
        if id(value) not in self.known:
            self.put(value, value)  # it may hold itself
            self.put(value, self._edited(value))
        return self.known[id(value)][1]

    def _edited(self, value: Any) -> Any:
        if isinstance(value, (tuple, frozenset)):
            items = [self.within(item) for item in value]
            same = all(new is old for new, old in zip(items, value, strict=True))
            return value if same else value._make(items) if hasattr(value, "_make") else type(value)(items)
        if isinstance(value, set):
            items = [self.within(item) for item in value]
            value.clear()
            value.update(items)
        elif isinstance(value, (list, deque)):
            for place, item in enumerate(value):
                value[place] = self.within(item)
        elif isinstance(value, functools.partial):
            state = (value.func, value.args, value.keywords)
            value.__setstate__((*map(self.within, state), vars(value)))  # type: ignore[attr-defined]
        elif isinstance(value, types.MethodType):
            self.within(value.__self__)
        elif isinstance(value, dict) or _has_attributes(value):
            held = value if isinstance(value, dict) else vars(value)
            for name, item in list(held.items()):
                if (new := self.within(item)) is not item:
                    held[name] = new
        return value


def _twin(function: types.FunctionType, closure: tuple[types.CellType, ...]) -> types.FunctionType:
    """The same code over other cells, which are filled when the model they hold has been copied."""
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure or None)
    twin.__dict__.update(function.__dict__)
    twin.__qualname__, twin.__module__, twin.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return twin


def _owned(model: nn.Module) -> set[int]:
    """What belongs to a model and is another in its copy: its modules, tensors, and whatever mutable its attributes hold."""
    found = {id(module) for module in model.modules()}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, (dict, list, set, deque, Tensor)) or _has_attributes(value):
                found.add(id(value))
        found |= {id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None}
    return found


def _reaches(value: object, owned: set[int]) -> bool:
    return any(id(part) in owned for part in _reached([value]))


def _reached(start: Iterable[object]) -> Iterator[object]:
    """The objects and everything they hold, each once."""
    seen: set[int] = set()
    stack = list(start)
    while stack:
        value = stack.pop()
        if isinstance(value, _ATOMS) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        stack.extend(_parts(value))


def _parts(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value)
    if isinstance(value, types.FunctionType):
        filled = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [*filled, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    return list(vars(value).values()) if _has_attributes(value) else []


def _has_attributes(value: object) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, (*_ATOMS, Tensor, *_CODE))


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that has no value yet
        return False


def _is_shared(value: object) -> bool:
    """True for what says itself that it cannot be copied, and is no run of a function, which two could not go on with."""
    if isinstance(value, (nn.Module, Tensor, *_RUNNING)) or hasattr(value, "__deepcopy__"):
        return False
    try:
        value.__reduce_ex__(4)
    except TypeError:
        return not isinstance(value, (types.FunctionType, types.MethodType))
    return False


def _culprit(model: nn.Module, memo: dict[int, Any]) -> tuple[str, object]:
    """The attribute that cannot be copied: its full name and its value."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _OWN:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except (TypeError, RuntimeError, AttributeError, NotImplementedError, copy.Error):
                return (f"{path}.{name}" if path else name), value
    return "", model
