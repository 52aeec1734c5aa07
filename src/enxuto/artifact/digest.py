"""A name for what a task holds: the same in every process, another when data, a function, the code of the model or a version is.

Functions count by their bytecode with what they close over and call; objects by their class and attributes; data sets by
their attributes and samples of their items. What only says where one is (generators, iterators, locks, files) does not count.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import os
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler

from enxuto.batches import count
from enxuto.task import Task

_log = logging.getLogger(__name__)
MOST_BYTES = 2**28  # of a tensor that are read whole; of a larger one as many, in evenly spread blocks
BLOCKS = 4096
MOST_ITEMS = 2**16  # of a list
SAMPLED = 64  # items of a data set
OWN = Path(__file__).parents[1]
STDLIB = Path(functools.__file__).parent
# what modules keep for themselves, and what says nothing of a class
HOOKS = {"_forward_hooks", "_forward_pre_hooks"}
BOOKKEEPING = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
UNSAID = {"__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__"} | {
    "__abstractmethods__", "__parameters__", "__orig_bases__", "__annotate_func__", "__annotations_cache__", "_abc_impl"
}  # fmt: skip
PLACES = (Iterator, logging.Logger, np.random.Generator, np.random.RandomState, random.Random, torch.Generator, types.FrameType)


def task_digest(task: Task) -> str:
    """The name of a task: 64 hexadecimal digits. Its title and its test do not count."""
    digest = _Digest()
    digest.add(_versions(), task.model, task.seed, task.memory, task.outputs, task.loss, task.evaluate)
    for source in (task.calibration, task.train):
        digest.data(source)
    return digest.hexdigest()


@functools.cache
def _versions() -> str:
    """Torch's version and enxuto's own sources."""
    sha = hashlib.sha256(torch.__version__.encode())
    for path in sorted(OWN.rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


class _Digest:
    """A hash that takes any value; one that was seen before is told by its number, so circles end.

    One that fails when it is looked at makes a name that never comes again: nothing is reused for it.
    """

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # so that no two values have one id
        self.todo: deque[Any] = deque()

    def say(self, *words: object) -> None:
        self.sha.update(repr(words).encode())

    def add(self, *values: Any) -> None:
        self.say(len(values))
        self.todo.extend(values)

    def hexdigest(self) -> str:
        """The name of all that was added; no depth of nesting is too much."""
        while self.todo:
            value = self.todo.popleft()
            try:
                self._add(value)
            except Exception as error:  # an object of a user's may fail in any way
                _log.warning("checkpoints are not used again: %s cannot be told apart (%s)", type(value).__name__, error)
                self.say(os.urandom(16))
        return self.sha.hexdigest()

    def _add(self, value: Any) -> None:
        if value is None or value is Ellipsis or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
            self.say(type(value).__name__, value if type(value).__module__ == "builtins" else str(value))
            return
        if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format, Path, range, slice)):
            self.say(type(value).__name__, str(value))
            return
        if id(value) in self.seen:
            self.say("again", self.seen[id(value)])
            return
        self.seen[id(value)] = len(self.seen)
        self.alive.append(value)
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            self._tensor(torch.from_numpy(np.ascontiguousarray(value)))
        elif isinstance(value, Mapping):
            self.say(_name(type(value)), len(value))
            self.add(*(part for pair in value.items() for part in pair))
        elif isinstance(value, Set):
            self.say("set", sorted(digest_of(item) for item in value))  # their order is another in each process
        elif isinstance(value, (tuple, list)):
            self.say(_name(type(value)), len(value))
            self.add(*_spread(value, MOST_ITEMS))
        elif isinstance(value, (type, types.ModuleType)):
            self._named(value)
        else:
            self._code(value)

    def _tensor(self, tensor: Tensor) -> None:
        self.say("tensor", str(tensor.dtype), tuple(tensor.shape), tensor.requires_grad)
        if tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.is_quantized or not tensor.numel():
            return
        flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
        most = MOST_BYTES // flat.element_size()
        step = max(1, len(flat) // BLOCKS)
        size = min(step, -(-most // BLOCKS))
        for start in [0] if len(flat) <= most else range(0, len(flat), step):
            block = flat[start : start + size] if len(flat) > most else flat
            self.sha.update(block.contiguous().cpu().view(torch.uint8).numpy().data)

    def _code(self, value: Any) -> None:
        """Functions and what wraps them; any other object."""
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self.say("code", value.co_code, value.co_names, value.co_freevars, value.co_flags)
            self.add(value.co_consts)
        elif isinstance(value, types.MethodType):
            self.add("method", value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            self.add("partial", value.func, value.args, value.keywords)
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(type(value).__name__, value.__func__)
        elif isinstance(value, property):
            self.add("property", value.fget, value.fset)
        elif isinstance(value, types.CellType):
            self.add("cell", *_content(value))
        elif isinstance(value, enum.Enum):
            self.say(_name(type(value)), value.name)
        elif isinstance(value, nn.Module):
            self._module(value)
        else:
            self._object(value)

    def _function(self, function: types.FunctionType) -> None:
        code = function.__code__
        self.say("function", function.__qualname__)
        self.add(function.__defaults__, function.__kwdefaults__, function.__closure__)
        if wrapped := getattr(function, "__wrapped__", None):
            self.add("wraps", wrapped)
        if _packaged(code.co_filename):
            self.say(function.__module__, _version(function.__module__))
            return
        self._code(code)
        for name in sorted(_names(code)):
            if name in function.__globals__:
                found = function.__globals__[name]
                self.add(name, found)
                if isinstance(found, types.ModuleType) and not _installed(found.__name__):
                    self.add(*(getattr(found, inner, None) for inner in sorted(_names(code))))

    def _named(self, value: Any) -> None:
        """A class or a module: by its name where it is installed, by its contents where it is the user's."""
        self.say(_name(value) if isinstance(value, type) else value.__name__)
        if isinstance(value, types.ModuleType):
            return
        if _installed(value.__module__):
            self.say(_version(value.__module__))
            return
        self.add(*value.__bases__)
        for name, item in sorted(vars(value).items()):
            if name not in UNSAID:
                self.add(name, item)

    def _module(self, module: nn.Module) -> None:
        self.add("module", type(module))
        for name, item in sorted(vars(module).items()):
            if name in HOOKS:
                self.add(*([name, list(item.values())] if item else []))
            elif name not in BOOKKEEPING:
                self.add(name, item)

    def _object(self, value: Any) -> None:
        """An object by its class and what it holds."""
        self.add("object", type(value))
        if isinstance(value, PLACES):
            return
        if callable(said := getattr(value, "__fingerprint__", None)):
            self.add(said())
            return
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):
            self.add(*(part for pair in sorted(held.items()) for part in pair))
        if hasattr(value, "__wrapped__"):
            self.add(value.__wrapped__)
        slots = [name for kind in type(value).__mro__ for name in (getattr(kind, "__slots__", None) or ())]
        self.add(*(getattr(value, name, None) for name in slots if name not in ("__weakref__", "__dict__")))
        if held is None and not slots:
            self.add(*_state(value))

    def _order(self, sampler: Any, dataset: Any) -> None:
        """What chooses the items of a loader, but for the data set that it may hold."""
        if sampler is dataset:
            return
        if not isinstance(sampler, Sampler) or id(sampler) in self.seen:
            self.add(sampler)
            return
        self.seen[id(sampler)] = len(self.seen)
        self.alive.append(sampler)
        self.add(type(sampler))
        for _, item in sorted(vars(sampler).items()):
            self._order(item, dataset)

    def data(self, source: Any) -> None:
        """Batches, a loader or a data set: what it is, and samples of what it gives."""
        if source is None or isinstance(source, (Tensor, str, bytes)) or type(source) in (list, tuple):
            self.add(source)
        elif isinstance(source, DataLoader):
            self.add(source.batch_size, source.drop_last, source.collate_fn)
            self._order(source.sampler, source.dataset)
            if source.batch_size is None:  # the loader has batches of its own, or none
                self._order(source.batch_sampler, source.dataset)
            self.data(source.dataset)
        else:
            self.say("length", count(source))
            told = hasattr(source, "__fingerprint__")
            own = told or type(source).__module__.startswith("torch.utils.data") or not _installed(type(source).__module__)
            self.add(source if own else type(source))
            if not told:
                once, twice = _samples(source), _samples(source)
                self.say("samples", once if once == twice else "never the same")


