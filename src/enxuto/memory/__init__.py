"""Where the memory of a network goes: the arena of an inference, and the devices it fits."""

from enxuto.memory.arena import Arena, lay_out, place
from enxuto.memory.devices import Device, devices
from enxuto.memory.fit import Fit, Layout, fits, layout_of
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
    "better_order",
    "blocks",
    "devices",
    "fits",
    "lay_out",
    "layout_of",
    "live_bytes",
    "peak_bytes",
    "place",
    "read_flow",
]
