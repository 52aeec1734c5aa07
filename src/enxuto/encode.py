"""Putting the tensors of a model on a grid, and saying what it cost: what Quantize and Share have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, batch_size
from enxuto.errors import NothingChangedError
from enxuto.evidence.histograms import Ranges, Span, fitted_ranges
from enxuto.evidence.outputs import Answers
from enxuto.functional.affine import PIECE, activation_grid
from enxuto.layers.activations import ActivationGrid
from enxuto.layers.affine import Affine
from enxuto.layers.coded import Coded, weight_names
from enxuto.layers.computed import free
from enxuto.layers.grids import CodedTensor, Grid
from enxuto.layers.rehearsal import Rehearsal
from enxuto.layers.traits import traits
from enxuto.records import Change
from enxuto.select import Patterns, matches
from enxuto.sites import Site, parameters, sites, together
from enxuto.surgery import borrowed
from enxuto.task import Task

WHY_KEPT = "no more than the grid has codes"
HARMLESS_BITS = 8
HARMLESS = 0.02  # of the outputs' spread, by the biases in so many bits
LEAST_SAMPLES = 8  # of a batch: fewer may lie close together by chance, and their spread is no measure


def code_weights_(
    chosen: Sequence[Site],
    grid: Grid,
    *,
    together: bool = False,
    rounded: Callable[[Site, CodedTensor], CodedTensor] | None = None,
) -> tuple[list[Change], list[Change]]:
    """Codes every chosen weight, in all layers that hold it, in place; `together` with one scale for all.

    `rounded` gives other codes on the grid that was fitted; without it each value has the nearest.
    What was done, and what was left: a weight that shares no more values than the grid has codes keeps them, as a scale for
    each channel would make other values of one.
    Raises: ShapeError when one of them does not fit the grid; the model, a copy, is of no use then.
    """
    kept = [weight for weight in chosen if _stays(weight.tensor, grid)]
    fresh = [weight for weight in chosen if weight not in kept]
    changes = []
    for weight, tensor in zip(fresh, _encoded(((weight.read(), weight.path) for weight in fresh), grid, together), strict=True):
        values, before = weight.read(), weight.tensor
        if rounded is not None:
            tensor = rounded(weight, tensor)
        weight.code_(tensor)
        lost = f"; no longer {before.symbols} shared values" if isinstance(before, CodedTensor) and before.grid.shares else ""
        changes.append(Change(weight.key, _words(grid, tensor), _error(values, tensor()) + lost))
    return changes, [Change(weight.key, f"keeps its {_values(weight)} shared values", WHY_KEPT) for weight in kept]


def input_ranges(model: nn.Module, batches: Iterable[Batch], layers: Patterns, ranges: Ranges) -> dict[str, Span]:
    """The ranges of the inputs of the layers that integer runtimes read as 8 bits, by path.

    Raises: TaskError when the model fails on a batch or gives values that are not finite.
    """
    chosen = {path for path, module in model.named_modules() if matches(path, layers) and traits(module).product}
    return fitted_ranges(model, batches, ranges, chosen)


def round_inputs_(model: nn.Module, ranges: Mapping[str, Span]) -> list[Change]:
    """Rounds the inputs of coded layers to 8 bits from now on, each within its range."""
    changes = []
    for path, (low, high) in ranges.items():
        module = model.get_submodule(path)
        if isinstance(module, Coded) and "weight" in module.coded:
            module.input_grid = ActivationGrid(*activation_grid(low, high))
            changes.append(Change(path, "input in 8 bits", f"inputs are rounded from {low:.3g} to {high:.3g}"))
    return changes


def check_changed(step: object, changes: Sequence[Change], kept: Sequence[Change], remedy: str) -> None:
    """Raises: NothingChangedError when all weights kept the values they share and nothing else was asked."""
    if not changes:
        named = ", ".join(f"'{change.path}' {change.what}" for change in kept[:5])
        raise NothingChangedError(f"{step} would change nothing: {named}; {remedy}, or leave the step out.")


def _stays(held: object, grid: Grid) -> bool:
    """True for a weight, or its rehearsal, that shares no more values than the grid has codes."""
    named = held.named if isinstance(held, Rehearsal) else held.grid if isinstance(held, CodedTensor) else None
    return named is not None and named.shares and named.bits <= grid.bits


def _values(weight: Site) -> int:
    return weight.tensor.symbols if isinstance(weight.tensor, CodedTensor) else int(weight.read().unique().numel())


def _words(asked: Grid, tensor: CodedTensor) -> str:
    """How a weight was coded, and where its grid is another than was asked for, why."""
    other = asked.unsuited(torch.empty(tensor.shape, device="meta"))
    return f"{tensor.grid.bits} bits, {tensor.symbols} values{other and f', {other}'}"


def rehearse_on_(model: nn.Module, layers: Patterns, grid: Grid, *, now: bool, together: bool = False) -> None:
    """Lets the float leaves of the chosen weights be seen on the grid, fitted to them as they are; later, unless `now`."""
    fresh = [(weight, leaf) for weight in sites(model, layers) if _waits(leaf := weight.rehearsal_(), grid)]
    values = ((leaf.kept().detach(), weight.path) for weight, leaf in fresh)
    for (_, leaf), tensor in zip(fresh, _encoded(values, grid, together), strict=True):
        leaf.see_(tensor, now=now or leaf.grid is not None)


def _waits(leaf: Rehearsal, grid: Grid) -> bool:
    """True for a leaf that this grid has to be fitted to: not seen on it yet, nor on one that it keeps or a later step gave."""
    suited = grid.suited(leaf.leaf)
    return leaf.grid is None if leaf.named == suited else suited not in leaf.passed and not _stays(leaf, grid)


def _encoded(values: Iterable[tuple[Tensor, str]], grid: Grid, together: bool) -> Iterator[CodedTensor]:
    """The codes of each weight, one after the other: with one scale for all, or with a grid of its own."""
    if together:
        yield from grid.encode_together(list(values))
        return
    for value, path in values:
        yield grid.suited(value).encode(value, path)


def code_biases_(
    model: nn.Module, layers: Patterns, bits: int, given: nn.Module, task: Task
) -> tuple[list[Change], list[Change]]:
    """Codes the one-dimensional parameters of weighted layers and norms, one scale each; and of those left in float, why.

    In 8 bits, which are meant to lose nothing, one stays in float that alone would move the outputs of the `given` network too
    far, as where a bias of a thousand stands beside small ones; fewer bits are taken as they are asked for.
    """
    harm = _harm(given, layers, bits, task) if bits == HARMLESS_BITS else {}
    changes = _coded_biases(model, layers, bits, harm)
    return changes, [
        Change(key, "left in float", f"{bits} bits would move the outputs by {moved:.1%} of their spread")
        for key, moved in harm.items()
    ]


def _harm(given: nn.Module, layers: Patterns, bits: int, task: Task) -> dict[str, float]:
    """How far single biases in so many bits move the outputs on a batch, where that is too far."""
    if batch_size(task.sample) < LEAST_SAMPLES:
        return {}
    answers = Answers(given, [task.sample], task.outputs)

    def moved(harm: Collection[str]) -> float:
        probe = borrowed(given)
        _coded_biases(probe, layers, bits, harm)
        return answers.moved(probe)

    if moved(()) <= HARMLESS:
        return {}
    tied = [[place.key for place in same] for same in together(_biases(given, layers)).values()]
    every = {key for keys in tied for key in keys}
    alone = [(keys, moved(every - {*keys})) for keys in tied]
    return {key: each for keys, each in alone if HARMLESS < each < math.inf for key in keys}


def _coded_biases(model: nn.Module, layers: Patterns, bits: int, left: Collection[str]) -> list[Change]:
    changes = []
    shared: dict[Tensor | nn.Module, CodedTensor] = {}
    for bias in _biases(model, layers):
        values, held = bias.read(), bias.tensor
        if bias.key in left:
            continue
        if isinstance(held, CodedTensor) and held.grid == _bias_grid(values, bits):
            continue
        tensor = shared.setdefault(held, _bias_grid(values, bits).encode(values, bias.key))
        bias.code_(tensor)
        changes.append(Change(bias.key, f"{tensor.grid.bits} bits", _error(values, tensor())))
    return changes


def rehearse_biases_on_(model: nn.Module, layers: Patterns, bits: int, *, now: bool) -> None:
    """Lets float leaves of the biases be seen on their grids; later, unless `now`. Their zeros learn, but where a mask was."""
    shared: dict[Tensor | nn.Module, Rehearsal] = {}
    for bias in _biases(model, layers):
        held = bias.tensor
        if not isinstance(held, Rehearsal) and held not in shared:
            learns = not isinstance(held, Tensor) or held.requires_grad
            shared[held] = Rehearsal(bias.read(), keep=free(bias.module, bias.name, bias.read()), learns=learns)
        leaf = held if isinstance(held, Rehearsal) else shared[held]
        bias.code_(leaf)
        grid = _bias_grid(leaf.leaf.detach(), bits)
        if _waits(leaf, grid):
            leaf.see_(grid.encode(leaf.leaf.detach(), bias.key), now=now or leaf.grid is not None)


def _biases(model: nn.Module, layers: Patterns) -> list[Site]:
    """Every place of what has one dimension in weighted layers and norms."""
    return [
        site
        for site in parameters(model)
        if matches(site.path, layers)
        and (weight_names(site.module) or traits(site.module).norm or traits(site.module).bias == "")
        and len(site.shape) == 1
        and site.shape[0]
        and site.name not in weight_names(site.module)
    ]


def _bias_grid(values: Tensor, bits: int) -> Affine:
    """One scale for all; one bit has no code for zero, which biases often are: those get two."""
    return Affine(2 if bits == 1 and bool((values == 0).any()) else bits, "tensor")


def _error(values: Tensor, coded: Tensor) -> str:
    power = noise = 0.0
    for few, those in zip(values.flatten().split(PIECE), coded.flatten().split(PIECE), strict=True):
        power += float(few.float().square().sum())
        noise += float((those.float() - few.float()).square().sum())
    return f"relative error {(noise / power) ** 0.5 if power else 0.0:.2%}"
