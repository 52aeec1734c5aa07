"""Where the memory of a network goes: the arena of an inference, and the devices it fits."""

from enxuto.memory.arena import Arena, arena, place
from enxuto.memory.devices import Device, devices
from enxuto.memory.fit import Fit, Layout, fits, layout
from enxuto.memory.flow import Block, Buffer, Flow, Operation, blocks, live_bytes, peak_bytes
from enxuto.memory.order import better_order
from enxuto.memory.read import read_flow

__all__ = [
    "Arena",
    "Block",
    "Buffer",
    "Device",
    "Fit",
    "Flow",
    "Layout",
    "Operation",
    "arena",
    "better_order",
    "blocks",
    "devices",
    "fits",
    "layout",
    "live_bytes",
    "peak_bytes",
    "place",
    "read_flow",
]
