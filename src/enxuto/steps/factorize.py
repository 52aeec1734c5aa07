"""Factorize: a layer becomes two thin ones where that is smaller."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from enxuto.checks import named, whole, within
from enxuto.copies import separate_
from enxuto.errors import NothingChangedError, RangeError, TaskError
from enxuto.functional.likeness import distance
from enxuto.functional.lowrank import rank_for_energy
from enxuto.layers.coded import decode_, plain_class, sources, weight_names
from enxuto.layers.grids import Affine, CodedTensor
from enxuto.layers.lowrank import LowRankConv, LowRankLinear
from enxuto.reads import read_elsewhere
from enxuto.select import Patterns, select
from enxuto.surgery import Weight, borrowed, reasons, replace_, twins
from enxuto.task import Batch, Change, Record, Task, float_outputs

FAR = 0.1  # of the outputs: what a network rarely survives without training
_log = logging.getLogger(__name__)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Factorize:
    """Linear and convolution layers as two thin ones, by truncated SVD; coded layers give coded thin layers.

    `rank` is the number of channels between the two; without it, each layer gets the least rank that holds the fraction
    `energy` of its squared singular values. Layers that would grow are left alone and named. Outputs that moved by more than a
    tenth are warned of: such a network wants training.
    Raises: RangeError for a rank below 1 or an energy outside (0, 1].
    Source: Denton et al. 2014, "Exploiting linear structure within convolutional networks"; Eckart, Young 1936.
    """

    rank: int | None = None
    energy: float = 0.9
    layers: Patterns = "*"

    def __post_init__(self) -> None:
        if self.rank is not None and not whole(self.rank, 1):
            raise RangeError(f"{named('rank', self.rank)} is not a whole number of at least 1; use for example 16.")
        if not within(self.energy, "(0, 1]"):
            raise RangeError(f"{named('energy', self.energy)} is the fraction kept and must be in (0, 1]; use for example 0.9.")

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The copy with thin layers. Raises: NothingChangedError when every layer would grow."""
        start = time.monotonic()
        expected = float_outputs(model, task.sample)
        given, model = model, borrowed(model)
        reads = read_elsewhere(model, task.sample)
        thin: dict[str, tuple[nn.Module, nn.Module]] = {}
        changes, skipped = [], []
        for path, layer in select(model, self.layers, lambda m: isinstance(m, (nn.Linear, *CONVOLUTIONS))):
            if "weight" not in weight_names(layer):
                skipped.append(Change(path, "left alone", "its weight is computed from other parameters"))
                continue
            matrix = Weight(path, "weight", layer).read().flatten(1)
            rank = self.rank or rank_for_energy(matrix, self.energy)
            reason = _refusal(model, path, layer, matrix, rank) or reads.get(path, "")
            if reason:
                skipped.append(Change(path, "left alone", reason))
                continue
            thin[path] = layer, _thin(borrowed(layer), rank, path)
            what = f"rank {rank} of {min(matrix.shape)}: {matrix.numel():,} weights became {rank * sum(matrix.shape):,}"
            changes.append(Change(path, what, f"keeps {1 - _lost(matrix, rank):.1%} of the squared singular values"))
        refused = _replaced_(model, thin, task.sample)
        changes = [change for change in changes if change.path not in refused]
        skipped += [Change(path, "left alone", reason) for path, reason in refused.items()]
        if not changes:
            raise NothingChangedError(f"{self} would change nothing: {reasons(skipped)}; use a lower rank or energy.")
        moved = zip(float_outputs(model, task.sample), expected, strict=True)
        figures = {"output_error": max((distance(*pair) for pair in moved), default=0.0)}
        if figures["output_error"] > FAR:
            _log.warning(
                "%s moves the outputs by %.0f %%; raise energy or rank, or train after it.", self, 100 * figures["output_error"]
            )
        return separate_(model, given), Record(str(self), tuple(changes), tuple(skipped), figures, time.monotonic() - start)


def _replaced_(model: nn.Module, thin: Mapping[str, tuple[nn.Module, nn.Module]], sample: Batch) -> dict[str, str]:
    """Puts the thin layers in, and takes those out again with which the model does not run; gives the reasons for these."""
    for path, (_, made) in thin.items():
        replace_(model, path, made)
    if not _failure(model, sample):
        return {}
    refused = {}
    for path, (layer, _) in thin.items():
        replace_(model, path, layer)
    for path, (layer, made) in thin.items():
        replace_(model, path, made)
        reason = _failure(model, sample)
        if reason:
            replace_(model, path, layer)
            refused[path] = f"the model reads what a thin layer has not ({reason})"
    return refused


def _failure(model: nn.Module, sample: Batch) -> str:
    try:
        float_outputs(model, sample)
    except TaskError as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"
    return ""


def _refusal(model: nn.Module, path: str, layer: nn.Module, matrix: Tensor, rank: int) -> str:
    if plain_class(type(layer)) not in (nn.Linear, *CONVOLUTIONS):
        return f"{type(layer).__name__} is a layer with a forward of its own"
    if getattr(layer, "groups", 1) != 1:
        return "a grouped convolution is no single matrix"
    if rank * sum(matrix.shape) >= matrix.numel():
        return f"rank {rank} would take {rank * sum(matrix.shape):,} weights in place of {matrix.numel():,}"
    if not path:
        return "it is the whole model; wrap it, as in nn.Sequential(layer)"
    tied = [twin.path for twin in twins(model, Weight(path, "weight", layer)) if twin.module is not layer]
    if tied:
        return f"its weight is also that of '{tied[0]}', which keeps it"
    owner = path.rpartition(".")[0]
    if isinstance(model.get_submodule(owner), (LowRankLinear, LowRankConv)):
        return "it is one half of a factorized layer"
    if isinstance(model.get_submodule(owner), (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
        return "the layer around it reads its weight directly"
    return ""


def _thin(layer: nn.Module, rank: int, path: str) -> nn.Module:
    grids = {name: tensor.grid for name, tensor in sources(layer).items() if isinstance(tensor, CodedTensor)}
    input_grid = layer._modules.get("input_grid")
    decode_(layer)
    thin: LowRankLinear | LowRankConv
    thin = LowRankLinear.of(layer, rank) if isinstance(layer, nn.Linear) else LowRankConv.of(layer, rank)  # type: ignore[arg-type]
    if "weight" in grids:
        for name in ("down", "up"):
            weight = Weight(f"{path}.{name}", "weight", thin.get_submodule(name))
            grid = grids["weight"]
            grid = grid.suited(weight.read()) if isinstance(grid, Affine) else grid  # its groups may not divide the thin layer
            weight.code_(grid.encode(weight.read(), weight.path))
        if input_grid is not None:
            thin.down.input_grid = input_grid
    if "bias" in grids:
        bias = Weight(f"{path}.up", "bias", thin.up)
        bias.code_(grids["bias"].encode(bias.read(), bias.path))
    return thin


def _lost(matrix: Tensor, rank: int) -> float:
    squares = torch.linalg.svdvals(matrix.double()).square()
    return float(squares[rank:].sum() / squares.sum()) if float(squares.sum()) else 0.0
