"""Slimming: the scales of batch norms become small where a channel matters little."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.errors import LayerError
from enxuto.select import Patterns, matches
from enxuto.task import Task
from enxuto.training.objective import Moment, Term
from enxuto.training.teacher import Teacher
from enxuto.training.terms.between import check_weight


@dataclass(frozen=True)
class Slimming:
    """`weight` times the absolute scales of the chosen batch norms: what is near zero, `PruneChannels` takes out afterwards.

    Raises: RangeError for a weight that is not above 0; LayerError when no batch norm with scales matches.
    Source: Liu et al. 2017, "Learning efficient convolutional networks through network slimming", eq. 1.
    """

    weight: float = 1e-4
    layers: Patterns = "*"

    def __post_init__(self) -> None:
        check_weight(self, self.weight)

    def begin(self, student: nn.Module, task: Task, teacher: Teacher | None) -> Term:
        """The term."""
        norms = [
            module
            for path, module in student.named_modules()
            if isinstance(module, _BatchNorm) and module.affine and matches(path, self.layers)
        ]
        if not norms:
            raise LayerError(
                f"no batch norm with scales matches layers={self.layers!r}, and Slimming makes these small; name one, or use "
                "GroupLasso for networks without."
            )

        def term(moment: Moment) -> Tensor:
            return self.weight * torch.stack([norm.weight.abs().sum() for norm in norms]).sum()

        return term
