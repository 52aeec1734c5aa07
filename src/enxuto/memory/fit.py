"""Does it fit? The arena and the weights of a network against the RAM and flash of a device, with words on what is missing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.export import ExportedProgram

from enxuto.batches import Batch
from enxuto.checks import named, whole
from enxuto.errors import RangeError
from enxuto.layers.coded import weight_names
from enxuto.memory.arena import Arena, lay_out
from enxuto.memory.boards import Device, find_device
from enxuto.memory.boards import devices as known_devices
from enxuto.memory.flow import Flow, blocks, live_bytes, peak_bytes
from enxuto.memory.order import better_order
from enxuto.memory.read import Bits, exported, flow_of, folded_norms, plain
from enxuto.sizes import format_bytes

FLOAT_BYTES = 4


@dataclass(frozen=True, eq=False)
class Layout:
    """The memory of one inference, whatever the device: the arena in the better of two orders, and the weights.

    Units: bytes. `given_peak_bytes` is the peak of the order in which the model was written, `arena.lower_bound_bytes` that of
    the order used, aligned. `largest_weight_bytes` is what the largest layer's weights take.
    """

    flow: Flow
    arena: Arena
    bits: Bits
    given_peak_bytes: int
    weights_bytes: int
    largest_weight_bytes: int

    @property
    def reordered(self) -> bool:
        """True where another order of the operations made the arena smaller."""
        return self.arena.lower_bound_bytes < self.given_peak_bytes

    @cached_property
    def peak_step(self) -> int:
        """The step at which most is alive; the first of several."""
        live = live_bytes(self.flow)
        return live.index(max(live))

    @property
    def peak_path(self) -> str:
        """The layer that runs when most is alive."""
        return self.flow.operations[self.peak_step].path if self.flow.operations else ""

    @property
    def peak_words(self) -> str:
        """What is alive then, "2 maps of 16x28x28 and 1 vector of 10"."""
        shapes = {buffer.name: buffer.shape for buffer in self.flow.buffers}
        alive = [b for b in blocks(self.flow) if b.start <= self.peak_step <= b.end]
        counts = Counter(_shape_words(shapes[b.buffers[0]]) for b in sorted(alive, key=lambda b: -b.size_bytes) if b.size_bytes)
        return " and ".join(
            f"{count} {kind}{'s' * (count > 1)} of {size}" if size else kind for (kind, size), count in counts.items()
        )


@dataclass(frozen=True, eq=False)
class Fit:
    """Whether a network fits a device, what it needs there, and why.

    Units: bytes. `ram_bytes` is the arena, the reserve of the device, `decode_bytes`, and the weights where the device loads
    them; `flash_bytes` the weights or the file, and the reserve.
    """

    device: Device
    layout: Layout
    ram_bytes: int
    flash_bytes: int
    decode_bytes: int
    help: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True where neither RAM nor flash is short."""
        return self.ram_bytes <= self.device.ram_bytes and self.flash_bytes <= self.device.flash_bytes

    @property
    def lower_bound_bytes(self) -> int:
        """No arena for this network can be smaller in the order used."""
        return self.layout.arena.lower_bound_bytes

    @property
    def peak_path(self) -> str:
        """The layer at which most memory is alive."""
        return self.layout.peak_path

    @property
    def reordered(self) -> bool:
        """True where another order of the operations helped."""
        return self.layout.reordered

    @property
    def verdict(self) -> str:
        """One sentence: that it fits and with how much, or what is missing and what would help."""
        ram = f"{format_bytes(self.ram_bytes)} of {format_bytes(self.device.ram_bytes)} RAM"
        flash = f"{format_bytes(self.flash_bytes)} of {format_bytes(self.device.flash_bytes)} flash"
        if self.fits:
            order = ", in another order of its layers" if self.reordered else ""
            return f"fits {self.device.name}{order}: needs {ram} and {flash}"
        reasons = []
        if self.ram_bytes > self.device.ram_bytes:
            taken = [f"layer {self.layout.peak_path or 'of the inputs'} holds {self.layout.peak_words}"]
            if self.device.weights_in == "ram":
                taken.append(f"weights take {format_bytes(self.layout.weights_bytes)}")
            if self.decode_bytes:
                taken.append(f"decoding the largest layer takes {format_bytes(self.decode_bytes)}")
            reasons.append(f"needs {ram}: {', '.join(taken)}")
        if self.flash_bytes > self.device.flash_bytes:
            reasons.append(
                f"needs {flash}: the program takes {format_bytes(self.device.flash_reserve_bytes)}, the rest is the network"
            )
        return "; ".join([f"does not fit {self.device.name}", *reasons, *self.help])