def _samples(source: Any) -> list[str]:
    """Digests of some items, the same chance each time."""
    with _same_chance():
        try:
            length = count(source)
            if hasattr(source, "__getitem__") and length and not isinstance(source, IterableDataset):
                return [digest_of(source[index]) for index in _spread(range(length), SAMPLED)]
            return [digest_of(item) for item in islice(iter(source), SAMPLED)]
        except Exception as error:  # the step that needs an item that cannot be read says so
            return [type(error).__name__]


@contextmanager
def _same_chance() -> Iterator[None]:
    """The generators of Python, numpy and torch start from 0, and are afterwards where they were."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def digest_of(value: Any) -> str:
    """The name of any value."""
    digest = _Digest()
    digest.add(value)
    return digest.hexdigest()


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """All items, or as many as `most` of them, evenly spread, with the first and the last."""
    if len(items) <= most:
        return [items[index] for index in range(len(items))]  # one that reads or waits when it is iterated is left alone
    return [items[index * (len(items) - 1) // (most - 1)] for index in range(most)]


def _names(code: types.CodeType) -> set[str]:
    """The global names and attributes that a piece of code and those inside it use."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _content(cell: types.CellType) -> Iterable[Any]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not filled yet
        return ()


def _state(value: Any) -> tuple[Any, ...]:
    """What would be pickled of an object that shows no attributes; nothing when it cannot be."""
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
        return (getattr(value, "__module__", None), value.__qualname__)
    try:
        reduced = value.__reduce_ex__(2)
    except (TypeError, AttributeError, ValueError, RuntimeError, pickle.PicklingError):
        return ()
    return (reduced,) if isinstance(reduced, str) else tuple(list(it) if isinstance(it, Iterator) else it for it in reduced[1:])


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _installed(module: str) -> bool:
    """True of code that comes with Python or a package, which its version names; what the user wrote is read."""
    top = module.partition(".")[0]
    if top == "__main__":
        return False
    file = getattr(sys.modules.get(top), "__file__", None)
    return top in sys.stdlib_module_names or (file is not None and _packaged(file))


def _packaged(file: str) -> bool:
    path = Path(file)
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(OWN) or path.parent == STDLIB


@functools.cache
def _version(module: str) -> str:
    top = module.partition(".")[0]
    try:
        return str(getattr(sys.modules.get(top), "__version__", None) or version(top))
    except PackageNotFoundError:
        return ""
