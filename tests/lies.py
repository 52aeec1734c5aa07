"""Files that lie about the structure of a network, with every checksum right: over all kinds, arguments and values.

`python tests/lies.py FOLDER STEP` tells each STEP-th of them to `load` and prints, one JSON line a lie, what came of it.
"""

import copy
import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from enxuto.artifact.container import read, write
from enxuto.artifact.save import load, save
from enxuto.artifact.sections import Section
from enxuto.errors import ArtifactError
from enxuto.layers import Affine, CodedTensor, Table
from enxuto.layers.coded import weight_names
from enxuto.layers.kinds import SIZES, describe
from enxuto.layers.lowrank import CPConv, KroneckerLinear, LowRankConv, LowRankLinear, TuckerConv
from enxuto.layers.rules import FORBIDDEN
from enxuto.sites import Site

VALUES: list[Any] = [-1, 0, 1, 2, 3, 7, 20_000, 2**30, 2**31, 2**62, 2**70, True, False, None, 0.5, 1e300, "x", "same", [], [2]]
VALUES += [[2, 2], [0, 0], [-1, -1], [20_000] * 2, [2**30] * 2, [2**40], ["x", "y"], [[1]], [1] * 9, {}, {"device": "cpu"}]
DEVICES = ["cpu", "meta", "cuda", 0, None]
SIZES_TOLD: list[Any] = [-1, 0, 2**30, 2**62, 3, 20_000, "x", None, [2, 2]]

torch.manual_seed(0)  # which codes there are says which lies are told
one, rows, image = torch.randn(2, 8), torch.randn(2, 5, 8), torch.randn(2, 8, 9, 9)
LAYERS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "Identity": (nn.Identity(), one),
    "Linear": (nn.Linear(8, 6), one),
    "Conv1d": (nn.Conv1d(8, 4, 3, padding=1), torch.randn(2, 8, 9)),
    "Conv2d": (nn.Conv2d(8, 4, 3, groups=2, padding=1), image),
    "Conv3d": (nn.Conv3d(2, 4, 2, bias=False), torch.randn(1, 2, 4, 4, 4)),
    "ConvTranspose1d": (nn.ConvTranspose1d(8, 4, 3, stride=2), torch.randn(2, 8, 9)),
    "ConvTranspose2d": (nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1), image),
    "ConvTranspose3d": (nn.ConvTranspose3d(2, 4, 2), torch.randn(1, 2, 4, 4, 4)),
    "BatchNorm1d": (nn.BatchNorm1d(8), one),
    "BatchNorm2d": (nn.BatchNorm2d(8), image),
    "BatchNorm3d": (nn.BatchNorm3d(2), torch.randn(1, 2, 4, 4, 4)),
    "InstanceNorm1d": (nn.InstanceNorm1d(8, affine=True), torch.randn(2, 8, 9)),
    "InstanceNorm2d": (nn.InstanceNorm2d(8, affine=True), image),
    "InstanceNorm3d": (nn.InstanceNorm3d(2, affine=True), torch.randn(1, 2, 4, 4, 4)),
    "GroupNorm": (nn.GroupNorm(2, 8), image),
    "LayerNorm": (nn.LayerNorm(8), rows),
    "PReLU": (nn.PReLU(8), image),
    "Embedding": (nn.Embedding(10, 4, padding_idx=1), torch.arange(10)[None]),
    "EmbeddingBag": (nn.EmbeddingBag(10, 4, mode="mean"), torch.arange(10).view(2, 5)),
    "RNN": (nn.RNN(8, 4, nonlinearity="relu", batch_first=True), rows),
    "LSTM": (nn.LSTM(8, 4, num_layers=2, bidirectional=True, proj_size=2), rows),
    "GRU": (nn.GRU(8, 4), rows),
    "LowRankLinear": (LowRankLinear(8, 6, 2), one),
    "LowRankConv": (LowRankConv(8, 4, (3, 3), 2, (1, 1), (1, 1), (1, 1)), image),
    "TuckerConv": (TuckerConv(8, 4, (3, 3), 3, 2, (1, 1), (1, 1), (1, 1)), image),
    "CPConv": (CPConv(8, 4, (3, 3), 5, (1, 1), (1, 1), (1, 1)), image),
    "KroneckerLinear": (KroneckerLinear(8, 6, 3, 2, 4), one),
    "MultiheadAttention": (nn.MultiheadAttention(8, 2, batch_first=True), rows),
    "Bilinear": (nn.Bilinear(8, 8, 3), one),
    "GRUCell": (nn.GRUCell(8, 4), one),
}


