"""Which way each layer of a small file is computed: the fastest one with which the outputs stay near those of the network.

The file itself is asked: it is written, run and compared with torch; the layers that add most error to what enters them take the
next way, which is more exact. At the end they are put back, one by one, which says what each costs, and stay so if it is little.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from enxuto.batches import Batch
from enxuto.exporters import input_grids
from enxuto.exporters.compared import Distance, added, distance
from enxuto.exporters.graphs import path_of
from enxuto.exporters.int8 import Given, Graph
from enxuto.exporters.onnx import Exported, to_onnx
from enxuto.exporters.ways import Way, ways, without_kernel
from enxuto.exporters.weights import clipped_inputs, exchanged, on_grids, restored
from enxuto.rounding import Rounding
from enxuto.surgery import to_float

ROUNDS = 12  # of moving layers on, twice as many in each
TRIES = 12  # files written to put layers back
WAYS: Mapping[Way, str] = {
    "static": "with a fixed range of its inputs",
    "four": "with weights of 4 bits",
    "dynamic": "on integers with a range of its inputs for each call",
    "stored": "in float with weights of 8 bits",
    "float": "in float",
}


class Settling:
    """A network on its way into a small file."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        precision: str,
        rounding: Rounding | None,
        folder: Path,
        *,
        dynamic_batch: bool,
    ) -> None:
        self.model, self.batches, self.precision, self.folder = model, batches, precision, folder
        self.dynamic_batch, self.open = dynamic_batch, rounding is None
        self.plain, self.scales, self.notes = on_grids(model, batches, rounding or "gptq", precision)
        grids = input_grids(model)
        self.inputs = (clipped_inputs(self.plain, batches, grids) if precision == "int8" else {}) | grids
        self.exact = folder / "float.onnx"
        self.whole: frozenset[str] = frozenset()  # paths of layers whose weights are not rounded
        self.written = self._exported(self.plain)
        self.graph = self._opened(self.plain)
        self.ways = ways(self.graph.proto.graph, precision)
        self.chosen: dict[str, Way] = {name: each[0] for name, each in self.ways.items()}

    def _exported(self, plain: nn.Module) -> Exported:
        return to_onnx(plain, self.batches[0], self.exact, others=self.batches[1:], dynamic_batch=self.dynamic_batch)

    def _opened(self, plain: nn.Module) -> Graph:
        """The float file as it is, of a network whose weights are on grids but those of some layers."""
        scales = {name: scale for name, scale in self.scales.items() if name.rpartition(".")[0] not in self.whole}
        parameters = dict(plain.named_parameters(remove_duplicate=False))
        return Graph(self.exact, self.batches, Given(scales, self.inputs, parameters))

    def _restore(self, whole: frozenset[str]) -> None:
        """Gives the layers at these paths, and no others, their own weights in the float file: as its constants, where they can
        be told, else it is written anew, which takes the exporter as long as the first time."""
        before, plain = (restored(self.plain, self.model, paths) for paths in (self.whole, whole))
        self.whole = whole
        self._exchange(before, plain)

    def _exchange(self, before: nn.Module, plain: nn.Module) -> None:
        del self.graph  # it holds the file that is about to change
        named = (dict(each.named_parameters(remove_duplicate=False)) for each in (before, plain))
        if not exchanged(self.exact, *named):
            self.written = self._exported(plain)
        self.graph = self._opened(plain)

    def write(self, path: os.PathLike[str], chosen: Mapping[str, Way]) -> Distance:
        """Writes the file and tells how far it is from the network."""
        whole = frozenset(path_of(node) for node in self.graph.proto.graph.node if self._rounds_less(node.name, chosen))
        if whole != self.whole:
            self._restore(whole)
        self.graph.write(path, chosen)
        return distance(self.model, path, self.batches)

    def _rounds_less(self, name: str, chosen: Mapping[str, Way]) -> bool:
        """True where a weight needs its own values again: in float, or on a grid that is not that of 4 bits."""
        way, several = chosen.get(name), self.ways.get(name, ())
        return way is not None and way != several[0] and (several[0] == "four" or (way == "float" and "stored" in several))

    def settle(self, path: os.PathLike[str], limit: float) -> Distance:
        """Writes the file whose outputs are off by at most the limit, or the nearest there is."""
        far = self.write(path, self.chosen)
        if self.open:
            far = self._rounded_nearer(path, far)
        moved: list[str] = []
        for number in range(ROUNDS):
            if far.worst <= limit:
                break
            further = [name for name in self._by_error(path) if self._next(name)][: 2**number]
            if not further:
                break
            self.chosen |= {name: way for name in further if (way := self._next(name))}
            moved += [name for name in further if name not in moved]
            far = self.write(path, self.chosen)
        return self._put_back(path, moved, far, limit) if moved else far

    def told(self) -> list[str]:
        """What a reader must know about the file."""
        return [*self.notes, *self.graph.notes, *without_kernel(self.graph.proto.graph, self.chosen)]

    def _rounded_nearer(self, path: os.PathLike[str], far: Distance) -> Distance:
        """Weights at their nearest values, if outputs are nearer so: what each product loses alone is not all that they lose."""
        before, aside = (self.plain, self.scales, self.notes, self.written), self.folder / "before.onnx"
        self.plain, self.scales, self.notes = on_grids(self.model, self.batches, "nearest", self.precision)
        if all(map(torch.equal, before[0].parameters(), self.plain.parameters())):
            return far
        shutil.copyfile(self.exact, aside)
        self._exchange(before[0], self.plain)
        near = self.write(path, self.chosen)
        if near.worst < far.worst:
            return near
        del self.graph  # it holds the file that goes
        self.plain, self.scales, self.notes, self.written = before
        aside.replace(self.exact)
        self.graph = self._opened(self.plain)
        return self.write(path, self.chosen)

    def _by_error(self, path: os.PathLike[str]) -> list[str]:
        """The names of nodes, those first that add most to the error of what enters them, against the network unrounded."""
        true = self.folder / "true.onnx"
        if not true.exists():
            to_onnx(to_float(self.model), self.batches[0], true, others=self.batches[1:], dynamic_batch=self.dynamic_batch)
        errors = added(true, path, self.batches[0])
        return sorted(errors.keys() & self.chosen.keys(), key=lambda name: (errors[name][0] - errors[name][1], name))

    def _next(self, name: str) -> Way | None:
        several = self.ways[name]
        place = several.index(self.chosen[name]) + 1
        return several[place] if place < len(several) else None

    def _put_back(self, path: os.PathLike[str], moved: Sequence[str], far: Distance, limit: float) -> Distance:
        """Each layer back on its first way, if the outputs allow it; else a note says what that would cost."""
        costs: dict[str, Distance] = {}
        for name in moved[: -TRIES - 1 : -1] if far.worst <= limit else ():  # the last were the least to blame
            costs[name] = self.write(path, self.chosen | {name: self.ways[name][0]})
            if costs[name].worst <= limit:
                self.chosen[name] = self.ways[name][0]
        for name in moved:
            if self.chosen[name] != (first := self.ways[name][0]):
                cost = f"outputs would be off by {costs[name].worst:.0%}" if name in costs else "it added most to the error"
                self.notes.append(f"'{name}' computes {WAYS[self.chosen[name]]}: {WAYS[first]}, {cost}")
        return self.write(path, self.chosen) if costs else far
