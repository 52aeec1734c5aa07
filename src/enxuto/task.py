"""What the user brings (`Task`), wants (`Target`), and what a step leaves behind (`Record`).

Nothing here computes: the pieces are plain data with their checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from enxuto.batches import arguments, leaves, mapped
from enxuto.checks import named, whole, within
from enxuto.copies import copied
from enxuto.errors import RangeError, TargetError, TaskError
from enxuto.layers.computed import without_computed_
from enxuto.layers.state import check_states
from enxuto.outputs import Outputs, check_kinds, output_tensors, said_of
from enxuto.sizes import parse_bytes, parse_fraction

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""Inputs of one call of the model: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""

Evaluate = Callable[[nn.Module], "float | Tensor"]
"""Quality of a model, higher is better: one number, or one value per sample [samples]."""


def call(model: nn.Module, batch: Batch) -> Any:
    """What the model returns for a batch, however the batch holds its arguments."""
    positional, named = arguments(batch)
    return model(*positional, **named)


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: a coded one may have buffers alone. The processor for one without tensors."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def attempt(model: nn.Module, batch: Batch, place: str, original: nn.Module | None = None) -> Any:
    """`call`, for batches that a user brought: `place` says which one it is, `original` is what the model was made from.

    Raises: TaskError when the batch is none or the model fails on it, whatever the model raises.
    """
    if isinstance(batch, str) or not isinstance(batch, (Tensor, Sequence, Mapping)):
        raise TaskError(
            f"{place} is {type(batch).__name__}; a batch is a tensor, a tuple of arguments or a dict of them, without labels "
            "(for an array a write torch.as_tensor(a))."
        )
    try:
        return call(model, batch)
    except Exception as error:
        shape = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
        raise TaskError(
            f"the model fails on {place} ({shape}): {type(error).__name__}: {error}; {_remedy(model, batch, original)}."
        ) from error


def _remedy(model: nn.Module, batch: Batch, original: nn.Module | None) -> str:
    """What would help: other inputs only where nothing tells that these are right."""
    if torch.is_grad_enabled() and _runs(model, batch):
        return "it runs on it in eval mode and without gradients, as its forward must also in training"
    if original is not None and _runs(original, batch):
        return "the network it was made from runs on it, so what was done to that since is what fails: leave that out"
    return "batches must hold inputs alone: a tensor, a tuple of arguments or a dict of them"


def _runs(model: nn.Module, batch: Batch) -> bool:
    try:
        with evaluating(model):
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
        first = first_tensor(outputs)
        if first.is_floating_point() and not bool(torch.isfinite(first).all()):
            raise TaskError(f"the model gives NaN or infinite outputs on {place}; check weights and inputs, or leave it out.")
        yield outputs


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


@dataclass(frozen=True, eq=False)
class Task:
    """A trained model and what is needed to compress it well.

    The least is a model and `calibration`: sample inputs, no labels. `evaluate` gives quality on validation data
    (higher is better; one value per sample makes differences paired). `train` (batches of inputs and targets) and
    `loss(outputs, targets)` let steps recover what they lost. `test` is called once, at the very end. `outputs` says what
    outputs are, where no labels do: "classes" (a score for each), "values" or "ignore", one word for all or a dict by name.
    `memory` ("2 GB") bounds the tensors of a training step, as `compress(memory=)` sets it.
    Raises: TaskError when the model has NaN or infinite weights, fails on its own sample inputs, or nothing was given.
    """

    model: nn.Module
    calibration: Iterable[Batch] = field(kw_only=True)
    evaluate: Evaluate | None = field(default=None, kw_only=True)
    train: Iterable[Any] | None = field(default=None, kw_only=True)
    loss: Callable[[Any, Any], Tensor] | None = field(default=None, kw_only=True)
    test: Evaluate | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    outputs: Outputs | None = field(default=None, kw_only=True)
    memory: str | int | None = field(default=None, kw_only=True)
    name: str = field(default="", kw_only=True)  # the title of the report; the class of the model unless given

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TaskError(f"model is {type(self.model).__name__}, not a torch.nn.Module; pass the network itself.")
        check_plain(self.model)
        for name in ("evaluate", "loss", "test"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TaskError(f"{name} is {type(getattr(self, name)).__name__}, not a function; pass a callable.")
        if not whole(self.seed, 0, 2**63 - 1):
            raise TaskError(f"{named('seed', self.seed)} is no whole number from 0 to 2**63 - 1; use for example 0.")
        if self.memory is not None:
            parse_bytes(self.memory, "memory")
        if not isinstance(self.name, str):
            raise TaskError(f"{named('name', self.name)} is no text; it is the title of the report.")
        if self.train is not None and (isinstance(self.train, (str, Mapping, Tensor)) or not isinstance(self.train, Iterable)):
            raise TaskError(
                f"train is {type(self.train).__name__}, not a list or DataLoader of batches; each is a pair (inputs, targets)."
            )
        if isinstance(self.calibration, (str, Tensor, Mapping)) or not isinstance(self.calibration, Iterable):
            raise TaskError(
                f"calibration is {type(self.calibration).__name__} and must be a list of input batches; for one batch x write "
                "calibration=[x]."
            )
        check_finite(self.model)
        batches = self.calibration
        if not isinstance(batches, Sequence) and not hasattr(batches, "__len__"):
            object.__setattr__(self, "calibration", list(batches))  # a generator would be empty the second time
        check_kinds(self.outputs)
        said_of(output_tensors(check_runs(self.model, self.sample)), self.outputs)
        check_copies(self.model, self.sample)

    @property
    def sample(self) -> Batch:
        """The first calibration batch.

        Raises: TaskError when there is none.
        """
        for batch in self.calibration:
            return batch
        raise TaskError("calibration holds no batch; give at least one batch of sample inputs.")


def count(batches: Iterable[Any]) -> int | None:
    """How many batches there are, if they say so themselves."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader over a stream has __len__, and raises in it
        return None


