"""What one step is: a forward pass alone, or forward, backward and update, in the precision asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, leaves
from enxuto.calls import call
from enxuto.checks import named, whole
from enxuto.errors import RangeError, TaskError

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "bf16-true": torch.bfloat16}

INFERENCE, TRAINING = "inference", "training step"

Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Pass:
    """What runs: an inference of `batch` (inputs alone), or with `loss` a training step of `batch`, a pair (inputs, targets).

    `optimizer` makes an optimizer from parameters, as torch.optim.Adam does. Precisions are lightning-fabric's: "mixed" casts
    inside the forward pass (autocast), "true" casts weights and inputs. `accumulation` passes add up their gradients before
    an update, each of the whole batch given.
    Raises: RangeError for an unknown precision; TaskError when a training batch is no pair, or what should be called cannot be.
    """

    loss: Loss | None = None
    optimizer: MakeOptimizer | None = None
    precision: Precision = "32-true"
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RangeError(f"precision={self.precision!r} is not known; use one of {', '.join(map(repr, PRECISIONS))}.")
        for name in ("loss", "optimizer"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TaskError(f"{name} is {type(getattr(self, name)).__name__}, not a function or class; pass F.cross_entropy.")
        if not whole(self.accumulation, 1):
            raise RangeError(f"{named('accumulation', self.accumulation)} is no number of passes; use 1 or more.")
        if self.optimizer is not None and self.loss is None:
            raise TaskError("an optimizer was given but no loss; a training step needs loss=, as in F.cross_entropy.")

    @property
    def name(self) -> str:
        """What it is called."""
        return INFERENCE if self.loss is None else TRAINING

    def check(self, model: nn.Module, batch: Any) -> None:
        """Raises TaskError when the model is none, or a training step gets something else than a pair (inputs, targets)."""
        if not isinstance(model, nn.Module):
            raise TaskError(f"model is {type(model).__name__}, not a torch.nn.Module; pass the network itself.")
        if self.loss is not None and (not isinstance(batch, (tuple, list)) or len(batch) != 2):
            raise TaskError(f"batch is {type(batch).__name__}; with a loss it must be a pair (inputs, targets), as train= gives.")

    def cast(self, tensor: Tensor) -> Tensor:
        """A tensor of the model or the batch in the type it has in this precision."""
        true = self.precision.endswith("true") and self.precision != "32-true"
        return tensor.to(HALF[self.precision]) if true and tensor.is_floating_point() else tensor

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer | None:
        """The optimizer of the parameters that train; None when there is none.

        Raises: TaskError when no parameter trains, or its step needs a closure.
        """
        if self.optimizer is None:
            return None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise TaskError(
                "all parameters of the model have requires_grad=False, so none trains; call requires_grad_(True) on it."
            )
        made = self.optimizer(trained)
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise TaskError(
                f"{type(made).__name__} runs the model in its step, as often as it likes, so that no one step can be foreseen; "
                "use ex.memory.watch around your own loop."
            )
        return made

    def run(self, model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer | None, *, update: bool = True) -> None:
        """One step, or all of it but the update."""
        if self.loss is None:
            with torch.no_grad(), self._autocast(batch):
                call(model, batch)
            return
        inputs, targets = batch
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        for _ in range(self.accumulation):
            with self._autocast(inputs):
                loss = self.loss(call(model, inputs), targets)
            loss.backward()
            del loss
        if optimizer is not None and update:
            optimizer.step()

    def _autocast(self, batch: Batch) -> AbstractContextManager[Any]:
        if not self.precision.endswith("mixed"):
            return nullcontext()
        device = next((tensor.device.type for tensor in leaves(batch)), "cpu")
        return torch.autocast(device, HALF[self.precision])


def check_device(device: str | None) -> None:
    """Raises TaskError, with torch's own reason, when this machine has no such device."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TaskError(
            f"device={device!r} is not here ({reason}); ask on a machine that has it, or leave device out."
        ) from error


def of_its_own(tensor: Tensor) -> Tensor:
    """The tensor in a storage of its own: a batch is often a slice of a whole data set, which is not the memory of a step."""
    strided = tensor.layout == torch.strided
    return tensor.clone() if strided and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size() else tensor