def fits(
    model: nn.Module,
    batch: Batch,
    device: str = "cortex-m4",
    *,
    bits: Bits = 8,
    file_bytes: int | None = None,
    devices: str | os.PathLike[str] | Mapping[str, Device] | None = None,
) -> Fit:
    """Whether one sample at a time runs on a device with a static arena, in int8 (`bits=8`) or fp32 (`bits=32`).

    Flash: `file_bytes` (of your .nxt, .onnx or .tflite file) where given; otherwise with 32 bits 4 bytes a value, with 8 bits 1
    byte for each weight of a matrix or convolution, 4 for the scale of each of its outputs and 4 for any other value; a batch
    norm behind a convolution counts as its bias. A file smaller than that is coded, and cannot be read in place: RAM for the
    decoded weights of the largest layer is added. `devices` is a file of your own devices, or what `devices()` returned.
    Raises: TargetError for an unknown device; RangeError for other bits or a size that is none; ExportError when the model
    cannot be followed; TaskError for a broken file of devices, or when the model fails on the batch.
    """
    known = devices if isinstance(devices, Mapping) else known_devices(devices)
    target = find_device(device, known)
    if file_bytes is not None and not whole(file_bytes, 1):
        raise RangeError(f"{named('file_bytes', file_bytes)} is no size of a file in bytes; use enxuto.sizes.file_bytes(path).")
    model = plain(model)
    program = exported(model, batch)
    answer = _fit(_layout(program, model, bits), target, file_bytes)
    if answer.fits:
        return answer
    smaller = _layout(program, model, 8) if bits == 32 else None
    return _fit(answer.layout, target, file_bytes, _help(answer, smaller, known, file_bytes))


def layout_of(model: nn.Module, batch: Batch, *, bits: Bits = 8) -> Layout:
    """The arena and the weights of one inference of one sample. Raises: as `fits`."""
    model = plain(model)
    return _layout(exported(model, batch), model, bits)


def _layout(program: ExportedProgram, model: nn.Module, bits: Bits) -> Layout:
    given = flow_of(program, bits=bits).aligned()
    other = better_order(given)
    arenas = [(lay_out(flow), flow) for flow in ([given] if other is given else [given, other])]
    best, flow = min(arenas, key=lambda pair: pair[0].size_bytes)
    total, largest = _weight_bytes(model, bits, folded_norms(program))
    return Layout(flow, best, bits, peak_bytes(given), total, largest)


def _fit(found: Layout, device: Device, file_bytes: int | None, help_: tuple[str, ...] = ()) -> Fit:
    stored = found.weights_bytes if file_bytes is None else file_bytes
    decode = found.largest_weight_bytes if stored < found.weights_bytes and device.weights_in == "flash" else 0
    loaded = found.weights_bytes if device.weights_in == "ram" else 0
    ram = found.arena.size_bytes + device.reserve_bytes + loaded + decode
    return Fit(device, found, ram, stored + device.flash_reserve_bytes, decode, help_)


def _help(answer: Fit, smaller: Layout | None, known: Mapping[str, Device], file_bytes: int | None) -> tuple[str, ...]:
    """What would make it fit, most useful first."""
    words, device = [], answer.device
    if smaller is not None:
        other = _fit(smaller, device, None)
        enough = "and fits" if other.fits else "which is still too much"
        needs = f"{format_bytes(other.ram_bytes)} RAM and {format_bytes(other.flash_bytes)} flash"
        words.append(f"int8 would need {needs}, {enough}")
    elif answer.ram_bytes > device.ram_bytes:
        words.append(
            f"fewer channels around {answer.peak_path or 'the inputs'} (PruneChannels) or a smaller input would need less RAM"
        )
    if answer.flash_bytes > device.flash_bytes:
        words.append("pruning, fewer bits or a coded .nxt file would need less flash")
    larger = [each for each in known.values() if _fit(answer.layout, each, file_bytes).fits]
    if larger:
        words.append(f"{min(larger, key=lambda each: each.ram_bytes).name} has room for it as it is")
    return tuple(words)


def _weight_bytes(model: nn.Module, bits: Bits, folded: set[str]) -> tuple[int, int]:
    """Bytes of all weights, each tensor once, and of the largest layer's."""
    seen: set[int] = set()
    sizes = [0]
    for path, module in model.named_modules():
        matrices = set(weight_names(module))
        size = 0
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or id(tensor) in seen or not tensor.is_floating_point():
                continue
            seen.add(id(tensor))
            if path in folded:
                size += FLOAT_BYTES * tensor.numel() if name == "running_mean" else 0  # as many as the bias that takes its place
            elif bits == 8 and name in matrices:
                outputs = tensor.shape[1] if isinstance(module, nn.modules.conv._ConvTransposeNd) else tensor.shape[0]
                size += tensor.numel() + FLOAT_BYTES * outputs
            else:
                size += FLOAT_BYTES * tensor.numel()
        sizes.append(size)
    return sum(sizes), max(sizes)


def _shape_words(shape: tuple[int, ...]) -> tuple[str, str]:
    inner = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
    if not shape:
        return "scratch", ""
    return ("vector" if len(inner) <= 1 else "map"), "x".join(map(str, inner)) or "1"
