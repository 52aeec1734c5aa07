"""Where memory goes and what fits: predict it, record it, watch it, plan within a limit, lay out the arena of a device.

The names are resolved when they are first used: a prediction needs much of torch that training alone does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from enxuto.extras import explained

if TYPE_CHECKING:
    from enxuto.memory.arena import Arena, lay_out
    from enxuto.memory.boards import Device, devices
    from enxuto.memory.checkpoint import checkpoint_, checkpointed
    from enxuto.memory.drawing import draw
    from enxuto.memory.fit import Fit, fits
    from enxuto.memory.flow import Flow
    from enxuto.memory.order import better_order
    from enxuto.memory.planning import Option, Plan, plan
    from enxuto.memory.prediction import predict
    from enxuto.memory.profile import Profile
    from enxuto.memory.read import read_flow
    from enxuto.memory.recording import record
    from enxuto.memory.watching import Watch, watch

_HOMES = {
    "Arena": "arena",
    "Device": "boards",
    "Fit": "fit",
    "Flow": "flow",
    "Option": "planning",
    "Plan": "planning",
    "Profile": "profile",
    "Watch": "watching",
    "better_order": "order",
    "checkpoint_": "checkpoint",
    "checkpointed": "checkpoint",
    "devices": "boards",
    "draw": "drawing",
    "fits": "fit",
    "lay_out": "arena",
    "plan": "planning",
    "predict": "prediction",
    "read_flow": "read",
    "record": "recording",
    "watch": "watching",
}

__all__ = [
    "Arena",
    "Device",
    "Fit",
    "Flow",
    "Option",
    "Plan",
    "Profile",
    "Watch",
    "better_order",
    "checkpoint_",
    "checkpointed",
    "devices",
    "draw",
    "fits",
    "lay_out",
    "plan",
    "predict",
    "read_flow",
    "record",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'enxuto.memory' has no attribute {name!r}; its names are {', '.join(__all__)}")
    with explained(f"enxuto.memory.{name}"):
        value = getattr(importlib.import_module(f"enxuto.memory.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
