"""What a student is at one moment of its training, to be put back later: what learns, buffers, and how leaves are seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.layers.rehearsal import Rehearsal

UNSAID = {*vars(nn.Module()), "_known"}  # attributes of a leaf that hold nothing of its own


@dataclass(frozen=True, eq=False)
class Snapshot:
    """By path: parameters that learn, buffers (None where a layer has none now), and the plain attributes of leaves."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Mapping[str, Tensor | None]]
    leaves: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, student: nn.Module, *, copy: bool = True) -> Snapshot:
        """The student now: copies in the memory of the processor, or with `copy=False` its own tensors, to write to a file."""

        def taken(value: Any) -> Any:
            return value.detach().to("cpu", copy=True) if copy and isinstance(value, Tensor) else value

        modules = dict(student.named_modules())
        return cls(
            {path: taken(each.detach()) for path, each in student.named_parameters() if each.requires_grad},
            {path: {name: taken(each) for name, each in module._buffers.items()} for path, module in modules.items()},
            {
                path: {name: taken(each) for name, each in vars(module).items() if name not in UNSAID}
                for path, module in modules.items()
                if isinstance(module, Rehearsal)
            },
        )

    @torch.no_grad()
    def put_(self, student: nn.Module) -> None:
        """The student is as it was then. Buffers of leaves become those of the snapshot themselves: put it once.

        Raises: KeyError, AttributeError or RuntimeError for a student of another structure.
        """
        own = dict(student.named_parameters())
        for path, value in self.parameters.items():
            own[path].copy_(value)
        device = next((each.device for each in own.values()), torch.device("cpu"))

        def placed(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        for path, buffers in self.buffers.items():
            module = student.get_submodule(path)
            for name, each in buffers.items():
                held = module._buffers[name]
                if path not in self.leaves and held is not None and each is not None and held.shape == each.shape:
                    held.copy_(each)  # others hold it too, as an average does
                else:
                    module._buffers[name] = placed(each)
        for path, attributes in self.leaves.items():
            for name, value in attributes.items():
                setattr(student.get_submodule(path), name, placed(value))
