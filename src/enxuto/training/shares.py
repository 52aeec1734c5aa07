"""One training in several processes: each takes its part of every batch, and what comes out is what one process would give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto import world
from enxuto.batches import parts, samples
from enxuto.errors import RangeError
from enxuto.training.examples import Example
from enxuto.training.lone import lone_values


class Shares:
    """Cuts batches, and puts together again what became of the parts. With one process, a batch is its own part.

    Raises: RangeError when another number of devices was asked for than there are processes.
    """

    def __init__(self, devices: int = 1) -> None:
        self.size, self.rank = world.size(), world.rank()
        if devices not in (1, -1, self.size):
            raise RangeError(
                f"devices={devices} asks for as many processes, and there {'is' if self.size == 1 else 'are'} {self.size}; start "
                f"the script by torchrun --nproc-per-node={devices}, which devices=1 takes as it finds it."
            )
        self.whole = True  # this process has all of the batch, and so has every other

    def part(self, batch: Example) -> tuple[Example, float]:
        """This process's part, and what it counts in the mean of all. A batch with fewer samples than processes stays whole."""
        if self.size == 1:
            return batch, 1.0
        given = samples(batch)
        self.whole = given < self.size
        if self.whole:
            return batch, 1.0
        own = parts(batch, self.size)[self.rank]
        return own, samples(own) * self.size / given

    def loss(self, told: float) -> float:
        """The mean of what each process had."""
        if self.size == 1:
            return told
        mean = torch.tensor([told], dtype=torch.float64)
        world.mean_([mean])
        return float(mean)

    @torch.no_grad()
    def mean_(self, parameters: Iterable[Tensor]) -> None:
        """The gradients are those of the whole batch, in every process."""
        if self.size == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        met = torch.tensor([float(parameter.grad is not None) for parameter in learning])
        world.mean_([met])
        for parameter, share in zip(learning, met.tolist(), strict=True):
            if share and parameter.grad is None:  # a layer that only samples of other processes went through
                parameter.grad = torch.zeros_like(parameter)
        world.mean_(parameter.grad for parameter in learning if parameter.grad is not None)

    @contextmanager
    def norms(self, model: nn.Module) -> Iterator[list[int]]:
        """Batch norms see the whole batch. Yields a list that has grown where one got a single value a channel."""
        if self.size == 1:
            with lone_values(model) as seen:
                yield seen
            return
        seen = []
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            vars(norm)["forward"] = partial(self._normed, norm, norm.forward, seen)
        try:
            yield seen
        finally:
            for norm in norms:
                del vars(norm)["forward"]

    def _normed(self, norm: _BatchNorm, plain: Callable[[Tensor], Tensor], seen: list[int], given: Tensor) -> Tensor:
        """Source: Ioffe, Szegedy 2015, "Batch normalization", algorithm 1, over the samples of all processes."""
        if not norm.training and norm.running_mean is not None:
            return plain(given)
        if self.whole and (given.numel() > given.shape[1] or norm.running_mean is None):
            return plain(given)
        if self.whole:
            seen.append(id(norm))
            return functional.batch_norm(given, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        axes = [axis for axis in range(given.ndim) if axis != 1]
        values = given.float()
        here = torch.full((1,), values.numel() / values.shape[1], device=values.device)
        sums = _summed(torch.cat([values.sum(axes), here]))
        count = int(sums[-1])
        shape = [-1 if axis == 1 else 1 for axis in range(given.ndim)]
        mean = sums[:-1] / count
        apart = values - mean.view(shape)
        variance = _summed(apart.square().sum(axes)) / count
        _follow_(norm, mean.detach(), variance.detach() * count / max(1, count - 1))
        made = apart * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.affine:
            made = made * norm.weight.view(shape) + norm.bias.view(shape)
        return made.to(given.dtype)


@torch.no_grad()
def _follow_(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """The running statistics take in those of a batch."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


def _summed(tensor: Tensor) -> Tensor:
    return _Summed.apply(tensor)  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        with world.together("add up what their batch norms saw"):
            distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        with world.together("add up what their batch norms saw"):
            distributed.all_reduce(total)
        return total