def check_finite(model: nn.Module) -> None:
    """Raises TaskError, with the path, when a parameter holds NaN or an infinity, or a buffer NaN."""
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise TaskError(f"'{path}' is not initialised yet; call the model once on a batch before making the task.")
        if tensor.device.type == "meta":
            raise TaskError(f"'{path}' is on the meta device and holds no values; load the trained weights first.")
        if tensor.layout != torch.strided:
            raise TaskError(f"'{path}' is a {tensor.layout} tensor; only dense ones can be kept: use .to_dense().")
        if not tensor.is_floating_point():
            continue
        if not tensor.numel() or all(map(math.isfinite, map(float, tensor.detach().aminmax()))):
            continue
        values = tensor.detach()
        fine = torch.isfinite(values) if isinstance(tensor, nn.Parameter) else ~torch.isnan(values)  # a mask of -inf is a buffer
        if not bool(fine.all()):
            bad = int((~fine).sum())
            raise TaskError(f"'{path}' holds {bad} NaN or infinite values of {tensor.numel()}; train or load the model again.")


def check_plain(model: nn.Module) -> None:
    """Raises TaskError for a model whose layers cannot be seen and replaced: scripted, traced or compiled."""
    for path, module in model.named_modules():
        place = f"'{path}' of the model" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TaskError(f"{place} is TorchScript, whose layers cannot be replaced; pass the nn.Module it was made from.")
        if "_orig_mod" in module._modules:
            raise TaskError(
                f"{place} is the result of torch.compile, which hides what its layers do; pass the network itself, "
                "model._orig_mod, and compile what comes back."
            )
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # torch.export puts one there that refuses
            raise TaskError(f"{place} is a program of torch.export, fixed in one mode; pass the nn.Module it was exported from.")