class Holder(nn.Module):
    """A network of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        inputs = {nn.MultiheadAttention: 3, nn.Bilinear: 2}
        return self.layer(*[x] * next((count for kind, count in inputs.items() if isinstance(self.layer, kind)), 1))


@dataclass(frozen=True)
class Honest:
    """A file that says the truth, the network it is for, and an input."""

    name: str
    meta: dict[str, Any]
    sections: list[Section]
    into: nn.Module
    x: torch.Tensor

    def told(
        self, what: str, *, meta: dict[str, Any] | None = None, sections: list[Section] | None = None
    ) -> tuple[str, "Honest"]:
        """The same with one thing changed."""
        return f"{self.name}: {what}", replace(self, meta=meta or self.meta, sections=sections or self.sections)


def honest(folder: Path) -> Iterator[Honest]:
    """A file of each kind: plain and described, and with its weights coded, on both grids."""
    torch.manual_seed(0)
    for kind, (layer, x) in LAYERS.items():
        for grid in (None, Affine(8), Affine(4, "tensor"), Table(3)):
            network = Holder(copy.deepcopy(layer))
            for name in weight_names(network.layer) if grid is not None else ():
                weight = Site("layer", name, network.layer)
                weight.code_(grid.encode(weight.read()))
            if grid is not None and not weight_names(layer):
                continue
            fresh = Holder(copy.deepcopy(layer))
            save(network, folder / "honest.nxt", original=None if grid is None else fresh)
            yield Honest(f"{kind}, {grid}", *read(folder / "honest.nxt"), fresh, x)
    wide = Holder(nn.Linear(1024, 1024))
    fresh = copy.deepcopy(wide)
    Site("layer", "weight", wide.layer).code_(Affine(8).encode(wide.layer.weight))
    save(wide, folder / "honest.nxt", original=fresh)
    yield Honest("Linear, wide", *read(folder / "honest.nxt"), fresh, torch.randn(1, 1024))


def lies(told: Honest) -> Iterator[tuple[str, Honest]]:
    """Everything that is changed in one file."""
    edit = next((edit for edit in told.meta["edits"] if "kind" in edit and edit["path"] == "layer"), None)
    if edit is not None:
        yield from lies_of_arguments(told, edit)
        yield from lies_of_parts(told)
    if "None" in told.name:
        yield from lies_of_sizes(told)
    yield from lies_of_tensors(told)
    yield from lies_of_grids(told)


def edited(told: Honest, what: str, **more: Any) -> tuple[str, Honest]:
    rest = [edit for edit in told.meta["edits"] if edit["path"] != "layer"]
    edit = next((edit for edit in told.meta["edits"] if edit["path"] == "layer"), {"path": "layer"})
    return told.told(what, meta=told.meta | {"edits": [*rest, edit | more]})


def lies_of_arguments(told: Honest, edit: dict[str, Any]) -> Iterator[tuple[str, Honest]]:
    names = {*describe_all(told.into.layer), *edit["args"]}
    for name, value in itertools.product(sorted(names), VALUES):
        if edit["args"].get(name, "nothing") != value:
            yield edited(told, f"{name}={value}", args=edit["args"] | {name: value})
    for name, value in itertools.product(FORBIDDEN, DEVICES):
        yield edited(told, f"{name}={value}", args=edit["args"] | {name: value})
    for name in edit["args"]:
        yield edited(told, f"without {name}", args={n: v for n, v in edit["args"].items() if n != name})
    for kind, (other, _) in LAYERS.items():
        if kind != edit["kind"]:
            yield edited(told, f"is {kind}", kind=kind)
            if kind in DESCRIBED:
                yield edited(told, f"is {kind} with its arguments", kind=kind, args=describe(other))


def lies_of_parts(told: Honest) -> Iterator[tuple[str, Honest]]:
    """Layers of several parts: each part in turn as wide as its tensor, which is wider or narrower than the others take."""
    for section, axis, more in itertools.product(told.sections, (0, 1), (-1, 1)):
        part = section.name.removesuffix(".weight")
        edit = next((edit for edit in told.meta["edits"] if edit["path"] == part != "layer" and "args" in edit), None)
        outer = (part == "layer.down" and axis == 1) or (part == "layer.up" and axis == 0)  # of these the network is to judge
        if edit is None or outer or axis >= len(section.shape):
            continue
        name = next(name for name in edit["args"] if name.startswith(("out_", "in_")[axis]))
        shape = tuple(size + more * (place == axis) for place, size in enumerate(section.shape))
        changed = replace(section, shape=shape, array=np.resize(np.asarray(section.array), shape))
        sections = [changed if each is section else each for each in told.sections]
        args = edit["args"] | {name: edit["args"][name] + more}
        edits = [each | {"args": args} if each is edit else each for each in told.meta["edits"]]
        yield told.told(f"{part} with {name}={args[name]}", meta=told.meta | {"edits": edits}, sections=sections)


def describe_all(layer: nn.Module) -> list[str]:
    from enxuto.layers.kinds import _parameters

    return [name for name in _parameters(type(layer)) if name not in FORBIDDEN]


def lies_of_sizes(told: Honest) -> Iterator[tuple[str, Honest]]:
    for name, value in itertools.product((*SIZES, "training", "stride", "padding", "forward", "_parameters"), SIZES_TOLD):
        yield edited(told, f"sizes {name}={value}", sizes={name: value})
    names = [name.removeprefix("layer.") for name in told.into.state_dict()]
    for kept in ([], names[:1], names[1:], [*names, "evil"], [*names, *names], 7, "weight", [7], [None]):
        yield edited(told, f"tensors {kept}", tensors=kept)
    for more in (
        {"input": 8},
        {"input": 4},
        {"input": True},
        {"unknown": 1},
        {"path": "layer.forward"},
        {"coded": {"x": ["table", 3]}},
    ):
        yield edited(told, str(more), **more)


def lies_of_tensors(told: Honest) -> Iterator[tuple[str, Honest]]:
    for number, section in enumerate(told.sections):
        for what, other in changed(section):
            yield told.told(f"{section.name} {what}", sections=[*told.sections[:number], other, *told.sections[number + 1 :]])
        yield told.told(f"without {section.name}", sections=[*told.sections[:number], *told.sections[number + 1 :]])
        for other in told.sections:
            if other.name != section.name:
                rest = [each for each in told.sections if each is not section]
                same = {section.name: other.name}
                yield told.told(f"{section.name} is {other.name}", sections=rest, meta=told.meta | {"same": same})


def changed(section: Section) -> Iterator[tuple[str, Section]]:
    """A tensor in other shapes, dtypes and numbers of symbols, and with values that no grid has."""
    array = np.asarray(section.array)
    shapes = [
        (array.size,),
        (1, *array.shape),
        (*array.shape, 1),
        array.shape[::-1],
        (array.size + 1,),
        (0,),
        (max(1, array.size - 1),),
    ]
    for shape in dict.fromkeys(shapes):
        if shape != array.shape:
            yield f"in shape {shape}", replace(section, shape=shape, array=np.resize(array, shape))
    huge = (1 << 22,)  # zeros, which take a few bytes of the file
    yield "of millions of zeros", replace(section, shape=huge, array=np.zeros(huge, array.dtype))
    for dtype in ("float64", "float16", "int64", "bool", "complex64", "uint8"):
        if dtype != section.dtype or section.symbols is not None:
            yield f"as {dtype}", Section(section.name, dtype, array.shape, None, array.astype(dtype))
    if section.symbols is not None:
        for symbols in {*range(int(array.max()) + 1, min(256, section.symbols + 9)), 256} - {section.symbols}:
            yield f"of {symbols} symbols", replace(section, symbols=symbols)
        top = np.full_like(array, 255)
        yield "with codes of 255", replace(section, symbols=256, array=top)
    elif section.name.endswith((".scale", ".codebook")):
        for value in (np.nan, np.inf, -np.inf):
            yield f"with {value}", replace(section, array=np.full_like(array, value))


def lies_of_grids(told: Honest) -> Iterator[tuple[str, Honest]]:
    coded = [section.name.split(".")[-2] for section in told.sections if section.symbols is not None]
    grids: list[Any] = [["affine", 8, "channel"], ["affine", 8, "tensor"], ["affine", 2, "tensor"], ["affine", 1, "channel"]]
    grids += [
        ["table", 2],
        ["table", 8],
        ["table", 3, 3],
        ["table"],
        ["affine", 4, "group", 0],
        ["affine", 4, "group", 1],
        ["none", 3],
    ]
    grids += [
        ["affine", 4, "group", 2**62],
        ["affine", 4, "channel", 64, "x"],
        ["affine", 0],
        ["affine", 9],
        ["table", -1],
        [],
        "table",
    ]
    for grid in grids if coded else ():
        if grid != told.meta["grid"]:
            yield told.told(f"grid {grid}", meta=told.meta | {"grid": grid})
            yield edited(told, f"{coded[0]} on {grid}", coded={coded[0]: grid})
    for dtype in ("float16", "bfloat16", "float64", "int8", "x", 7):
        if coded:
            yield edited(told, f"decoded as {dtype}", dtypes={coded[0]: dtype})


DESCRIBED = [kind for kind, (layer, _) in LAYERS.items() if kind not in ("MultiheadAttention", "Bilinear", "GRUCell")]


def kib(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])


def dtype_of(model: nn.Module) -> torch.dtype:
    """A network may come back in another dtype as a whole; then its input has it too."""
    coded = [module.dtype for module in model.modules() if isinstance(module, CodedTensor)]
    return next(iter([*coded, *(tensor.dtype for tensor in model.parameters())]), torch.float32)


def outcome(told: Honest, path: Path) -> dict[str, Any]:
    """Whether the file was refused, ran, or failed; its bytes; and the bytes that memory grew by meanwhile."""
    write(path, told.meta, told.sections)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kib("VmRSS")
    try:
        model = load(path, into=told.into)
        with torch.no_grad():
            model(told.x if told.x.dtype == torch.int64 else told.x.to(dtype_of(model)))
        found = "ran"
    except ArtifactError:
        found = "refused"
    except Exception as error:  # which is what these files are for
        found = f"{'loaded and ' if 'model' in locals() else ''}{type(error).__name__}: {error}"
    return {"found": found, "file_bytes": path.stat().st_size, "grown_bytes": 1024 * (kib("VmHWM") - before)}


def main(folder: Path, step: int) -> None:
    """Tells each `step`-th lie; before it its name goes out, so that the last name is that of the lie that killed the process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    every = list(honest(folder))
    for told in every:
        assert outcome(told, folder / "honest.nxt")["found"] == "ran", told.name
    for name, lie in itertools.islice(itertools.chain.from_iterable(map(lies, every)), 0, None, step):
        print(json.dumps({"lie": name}), flush=True)
        try:
            print(json.dumps(outcome(lie, folder / "lie.nxt")), flush=True)
        except ArtifactError:  # which not even the writer takes
            print(json.dumps({"found": "not written", "file_bytes": 0, "grown_bytes": 0}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
