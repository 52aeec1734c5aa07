"""Batches in parts, of as many samples as autograd may hold."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.evidence.samples import in_parts


def test_what_a_forward_pass_holds_is_given_back() -> None:
    """A hook that gave a saved output back as it is would hold the graph that holds it, and nothing ever frees such a ring."""
    held: list[weakref.ref[object]] = []

    class Kept:
        """What a node of the graph holds."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.kept = Kept()
            held.append(weakref.ref(ctx.kept))
            made = 2 * x
            ctx.save_for_backward(made)
            return made

    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            doubled: Tensor = Doubled.apply(super().forward(x))
            return doubled

    assert len(list(in_parts(Net(4, 4), [torch.randn(64, 4)]))) == 1
    gc.collect()
    assert held
    assert not any(each() for each in held)
