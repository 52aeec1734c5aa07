"""Calling a model: however a batch holds its arguments, in eval mode, alike each time, and what to say when it fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, arguments, leaves, mapped
from enxuto.errors import Error, GradientError, ProcessError, TaskError
from enxuto.outputs import output_tensors


def call(model: nn.Module, batch: Batch) -> Any:
    """What the model returns for a batch, however the batch holds its arguments."""
    positional, named = arguments(batch)
    return model(*positional, **named)


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: a coded one may have buffers alone. The processor for one without tensors."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def attempt(model: nn.Module, batch: Batch, place: str, original: nn.Module | None = None) -> Any:
    """`call`, for batches that a user brought: `place` says which one it is, `original` is what the model was made from.

    Raises: TaskError when the batch is none or the model fails on it, whatever the model raises; GradientError where it runs
    without gradients.
    """
    if isinstance(batch, str) or not isinstance(batch, (Tensor, Sequence, Mapping)):
        raise TaskError(
            f"{place} is {type(batch).__name__}; a batch is a tensor, a tuple of arguments or a dict of them, without labels "
            "(for an array a write torch.as_tensor(a))."
        )
    check_filled(batch, place)
    try:
        return call(model, batch)
    except ProcessError:
        raise
    except Exception as error:
        shape = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
        said = f"the model fails on {place} ({shape}): {type(error).__name__}: {error}"
        if torch.is_grad_enabled() and _runs(model, batch, as_it_is=True):
            raise GradientError(f"{said}; without gradients it runs on it, and {WITH_GRADIENTS}.") from error
        raise TaskError(f"{said}; {_remedy(model, batch, original)}.") from error


WITH_GRADIENTS = (
    "what is asked for needs them: take .numpy(), inference_mode, what works in place and functions without backward out of its "
    "forward, or use what needs none (Quantize(bits=...), Share, Prune by magnitude)"
)


@contextmanager
def differentiating(place: str) -> Iterator[None]:
    """Where gradients of what a model gives are computed. Raises: GradientError when torch cannot, or inside
    `torch.inference_mode`, where nothing has any."""
    if torch.is_inference_mode_enabled():
        raise GradientError("this was called inside torch.inference_mode, where nothing has gradients; call it outside.")
    try:
        yield
    except Error:
        raise
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        said = str(error).partition(". Hint")[0].partition("\n")[0].rstrip(".")
        raise GradientError(f"no gradients go through the model on {place}: {said}; {WITH_GRADIENTS}.") from error


def check_filled(batch: Batch, place: str) -> None:
    """Raises TaskError for a batch that holds a tensor without values."""
    for tensor in leaves(batch):
        if not tensor.numel():
            raise TaskError(
                f"a tensor {tuple(tensor.shape)} without values is in {place}; give at least one sample in each batch."
            )


def _remedy(model: nn.Module, batch: Batch, original: nn.Module | None) -> str:
    """What would help: other inputs only where nothing tells that these are right."""
    if torch.is_grad_enabled() and _runs(model, batch):
        return "it runs on it in eval mode, as its forward must also in training"
    if original is not None and _runs(original, batch):
        return "the network it was made from runs on it, so what was done to that since is what fails: leave that out"
    return "batches must hold inputs alone: a tensor, a tuple of arguments or a dict of them"


def _runs(model: nn.Module, batch: Batch, *, as_it_is: bool = False) -> bool:
    """True where it does without gradients, in eval mode or `as_it_is`."""
    try:
        with torch.no_grad() if as_it_is else evaluating(model):
            call(model, mapped(batch, lambda tensor: tensor.to(device_of(model))))
    except Exception:
        return False
    return True


def finite_answers(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Any]:
    """What the model returns for each calibration batch.

    Raises: TaskError, with the number of the batch, when the model fails on one or its first tensor is not finite.
    """
    for number, batch in enumerate(batches, 1):
        place = f"calibration batch {number}"
        outputs = attempt(model, batch, place)
        check_finite_answer(outputs, place)
        yield outputs


def check_finite_answer(outputs: Any, place: str) -> None:
    """Raises TaskError when the first tensor is not finite."""
    first = first_tensor(outputs)
    if first.is_floating_point() and not bool(torch.isfinite(first).all()):
        raise TaskError(f"the model gives NaN or infinite outputs on {place}; check weights and inputs, or leave it out.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards every module has the mode it had.

    Attention goes the long way: torch's shortcut fills padded rows with zeros, which no exported file does.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with slow_attention(), torch.no_grad():
            yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def slow_attention() -> Iterator[None]:
    """Attention as its parts: torch's shortcut through transformer layers hides the layers inside, and holds padded rows in
    nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def repeatable(model: nn.Module) -> Iterator[None]:
    """A forward that draws random numbers draws the same each time, and nobody else's go on from there.

    Only the devices that hold the model are asked: to ask all would start every one of the machine.
    """
    held = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cuda"}
    devices = sorted(device.index for device in held)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(0)
        yield


def float_outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The outputs of a model that are no whole numbers. Raises: TaskError when it fails."""
    with evaluating(model):
        outputs = attempt(model, batch, "its own sample inputs")
        return [tensor for tensor in output_tensors(outputs).values() if tensor.is_floating_point()]


def first_tensor(outputs: Any) -> Tensor:
    """The first tensor in what a model returned: itself, or the first in a tuple, a list, a dict or a dataclass.

    Raises: TaskError when there is none.
    """
    for tensor in leaves(outputs):
        return tensor
    raise TaskError(f"the model returned {type(outputs).__name__} without a tensor; return a tensor, a tuple or a dict of them.")
