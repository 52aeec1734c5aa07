"""Named devices: their RAM and flash, what of it is taken, and where weights lie. The figures are in boards.yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from enxuto.checks import named
from enxuto.errors import Error, TargetError, TaskError
from enxuto.sizes import parse_bytes

BUILT_IN = Path(__file__).with_name("boards.yaml")
WeightsIn = Literal["flash", "ram"]
SIZES = ("ram", "flash", "reserve", "flash_reserve")
WORDS = ("board", "source")


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one device offers.

    Units: bytes. `ram_bytes` is the largest stretch that one arena can have, `reserve_bytes` what stack and runtime take of it;
    `flash_bytes` is where program and network are stored, `flash_reserve_bytes` what the program takes. `weights_in="ram"`
    means that an operating system loads the weights before they are used.
    """

    name: str
    ram_bytes: int
    flash_bytes: int
    reserve_bytes: int = 0
    flash_reserve_bytes: int = 0
    weights_in: WeightsIn = "flash"
    board: str = ""
    source: str = ""


def devices(path: str | os.PathLike[str] | None = None) -> dict[str, Device]:
    """The devices by name: those that come with enxuto, and those of a file of the same form, which win where names are equal.

    A device needs `ram` and `flash` ("256 KiB"); `reserve`, `flash_reserve`, `weights_in`, `board` and `source` are free.
    Raises: TaskError, with the device and the key, when the file cannot be read or says something else.
    >>> devices()["cortex-m4"].ram_bytes
    262144
    """
    found = _read(BUILT_IN)
    return found if path is None else found | _read(Path(path))


def find_device(name: object, known: Mapping[str, Device]) -> Device:
    """The device of this name. Raises: TargetError, with the names there are."""
    if not isinstance(name, str) or name not in known:
        raise TargetError(f"device={name!r} is not known; use one of {', '.join(known)}, or describe yours in a file.")
    return known[name]


class _Strict(yaml.SafeLoader):
    """YAML in which a name stands once, as its specification says; PyYAML alone would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value) for key, _ in node.value]
        if len(names) > len(set(names)):
            raise yaml.YAMLError(f"'{max(names, key=names.count)}' stands there twice")
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Device]:
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise TaskError(
            f"devices cannot be read from '{path}': {first}; give a YAML file, with names and below them sizes."
        ) from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise TaskError(f"'{path}' holds no devices; write a name and below it at least ram: 256 KiB and flash: 1 MiB.")
    return {str(name): _device(str(name), entry, path) for name, entry in entries.items()}


def _device(name: str, entry: Mapping[object, object], path: Path) -> Device:
    place = f"device '{name}' in '{path}'"
    known = (*SIZES, *WORDS, "weights_in")
    for key in entry:
        if key not in known:
            raise TaskError(f"{place} has {key!r}, which is not known; the keys are {', '.join(known)}.")
    for key in ("ram", "flash"):
        if key not in entry:
            raise TaskError(f"{place} has no {key}; write for example {key}: 256 KiB.")
    sizes = {key: _bytes(entry[key], key, place) for key in SIZES if key in entry}
    weights_in = entry.get("weights_in", "flash")
    if weights_in not in get_args(WeightsIn):
        raise TaskError(f"{place} has {named('weights_in', weights_in)}; write flash, or ram where weights are loaded first.")
    for whole, part in (("ram", "reserve"), ("flash", "flash_reserve")):
        if sizes.get(part, 0) >= sizes[whole]:
            raise TaskError(f"{place} has {part} {entry[part]} of {whole} {entry[whole]}; leave something for the network.")
    words = {key: str(entry[key]) for key in WORDS if key in entry}
    return Device(name=name, weights_in=weights_in, **{f"{key}_bytes": size for key, size in sizes.items()}, **words)  # type: ignore[arg-type]


def _bytes(value: object, key: str, place: str) -> int:
    try:
        return parse_bytes(value, key, least=0 if key.endswith("reserve") else 1)  # type: ignore[arg-type]
    except Error as error:
        raise TaskError(f"{place} has {named(key, value)}, which is no size; write for example 256 KiB or 1 MB.") from error