def check_copies(model: nn.Module, batch: Batch) -> None:
    """Raises TaskError when a copy of the model does not compute by itself, as every step needs it to.

    After the original has seen other inputs, its copy must still answer the batch as the original did.
    """
    other = mapped(batch, _another)
    try:
        first = _answers(model, batch)
        _answers(model, other)
    except TaskError:  # a model may take none but such inputs as it was given
        first = []
    plain = without_computed_(copied(model, share=True))  # as steps copy it
    check_states(plain)
    second = _answers(plain, batch, model)
    if first and not _alike(first, second) and _alike(first, _answers(model, batch)):
        hooked = [path or "the model" for path, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
        raise TaskError(
            "a copy of the model gives other outputs than the model itself: something in it still reads or writes the original, "
            f"such as a hook that names it as a global variable (hooks are at: {', '.join(hooked[:4]) or 'no layer'}); reach "
            "the network through self, or through the hook's own arguments."
        )


def _another(tensor: Tensor) -> Tensor:
    """Other inputs of the same kind: numbers of tokens stay within their range."""
    turned = tensor.flip(tuple(range(tensor.ndim)))
    return turned * 0.5 if tensor.is_floating_point() else turned


def _answers(model: nn.Module, batch: Batch, original: nn.Module | None = None) -> list[Tensor]:
    place = "its own sample inputs" + ("" if original is None else " once its masks and norms are plain weights")
    with evaluating(model), repeatable(model):
        return [tensor.clone() for tensor in leaves(attempt(model, batch, place, original)) if tensor.is_floating_point()]


def _alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """True for outputs that differ by no more than rounding."""
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(
        a.shape == b.shape
        and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.nan_to_num(0.0, 0.0, 0.0).abs().mean()), equal_nan=True)
        for a, b in pairs
    )


def check_runs(model: nn.Module, batch: Batch) -> Any:
    """What the model returns for the batch.

    Raises: TaskError when the model fails on it, the batch is empty, or outputs are not finite.
    """
    with evaluating(model):
        outputs = attempt(model, batch, "its own sample inputs")
    output = first_tensor(outputs)
    for given in leaves(batch):
        if not given.numel():
            raise TaskError(f"the sample inputs hold a tensor {tuple(given.shape)} without values; give at least one sample.")
    if output.is_floating_point() and not bool(torch.isfinite(output).all()):
        raise TaskError("the model gives NaN or infinite outputs on its own sample inputs; check weights and inputs.")
    return outputs


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the result must reach; whatever is not given is free.

    `size` in bytes or as "100 kB" (of the .nxt file); `compression` before / after; `macs` and `latency` as fractions
    left (0.5 = half); `max_drop` the quality that may be lost, absolute (0.005 = half a point), at most what the original has.
    Without it the goal is the best quality that fits the rest; with it, where not all can be had, it comes first.
    Raises: TargetError or RangeError when a goal makes no sense.
    """

    size: int | str | None = None
    compression: float | None = None
    macs: float | None = None
    latency: float | None = None
    max_drop: float | str | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", parse_bytes(self.size))
        if self.max_drop is not None:
            given = self.max_drop
            object.__setattr__(self, "max_drop", parse_fraction(given, "max_drop"))
            if not 0 <= self.drop < math.inf:
                raise RangeError(f"max_drop={self.max_drop} is not in [0, inf); write 0.005 or '0.5%' for half a point.")
            if isinstance(given, str) and given.strip().endswith("%") and self.drop > 1:
                raise RangeError(f"max_drop={given!r} is more than all there is; write 0.005 or '0.5%' for half a point.")
        if self.compression is not None and not within(self.compression, "[1, inf)"):
            raise RangeError(
                f"{named('compression', self.compression)} is before / after and must be at least 1; write for example 20."
            )
        for name in ("macs", "latency"):
            value = getattr(self, name)
            if value is not None and not within(value, "(0, 1]"):
                raise RangeError(f"{named(name, value)} is the fraction left and must be in (0, 1]; write 0.5 for half.")
        if all(getattr(self, name) is None for name in ("size", "compression", "macs", "latency", "max_drop")):
            raise TargetError("the target is empty; give at least one of size, compression, macs, latency, max_drop.")

    @property
    def drop(self) -> float:
        """`max_drop` as a number; infinite when it was not given."""
        return math.inf if self.max_drop is None else float(self.max_drop)

    def limit_bytes(self, original_bytes: int) -> float:
        """The largest file in bytes that meets both size and compression; infinite when neither was given."""
        limits = [math.inf]
        if self.size is not None:
            limits.append(float(self.size))
        if self.compression is not None:
            limits.append(original_bytes / self.compression)
        return min(limits)


@dataclass(frozen=True)
class Change:
    """What one step did to one layer, and why, in words a person can read."""

    path: str
    what: str
    why: str = ""


@dataclass(frozen=True)
class Record:
    """What one step did: the layers it changed, those it left alone with the reason, and its figures."""

    step: str
    changes: tuple[Change, ...] = ()
    skipped: tuple[Change, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@runtime_checkable
class Step(Protocol):
    """A frozen dataclass that turns a model into a smaller one and says what it did; it never edits its input."""

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]: ...
