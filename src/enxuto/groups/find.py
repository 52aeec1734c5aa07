"""From labels to groups: channels that own slices of the same tensors form one group; what is frozen is named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from enxuto.batches import Batch
from enxuto.cut import Group, Slice
from enxuto.evidence.samples import small_batch
from enxuto.groups.ledger import Axis, Ledger
from enxuto.groups.rehearse import rehearse
from enxuto.groups.trace import Trace, Untraceable, trace
from enxuto.groups.zeros import live_channels
from enxuto.records import Change
from enxuto.sites import with_matrices
from enxuto.surgery import to_float

Key = tuple[str, int]
Signature = tuple[tuple[Key, int], ...]
IntArray = npt.NDArray[np.int64]
UNREAD = "no layer with weights reads it"
UNWRITTEN = "no layer makes it"
UNREACHED = "the sample inputs do not reach it"
ALONE = "it is a single channel"
WHOLE = "all channels stay"


@dataclass(frozen=True)
class Groups:
    """What can be cut, and what cannot, with the reason.

    `zeros` has for each group the units that every reader sees as exactly zero, whatever the input.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Change, ...]
    zeros: tuple[frozenset[int], ...]


def find_groups(model: nn.Module, batch: Batch) -> Groups:
    """The groups of a model, in the order of the network, seen from one batch of its inputs; the model is left alone.

    Every group was cut once on a copy, and the outputs compared with those of the model that no longer reads them.
    """
    plain = to_float(model).eval()
    batch = small_batch(plain, batch)
    try:
        traced = trace(plain, batch)
    except Untraceable as error:
        return Groups((), tuple(Change(path, WHOLE, str(error)) for path in with_matrices(plain)), ())
    places = _places(plain)
    found, zeros, frozen, reasons = _assemble(traced, places)
    failed = rehearse(plain, found, batch)
    frozen += [Change(path, WHOLE, why) for group, why in failed for path in group.writers]
    bad = {id(group) for group, _ in failed}
    kept = [(group, zero) for group, zero in zip(found, zeros, strict=True) if id(group) not in bad]
    seen = {path for group in found for path in group.paths} | {change.path for change in frozen}
    frozen += [Change(path, WHOLE, reasons.get(path, UNREACHED)) for path in with_matrices(plain) if path not in seen]
    return Groups(tuple(group for group, _ in kept), tuple(frozen), tuple(zero for _, zero in kept))


def _assemble(traced: Trace, places: Places) -> tuple[list[Group], list[frozenset[int]], list[Change], dict[str, str]]:
    """The groups, the zero units of each, what is frozen, and for every layer the first reason, should it be in neither."""
    ledger = traced.ledger
    _settle_raw(ledger)
    channel, frozen = ledger.components()
    lines = {key: channel[axis.labels.numpy()] for key, axis in ledger.axes.items()}
    kinds = _kinds(ledger, lines, frozen)
    live = live_channels(traced, channel)
    made = [_group([key for key, _ in signature], units, ledger, lines, places) for signature, units in kinds.items()]
    made.sort(key=lambda pair: places.order[pair[0].slices[0].address])
    zeros = [frozenset(index for index, unit in enumerate(units) if unit not in live) for _, units in made]
    reasons: dict[str, str] = {}
    for key, labels in [*((key, axis.labels) for (key, _), axis in ledger.axes.items()), *ledger.raw.items()]:
        why = next((frozen[unit] for unit in np.unique(channel[labels.numpy()]).tolist() if unit in frozen), "")
        for path in places.holders.get(key, ()):
            reasons.setdefault(path, why or UNREAD)
    return [group for group, _ in made], zeros, _frozen_changes(ledger, lines, frozen, places), reasons


