"""What tensors a torch pickle speaks of, read as a list of instructions: nothing is imported, called, hashed or compared.

Each instruction does a bounded piece of work, so no pickle takes more time or memory than a multiple of its length.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from typing import Any

from enxuto.checks import whole

_TORCH = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
}
_LONGEST_PATH = 1000  # letters; a pickle may nest its lists a million deep
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SILENT = ("PROTO", "FRAME")
_FILLED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")

Stored = tuple[str, str, tuple[int, ...]]  # name, dtype and shape of a tensor


class _Made:
    """Stands for what a pickle would make: a class by name, a call with its arguments, a dict with its pairs."""

    __slots__ = ("arguments", "name", "pairs", "state")

    def __init__(self, name: str, arguments: Any = ()) -> None:
        self.name, self.arguments = name, arguments
        self.pairs: list[tuple[Any, Any]] = []
        self.state: Any = None


class _Storage:
    """Key and dtype of what holds the elements of tensors."""

    __slots__ = ("dtype", "key")

    def __init__(self, identity: Any) -> None:
        _, kind, key, *_ = identity
        self.key = str(key) if isinstance(key, (str, int)) else ""
        self.dtype = _TORCH.get(_name(kind), "")


def storages(data: bytes) -> dict[str, Stored]:
    """Name, dtype and shape of the largest tensor on each storage of a pickle, by its key.

    Raises: ValueError, TypeError, LookupError or AttributeError for what is no pickle.
    """
    found: dict[str, Stored] = {}
    for name, storage, shape in _tensors(_Machine().run(data)):
        if storage.key not in found or math.prod(shape) > math.prod(found[storage.key][2]):
            found[storage.key] = (name, storage.dtype, shape)
    return found


class _Machine:
    """The stack, the marks and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memory: dict[Any, Any] = {}

    def run(self, data: bytes) -> Any:
        """What is on top at the end."""
        for code, argument, _ in pickletools.genops(data):
            if code.name == "STOP":
                return self.stack.pop()
            if code.name == "MARK":
                self.marks.append(len(self.stack))
            elif code.name in _FILLED:
                self._fill(code.name)
            elif code.name.endswith("PUT") or code.name == "MEMOIZE":
                self.memory[len(self.memory) if code.name == "MEMOIZE" else argument] = self.stack[-1]
            elif code.name in ("POP", "POP_MARK"):
                self._taken(code.name == "POP_MARK")
            elif code.name not in _SILENT:
                self.stack.append(self._made(code.name, argument))
        raise ValueError("it has no end")

    def _taken(self, marked: bool) -> list[Any]:
        """What stands above the last mark, or the top alone; it is gone then."""
        start = self.marks.pop() if marked else len(self.stack) - 1
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _fill(self, code: str) -> None:
        """Puts what stands above a container, or a state, into it."""
        taken = self._taken(code.endswith("S")) if code != "SETITEM" else [*self._taken(False), *self._taken(False)][::-1]
        owner = self.stack[-1]
        if code == "BUILD":
            if isinstance(owner, _Made):
                owner.state = taken[0]
        elif isinstance(owner, list):
            owner.extend(taken)
        elif isinstance(owner, _Made):
            owner.pairs += zip(taken[::2], taken[1::2], strict=False) if code.startswith("SET") else enumerate(taken)

    def _made(self, code: str, argument: Any) -> Any:
        """What an instruction puts on the stack."""
        if code.endswith("GET"):
            return self.memory[argument]
        if code == "DUP":
            return self.stack[-1]
        if code in ("EMPTY_LIST", "EMPTY_SET"):
            return []
        if code in ("LIST", "FROZENSET", "TUPLE"):
            taken = self._taken(marked=True)
            return tuple(taken) if code == "TUPLE" else taken
        if code in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1]) if code != "EMPTY_TUPLE" else 0
            return tuple(reversed([self.stack.pop() for _ in range(count)]))
        if code in ("EMPTY_DICT", "DICT"):
            made = _Made("dict")
            taken = self._taken(marked=True) if code == "DICT" else []
            made.pairs += zip(taken[::2], taken[1::2], strict=True)
            return made
        return self._called(code, argument)

    def _called(self, code: str, argument: Any) -> Any:
        """A class by its name, a call of one, a storage; or a plain value, which is the instruction's argument."""
        if code == "GLOBAL":
            return _Made(str(argument).partition(" ")[2])
        if code == "STACK_GLOBAL":
            name, _ = self.stack.pop(), self.stack.pop()
            return _Made(str(name) if isinstance(name, str) else "")
        if code in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            more = [self.stack.pop()] if code == "NEWOBJ_EX" else []
            arguments, made = self.stack.pop(), self.stack.pop()
            return _Made(_name(made), (*(arguments if isinstance(arguments, (tuple, list)) else [arguments]), *more))
        if code in ("OBJ", "INST"):
            taken = self._taken(marked=True)
            name = str(argument).partition(" ")[2] if code == "INST" else _name(taken[0])
            return _Made(name, taken[code == "OBJ" :])
        if code == "BINPERSID":
            return _Storage(self.stack.pop())
        if code.startswith("EXT") or code.endswith(("PERSID", "BUFFER")):
            raise ValueError(f"it has an instruction {code}, which torch does not write")
        return _CONSTANTS.get(code, argument)


def _name(made: Any) -> str:
    return made.name if isinstance(made, _Made) else ""


def _tensors(root: Any) -> Iterator[tuple[str, _Storage, tuple[int, ...]]]:
    """Path, storage and shape of every tensor in nested dicts, lists and objects, which may hold themselves."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _Made):
            arguments = value.arguments
            if value.name.startswith("_rebuild_tensor") and len(arguments) > 2 and isinstance(arguments[0], _Storage):
                yield path, arguments[0], _shape(arguments[2])
            else:
                waiting += [(path, item) for item in (value.state, *reversed(arguments))]
                waiting += [(_below(path, key), item) for key, item in reversed(value.pairs)]
        elif isinstance(value, (list, tuple)):
            waiting += [(_below(path, number), item) for number, item in reversed([*enumerate(value)])]


def _below(path: str, key: Any) -> str:
    """The path of an entry; a key that is no plain value is told by its kind."""
    name = str(key) if isinstance(key, (str, int, float, bytes, type(None))) else _name(key) or type(key).__name__
    return f"{path}.{name}"[-_LONGEST_PATH:] if path else name[-_LONGEST_PATH:]


def _shape(sizes: Any) -> tuple[int, ...]:
    """The shape, if it is one; else that of a single number, which fits no storage that has more."""
    return tuple(sizes) if isinstance(sizes, (tuple, list)) and all(whole(size) for size in sizes) else ()
