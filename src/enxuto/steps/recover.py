"""Recover: train what is left, with the original as the teacher."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.batches import Batch, count, parts, samples
from enxuto.calls import attempt, call, device_of, evaluating, first_tensor
from enxuto.checks import named, whole, within
from enxuto.errors import RangeError, TaskError
from enxuto.functional.likeness import Spread
from enxuto.lessons import Lesson, lessons, settled, taught
from enxuto.memory.checkpoint import checkpointed
from enxuto.outputs import LOSS
from enxuto.progress import counted
from enxuto.records import Change, Record
from enxuto.sizes import parse_bytes
from enxuto.surgery import borrowed, duplicate
from enxuto.task import Task
from enxuto.train import rehearse_, settle_

logger = logging.getLogger(__name__)
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LABELS = "labels"  # the key of the targets in a batch that is a dict, as model libraries give them


@dataclass(frozen=True)
class Recover:
    """Fine-tuning with distillation from the original: zeros stay zero, coded weights learn their codes and grids.

    `teacher` is the weight of the teacher in the loss (1 = labels are not used); without labels the calibration batches and
    the teacher alone are used. All outputs are taught: scores of classes (where `task.outputs` says so, or the loss is blind to
    a number added to all scores of a sample) by soft labels, others by their error. The learning rate warms up and falls along
    a cosine. `devices` and `precision` are lightning-fabric's. `memory` ("2 GB", or what the task says) bounds the tensors of a
    step: layers are checkpointed or batches trained in parts, as `ex.memory.plan` finds best; an update sees the whole batch.
    Raises: RangeError for numbers out of range; TaskError when training batches are neither (inputs, targets) nor a dict that
    holds "labels"; LimitError, before anything is trained, when the memory is not enough.
    Source: Hinton, Vinyals, Dean 2015; Polino, Pascanu, Alistarh 2018, "Model compression via distillation and quantization".
    """

    epochs: float = 1.0
    learning_rate: float = 1e-3
    teacher: float = 0.5
    temperature: float = 4.0
    weight_decay: float = 0.0
    devices: int = 1
    precision: Precision = "32-true"
    memory: str | int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "temperature"):
            if not within(getattr(self, name), "(0, inf)"):
                raise RangeError(
                    f"{named(name, getattr(self, name))} is not a positive number; the default is {getattr(type(self), name)}."
                )
        if not within(self.weight_decay, "[0, inf)"):
            raise RangeError(f"{named('weight_decay', self.weight_decay)} is no number of at least 0; the default is 0.")
        if not whole(self.devices, 1) and self.devices != -1:
            raise RangeError(f"{named('devices', self.devices)} is no number of devices; use 1 or more, or -1 for all.")
        if self.precision not in PRECISIONS:
            raise RangeError(f"precision={self.precision!r} is not known; use one of {', '.join(map(repr, PRECISIONS))}.")
        if self.memory is not None:
            parse_bytes(self.memory, "memory")
        if not within(self.teacher, "[0, 1]"):
            raise RangeError(
                f"{named('teacher', self.teacher)} is the teacher's weight in the loss and must be in [0, 1]; use 0.5."
            )

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The trained copy."""
        start = time.monotonic()
        student = rehearse_(duplicate(model))
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise TaskError(
                "no parameter of the model can be trained, all have requires_grad=False; call requires_grad_(True) on it."
            )
        short = next((name for name, parameter in student.named_parameters() if parameter.dtype == torch.float16), None)
        if short is not None:
            raise TaskError(
                f"'{short}' is float16, whose range is too small to train in; call model.float() before, or, for a layer that is "
                "to stay short, layer.to(torch.bfloat16)."
            )
        flat = all(tensor.ndim < 5 for tensor in [*student.parameters(), *student.buffers()])
        images = flat and any(isinstance(module, nn.Conv2d) for module in student.modules())
        if images:
            _lay_channels_last_(student, task.sample)
        batches, total = self.batches(task)
        paths, size = self.fitting(student, task)
        with checkpointed(student, paths):
            losses, alone = self._train(student, task, batches, total, size)
        if not losses:
            raise TaskError("train said that it holds batches, but gave none; give a list or a DataLoader.")
        if not all(map(math.isfinite, losses)) or not all(bool(torch.isfinite(p).all()) for p in student.parameters()):
            raise TaskError(
                f"training diverged: the loss became {losses[-1]} after {len(losses)} batches; use a lower learning_rate than "
                f"{self.learning_rate}."
            )
        student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        settle_(student).train(model.training)
        tail = losses[-max(1, len(losses) // 10) :]
        figures = {"loss_first": losses[0], "loss_last": sum(tail) / len(tail), "batches": float(total)}
        change = Change("", f"trained for {total} batches", f"loss {losses[0]:.3g} to {figures['loss_last']:.3g}")
        kept = f"the running statistics of batch norms in {alone} of {total} batches"
        skipped = (Change("", kept, "they gave single values, which have no variance, as a batch of one sample does"),)
        return student, Record(str(self), (change,), skipped if alone else (), figures, time.monotonic() - start)

    def batches(self, task: Task) -> tuple[Iterator[tuple[Batch, Any]], int]:
        """The batches of all epochs as (inputs, targets), and how many there are."""
        source: Iterable[Any] = task.train if task.train is not None else task.calibration
        if isinstance(source, Iterator):
            raise TaskError(f"train is a {type(source).__name__}, which can be read only once; give a list or a DataLoader.")
        length = count(source)
        length = sum(1 for _ in source) if length is None else length
        if not length:
            raise TaskError("there is no batch to train on; give train=batches of (inputs, targets).")
        total = max(1, round(self.epochs * length))

        def stream() -> Iterator[tuple[Batch, Any]]:
            done, before, epoch = 0, -1, 0
            while before < done < total:  # a source that is empty the second time must not hold us forever
                before = done
                # batches that can say which epoch is meant give the same order whatever was iterated before
                for item in source.epoch(epoch) if hasattr(source, "epoch") else source:
                    if done == total:
                        return
                    yield (item, None) if task.train is None else _labelled(item, task.loss)
                    done += 1
                epoch += 1

        return stream(), total

    def fitting(self, student: nn.Module, task: Task) -> tuple[tuple[str, ...], int | None]:
        """The layers to checkpoint and the samples of a pass, so that a step keeps within the memory allowed.

        Raises: LimitError when nothing does.
        """
        memory = task.memory if self.memory is None else self.memory
        if memory is None:
            return (), None
        from enxuto.memory.planning import settle  # it needs much of torch that training alone does not

        teacher = self._teacher(task)
        learned = [] if teacher is None else lessons(task, teacher)
        bare = [replace(each, spread=Spread(None, 1.0)) for each in learned]  # a plan asks for shapes, not for values
        lesson = _Lesson(student, teacher, lambda teacher: self._loss(task, teacher, bare))
        option = settle(
            lesson,
            (next(self.batches(task)[0]), None),
            memory,
            loss=lambda loss, _: loss,
            optimizer=torch.optim.AdamW,
            precision=self.precision,
        )
        passes = f", {option.accumulation} passes of {option.batch_size} samples an update" if option.accumulation > 1 else ""
        logger.info("%s of memory%s, checkpointing %d layers", memory, passes, len(option.checkpoint))
        return tuple(path.removeprefix("student.") for path in option.checkpoint), option.batch_size

    def _teacher(self, task: Task) -> nn.Module | None:
        return borrowed(task.model).eval() if self.teacher or task.train is None or task.loss is None else None

    def _train(
        self, student: nn.Module, task: Task, batches: Iterator[tuple[Batch, Any]], total: int, size: int | None
    ) -> tuple[list[float], int]:
        """The loss of each batch, and how many batches gave a batch norm single values."""
        from lightning_fabric import Fabric

        fabric = Fabric(accelerator="auto", devices=self.devices, precision=self.precision)
        fabric.launch()
        optimizer = torch.optim.AdamW(student.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        wrapped, optimizer = fabric.setup(student, optimizer)
        teacher = self._teacher(task)
        teacher = None if teacher is None else fabric.to_device(teacher)
        warm = max(1, total // 20)
        losses: list[float] = []
        alone = 0
        with torch.random.fork_rng(), _lone_values(student) as lone:
            learned = () if teacher is None else lessons(task, teacher)
            torch.manual_seed(task.seed)
            wrapped.train()
            for done, batch in enumerate(counted(batches, "recovering", total)):
                batch = fabric.to_device(batch)
                share = min((done + 1) / warm, 0.5 * (1 + math.cos(math.pi * done / total)))
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * share
                optimizer.zero_grad(set_to_none=True)
                losses.append(0.0)
                for (inputs, targets), part in _passes(batch, size):
                    outputs = attempt(wrapped, inputs, f"training batch {done + 1}", task.model)
                    if not done and _own_loss(task, outputs, inputs, targets) is not None and task.loss is not None:
                        learned = settled(learned, task.loss, outputs, targets)
                    loss = self._loss(task, teacher, learned)(outputs, inputs, targets) * part
                    fabric.backward(loss)
                    losses[-1] += float(loss.detach())
                fabric.clip_gradients(wrapped, optimizer, max_norm=5.0, error_if_nonfinite=False)
                if not math.isfinite(losses[-1]):
                    break
                optimizer.step()
                alone += bool(lone)
                lone.clear()
        student.to(device_of(task.model))
        return losses, alone

    def _loss(self, task: Task, teacher: nn.Module | None, learned: Sequence[Lesson]) -> Callable[[Any, Batch, Any], Tensor]:
        def loss(outputs: Any, inputs: Batch, targets: Any) -> Tensor:
            own = _own_loss(task, outputs, inputs, targets)
            if own is not None and not self.teacher:
                return own
            assert teacher is not None
            with evaluating(teacher):
                wanted = call(teacher, inputs)
            told = taught(learned, outputs, wanted, self.temperature)
            return told if own is None else self.teacher * told + (1 - self.teacher) * own

        return loss


class _Lesson(nn.Module):
    """A student, its teacher and the loss as one model whose output is the loss, to ask what a step needs."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, loss: Callable[[nn.Module | None], Any]) -> None:
        super().__init__()
        self.student, self.teacher, self.loss = student, teacher, loss

    def forward(self, inputs: Batch, targets: Any) -> Tensor:
        outputs = call(self.student, inputs)
        with torch.autocast(first_tensor(outputs).device.type, enabled=False):
            return self.loss(self.teacher)(outputs, inputs, targets)


def _passes(batch: tuple[Batch, Any], size: int | None) -> list[tuple[tuple[Batch, Any], float]]:
    """The batch in parts of at most `size` samples, each with its part of the loss."""
    if size is None:
        return [(batch, 1.0)]
    given = samples(batch)
    return [(part, samples(part) / given) for part in parts(batch, -(-given // size))]


def _labelled(item: Any, loss: Callable[[Any, Any], Tensor] | None) -> tuple[Batch, Any]:
    """What a batch of `train` holds, as inputs and targets; a dict without targets is for a model with a loss of its own.

    Raises: TaskError when it is neither a pair nor a dict, or the labels that a loss needs are not in the dict.
    """
    if isinstance(item, Mapping):
        inputs = dict(item)
        if loss is None:
            return inputs, None
        if LABELS not in inputs:
            raise TaskError(
                f"train gave a dict of {', '.join(map(repr, inputs))} for loss=; each batch must hold '{LABELS}' too, or be a "
                "pair (inputs, targets)."
            )
        return inputs, inputs.pop(LABELS)
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TaskError(
            f"train gave {type(item).__name__}; each batch must be a pair (inputs, targets), or a dict that holds '{LABELS}' too."
        )
    return item[0], item[1] if loss is not None else None


@contextmanager
def _lone_values(model: nn.Module) -> Iterator[list[int]]:
    """Batch norms that get one value a channel, whose variance is none, use their running statistics for it.

    Yields a list that has grown when that happened.
    """
    seen: list[int] = []

    def before(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        if norm.training and isinstance(given, Tensor) and given.numel() == given.shape[1]:
            norm.training = False
            seen.append(id(norm))

    def after(norm: nn.Module, inputs: object, outputs: object) -> None:
        norm.training = norm.training or id(norm) in seen

    norms = [it for it in model.modules() if isinstance(it, _BatchNorm) and it.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(before, with_kwargs=True) for norm in norms]
    hooks += [norm.register_forward_hook(after, always_call=True) for norm in norms]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _own_loss(task: Task, outputs: Any, inputs: Batch, targets: Any) -> Tensor | None:
    """What the labels say, by the task's loss or, for a dict that holds labels, by the model itself; None without labels.

    Raises: TaskError when it is not one number that depends on the outputs.
    """
    if task.loss is not None and targets is not None:
        return _checked(task.loss, outputs, targets)
    if task.train is None or not isinstance(inputs, Mapping) or LABELS not in inputs:
        return None
    value = outputs.get(LOSS) if isinstance(outputs, Mapping) else None
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise TaskError(
            f"train gives dicts with '{LABELS}' and the model returns no '{LOSS}' for them; give loss=, called as "
            "loss(outputs, labels)."
        )
    return value


def _checked(loss: Callable[[Any, Any], Tensor], outputs: Any, targets: Any) -> Tensor:
    """What the user's loss says, checked: one number that depends on the outputs."""
    sizes = " and ".join(str(tuple(it.shape)) if isinstance(it, Tensor) else type(it).__name__ for it in (outputs, targets))
    try:
        value = loss(outputs, targets)
    except Exception as error:
        raise TaskError(
            f"loss fails on outputs and targets {sizes}: {type(error).__name__}: {error}; "
            "it is called as loss(outputs, targets) with what train= gives."
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TaskError(f"loss gave {given}; it must be one number, as a tensor: take the mean over the batch.")
    if not value.requires_grad:
        raise TaskError("loss gave a number that does not depend on the outputs, so nothing can be learned; leave out .detach().")
    return value


def _lay_channels_last_(student: nn.Module, sample: Batch) -> None:
    """Convolutions train faster so; a network whose forward takes no such tensors, as by `view`, is left as it is."""
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with evaluating(student):
            call(student, sample)
    except RuntimeError:
        student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