def _kinds(ledger: Ledger, lines: Mapping[Key, IntArray], frozen: dict[int, str]) -> dict[Signature, list[int]]:
    """The channels that may be cut, by the tensors they own slices of and how many indices of each; the others are frozen."""
    owners: dict[int, dict[Key, int]] = defaultdict(dict)
    for key, line in lines.items():
        for unit, count in zip(*np.unique(line, return_counts=True), strict=True):
            owners[int(unit)][key] = int(count)
    kinds: dict[Signature, list[int]] = defaultdict(list)
    for unit, owned in owners.items():
        if not any(ledger.axes[key].reads for key in owned):
            frozen.setdefault(unit, UNREAD)
        elif all(ledger.axes[key].reads and not ledger.axes[key].writes for key in owned):
            frozen.setdefault(unit, UNWRITTEN)
        if unit not in frozen:
            kinds[tuple(sorted(owned.items()))].append(unit)
    for units in kinds.values():
        if len(units) == 1:
            frozen[units[0]] = ALONE
    return {signature: units for signature, units in kinds.items() if len(units) > 1}


def _group(
    keys: list[Key], units: list[int], ledger: Ledger, lines: Mapping[Key, IntArray], places: Places
) -> tuple[Group, list[int]]:
    """One group, its units in the order of its first writer."""
    keys = sorted(keys, key=places.rank)
    leading = next((key for key in keys if ledger.axes[key].writes), keys[0])
    wanted = set(units)
    ordered = [int(unit) for unit in dict.fromkeys(lines[leading].tolist()) if unit in wanted]
    number = {unit: index for index, unit in enumerate(ordered)}
    slices = []
    for key in keys:
        path, _, name = key[0].rpartition(".")
        unit_of = np.array([number.get(int(unit), -1) for unit in lines[key]], dtype=np.int64)
        axis = ledger.axes[key]
        slices.append(Slice(path, name, key[1], unit_of, writes=axis.writes, reads=axis.reads))
    return Group(len(ordered), tuple(slices)), ordered


def _settle_raw(ledger: Ledger) -> None:
    """Parameters used element by element: the dimension along which their channels differ becomes an axis."""
    channel, _ = ledger.components()
    for key, labels in ledger.raw.items():
        units = channel[labels.numpy()]
        lines = []
        for dim in range(units.ndim):
            flat = np.moveaxis(units, dim, 0).reshape(units.shape[dim], -1)
            if (flat == flat[:, :1]).all():
                lines.append(dim)
        clash = any((key, dim) in ledger.axes for dim in range(units.ndim))
        if len(lines) != 1 or clash:
            ledger.freeze(labels, f"'{key}' holds its channels in more than one dimension", "")
            continue
        index = tuple(slice(None) if dim == lines[0] else 0 for dim in range(units.ndim))
        ledger.axes[key, lines[0]] = Axis(labels[index])


def _frozen_changes(ledger: Ledger, lines: Mapping[Key, IntArray], frozen: Mapping[int, str], places: Places) -> list[Change]:
    """One line for each module that writes channels that stay."""
    found: dict[str, Change] = {}
    for key in sorted(lines, key=places.rank):
        holders = places.holders[key[0]] if key[0] in places.holders else [key[0].rpartition(".")[0]]
        path = next((writer for writer in ledger.axes[key].writers if writer in holders), holders[0])
        stay = [int(unit) for unit in lines[key] if int(unit) in frozen]
        if ledger.axes[key].writes and stay and path not in found:
            what = WHOLE if len(stay) == len(lines[key]) else f"{len(stay)} of {len(lines[key])} channels stay"
            found[path] = Change(path or key[0], what, frozen[stay[0]])
    return list(found.values())


@dataclass(frozen=True)
class Places:
    """Where tensors are: their order in the network, and the paths of the modules that hold each, by its first name."""

    order: Mapping[str, int]
    holders: Mapping[str, list[str]]

    def rank(self, key: Key) -> tuple[int, int]:
        """Sorts the dimensions of tensors in the order of the network."""
        return self.order[key[0]], key[1]


def _places(model: nn.Module) -> Places:
    order: dict[str, int] = {}
    holders: dict[str, list[str]] = defaultdict(list)
    first: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items(), ("num_features", None)]:
            key = f"{path}.{name}" if path else name
            order.setdefault(key, len(order))
            if tensor is not None:
                holders[first.setdefault(id(tensor), key)].append(path)
    return Places(order, holders)
