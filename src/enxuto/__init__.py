"""enxuto makes trained PyTorch networks physically small and fast, and proves it.

The public names, resolved when they are first used: `import enxuto` alone loads neither torch nor anything heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from enxuto.extras import explained

if TYPE_CHECKING:
    from enxuto import memory
    from enxuto.allocation import allocate
    from enxuto.artifact.save import ledger, load
    from enxuto.compression import compress
    from enxuto.errors import Error
    from enxuto.layers.coded import keep_decoded_
    from enxuto.losses import Sensitivity
    from enxuto.recipe import run
    from enxuto.records import Change, Record
    from enxuto.result import Result
    from enxuto.sensitivities import sensitivity
    from enxuto.steps.channels import PruneChannels
    from enxuto.steps.equalize import Equalize
    from enxuto.steps.factorize import Factorize
    from enxuto.steps.fold import Fold
    from enxuto.steps.prune import Prune
    from enxuto.steps.quantize import Quantize
    from enxuto.steps.recover import Recover
    from enxuto.steps.regrow import Regrow
    from enxuto.steps.repair import Repair
    from enxuto.steps.share import Share
    from enxuto.steps.tune import Tune
    from enxuto.task import Target, Task
    from enxuto.training.invention import invent
    from enxuto.training.prepare import convert, prepare
    from enxuto.training.rewind import rewind
    from enxuto.training.terms import table as terms
    from enxuto.training.tighten import Schedule
    from enxuto.verbs import evaluate, export, report, save

_HOMES = {
    "Change": "records",
    "Equalize": "steps.equalize",
    "Error": "errors",
    "Factorize": "steps.factorize",
    "Fold": "steps.fold",
    "Prune": "steps.prune",
    "PruneChannels": "steps.channels",
    "Quantize": "steps.quantize",
    "Record": "records",
    "Recover": "steps.recover",
    "Regrow": "steps.regrow",
    "Repair": "steps.repair",
    "Result": "result",
    "Schedule": "training.tighten",
    "Sensitivity": "losses",
    "Share": "steps.share",
    "Target": "task",
    "Task": "task",
    "Tune": "steps.tune",
    "allocate": "allocation",
    "compress": "compression",
    "convert": "training.prepare",
    "evaluate": "verbs",
    "export": "verbs",
    "invent": "training.invention",
    "keep_decoded_": "layers.coded",
    "ledger": "artifact.save",
    "load": "artifact.save",
    "prepare": "training.prepare",
    "report": "verbs",
    "rewind": "training.rewind",
    "run": "recipe",
    "save": "verbs",
    "sensitivity": "sensitivities",
}

__all__ = [
    "Change",
    "Equalize",
    "Error",
    "Factorize",
    "Fold",
    "Prune",
    "PruneChannels",
    "Quantize",
    "Record",
    "Recover",
    "Regrow",
    "Repair",
    "Result",
    "Schedule",
    "Sensitivity",
    "Share",
    "Target",
    "Task",
    "Tune",
    "allocate",
    "compress",
    "convert",
    "evaluate",
    "export",
    "invent",
    "keep_decoded_",
    "ledger",
    "load",
    "memory",
    "prepare",
    "report",
    "rewind",
    "run",
    "save",
    "sensitivity",
    "terms",
]


_ROOMS = {"memory": "memory", "terms": "training.terms.table"}
"""Modules with names of their own, as in `ex.memory.predict`, and where they are."""
_GUESTS = {"lightning": "lightning", "transformers": "transformers"}
"""The same, for packages that have to be installed besides: no names that `import *` would ask for."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS | _GUESTS:
        return importlib.import_module(f"enxuto.{(_ROOMS | _GUESTS)[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'enxuto' has no attribute {name!r}; its names are {', '.join(__all__)}")
    with explained(f"enxuto.{name}"):
        value = getattr(importlib.import_module(f"enxuto.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
