"""What tensors a torch pickle speaks of, read as a list of instructions: nothing is imported, called, hashed or compared.

Each instruction does a bounded piece of work, so no pickle takes more time or memory than a multiple of its length.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from typing import Any

from enxuto.artifact.index import MOST_AXES
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
_LARGEST = 1 << 62  # elements along an axis
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SILENT = ("PROTO", "FRAME")
_FILLED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")

Stored = tuple[str, str, tuple[int, ...]]  # name, dtype and shape of a tensor
Where = tuple[Any, Any] | None  # the last key on the way to an object, behind where its owner is; None at the root


class _Made:
    """Stands for what a pickle would make: a class by name, a call with its arguments, a dict with its pairs.

    Arguments are what the pickle gave, never a copy: thousands of calls may be given the same ones.
    """

    __slots__ = ("arguments", "name", "pairs", "state")

    def __init__(self, name: str, arguments: Any = ()) -> None:
        self.name, self.arguments = name, arguments
        self.pairs: list[tuple[Any, Any]] = []
        self.state: Any = None


class _Storage:
    """Key and dtype of what holds the elements of tensors."""

    __slots__ = ("dtype", "key")

    def __init__(self, identity: Any) -> None:
        _, kind, key = identity[:3]  # of what may be long, and given again and again
        self.key = _word(key) if isinstance(key, (str, int)) else ""
        self.dtype = _TORCH.get(_name(kind), "")


_NESTED = (_Made, list, tuple)  # what tensors may be in


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
            named = [self.stack.pop()] if code == "NEWOBJ_EX" else []
            arguments, made = self.stack.pop(), self.stack.pop()
            return _Made(_name(made), [arguments, *named] if named or not isinstance(arguments, (tuple, list)) else arguments)
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
    waiting: list[tuple[Where, Any]] = [(None, root)] if isinstance(root, _NESTED) else []
    while waiting:
        where, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (list, tuple)):
            waiting += [((where, at), value[at]) for at in reversed(range(len(value))) if isinstance(value[at], _NESTED)]
            continue
        arguments = value.arguments
        if value.name.startswith("_rebuild_tensor") and len(arguments) > 2 and isinstance(arguments[0], _Storage):
            yield _path(where), arguments[0], _shape(arguments[2])
            continue
        given = () if id(arguments) in seen else arguments
        seen.add(id(arguments))
        waiting += [(where, item) for item in (value.state, *reversed(given)) if isinstance(item, _NESTED)]
        waiting += [((where, key), item) for key, item in reversed(value.pairs) if isinstance(item, _NESTED)]


def _path(where: Where) -> str:
    """The keys on the way to an object with dots between them; of a long way, its end."""
    words: list[str] = []
    room = _LONGEST_PATH
    while where is not None and room > 0:
        where, key = where
        words.append(_word(key))
        room -= len(words[-1]) + 1
    return ".".join(reversed(words))[-_LONGEST_PATH:]


def _word(key: Any) -> str:
    """A key as part of a path; one that is no plain value is told by its kind."""
    if isinstance(key, (str, bytes)):
        return str(key[-_LONGEST_PATH:])
    if key is None or isinstance(key, float) or (isinstance(key, int) and abs(key) <= _LARGEST):
        return str(key)
    return (_name(key) or type(key).__name__)[-_LONGEST_PATH:]


def _shape(sizes: Any) -> tuple[int, ...]:
    """The shape, if it is one; else that of a single number, which fits no storage that has more."""
    few = isinstance(sizes, (tuple, list)) and len(sizes) <= MOST_AXES
    return tuple(sizes) if few and all(whole(size, 0, _LARGEST) for size in sizes) else ()
