"""What steps say that they did, and plain data that was written as JSON, read back into its dataclass. Needs no torch."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import TypeVar

from enxuto.errors import ArtifactError

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Change:
    """What one step did to one layer, and why, in words a person can read."""

    path: str
    what: str
    why: str = ""


@dataclass(frozen=True)
class Record:
    """What one step did: the layers it changed, those it left alone with the reason, and its figures."""

    step: str
    changes: tuple[Change, ...] = ()
    skipped: tuple[Change, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def reasons(changes: Iterable[Change]) -> str:
    """Why layers were left alone: five reasons at most, each once with the layers that it holds for; empty for none."""
    paths: dict[str, list[str]] = {}
    for change in changes:
        paths.setdefault(change.why, []).append(f"'{change.path}'" if change.path else "the network")
    return "; ".join(f"{', '.join(named[:5])}{', ...' if len(named) > 5 else ''}: {why}" for why, named in [*paths.items()][:5])


def from_plain(kind: type[Kind], data: object, file: str, remedy: str) -> Kind:
    """The dataclass that parsed JSON describes; fields it does not know are passed over.

    A number that is NaN or infinite reads as None where that is allowed. `file` says what should have been named, `remedy`
    what makes it again.
    Raises: ArtifactError, naming the field, when one is missing or of another type.
    """
    found = _Reader(file, remedy).read(kind, data, "")
    assert isinstance(found, kind)
    return found


@dataclass(frozen=True)
class _Reader:
    file: str
    remedy: str

    def read(self, kind: object, value: object, where: str) -> object:
        """`value` as the annotated type `kind` wants it; `where` is its address in the document."""
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if kind is object:
            return value
        if origin in (types.UnionType, typing.Union):
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                return None
            return self.read(next(item for item in inner if item is not types.NoneType), value, where)
        if isinstance(kind, type) and is_dataclass(kind):
            return self._fields(kind, value, where)
        if origin is tuple and isinstance(value, (list, tuple)):
            kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
            if len(kinds) == len(value):
                return tuple(self.read(*pair, f"{where}[{i}]") for i, pair in enumerate(zip(kinds, value, strict=True)))
        if origin is Mapping and isinstance(value, Mapping):
            return {str(key): self.read(inner[1], item, f"{where}.{key}") for key, item in value.items()}
        if (kind in (str, bool) and type(value) is kind) or (origin is typing.Literal and value in inner):
            return value
        if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number) and (kind is float or number.is_integer()):
                return int(value) if kind is int else number
        raise ArtifactError(f"'{where}' is {_brief(value)}, not {_word(kind)}; {self.remedy}.")

    def _fields(self, kind: type, value: object, where: str) -> object:
        """A dataclass from a mapping, each field by its own annotation."""
        if not isinstance(value, Mapping):
            place = f"'{where}'" if where else "the document"
            raise ArtifactError(f"{place} is {_brief(value)}, not an object; name {self.file}.")
        hints = typing.get_type_hints(kind)
        found = {}
        for item in fields(kind):
            address = f"{where}.{item.name}" if where else item.name
            if item.name in value:
                found[item.name] = self.read(hints[item.name], value[item.name], address)
            elif item.default is MISSING and item.default_factory is MISSING:
                raise ArtifactError(f"'{address}' is missing; name {self.file}, or make it again.")
        return kind(**found)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _word(kind: object) -> str:
    words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    if isinstance(kind, type) and kind in words:
        return words[kind]
    return "an object" if typing.get_origin(kind) is Mapping else "a list of the expected length"
