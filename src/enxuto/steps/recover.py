"""Recover: train what is left, with the original as the teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from enxuto import world
from enxuto.batches import Batch
from enxuto.calls import call, evaluating, first_tensor
from enxuto.checks import named, whole, within
from enxuto.errors import RangeError, RecipeError, TaskError
from enxuto.memory.checkpoint import checkpointed
from enxuto.records import Change, Record
from enxuto.sizes import parse_bytes
from enxuto.surgery import duplicate
from enxuto.task import Step, Task, check_call
from enxuto.training import optimizers
from enxuto.training.examples import Examples
from enxuto.training.loop import LONGEST, PRECISIONS, Loop, Precision, Run, logger
from enxuto.training.objective import Aim, Moment, Objective, Telling, checked_aims
from enxuto.training.prepare import prepared
from enxuto.training.rehearsals import came_of, settle_
from enxuto.training.schedules import SCHEDULES
from enxuto.training.state import place_of
from enxuto.training.teacher import Teacher
from enxuto.training.terms.rate import Rate
from enxuto.training.tighten import Rehearsable, Schedule


@dataclass(frozen=True)
class Recover:
    """Fine-tuning with distillation from the original: zeros stay zero, coded weights learn their codes and grids.

    `teacher` is the weight of the teacher in the loss (1 = labels are not used); without labels the calibration batches and
    the teacher alone are used. All outputs are taught: scores of classes (where `task.outputs` says so, or the loss is blind to
    a number added to all scores of a sample) by soft labels, others by their error. The learning rate warms up and falls along
    a cosine, or as another `schedule` says. `optimizer` is any of torch.optim by its name, with `options` beside the learning
    rate and the decay; gradients longer than `clip` are made as short, and `accumulate` batches make one update. With
    `average` (0.999) what comes out is the exponential average of the weights along the way. With `patience` the training ends
    after so many looks that find no better `task.evaluate` of what would ship, one look in `every` epochs once `during` and
    `rate` are whole, and the best state is kept; `keep` ("last", "best") says so without. Processes that torchrun
    starts share each batch (`devices` insists on so many); `precision` is lightning-fabric's. `memory` ("2 GB", or what the task
    says) bounds the tensors of a step: layers are checkpointed or batches trained in parts, as `ex.memory.plan` finds best; an
    update sees the whole batch.
    `during` holds steps that tighten inside this training (Prune, Quantize, Share): little by little, and wholly from the part
    `tight` of it on; 0 is from the first batch. `rate` makes the file small while it trains: a text is the bytes to come to
    ("6 kB"), a number the loss that a bit is worth (3e-6 is a small file). It prices the codes of weights on grids of steps, so
    `Quantize(bits=8, per="tensor")` comes before or in `during` with tight=0; what else is in the file counts as it is then, so
    code biases before as well. `terms` are added to the loss of labels and teacher, each with a weight of its own: those in
    `ex.terms`, or your own frozen dataclasses with `begin(student, task, teacher)`.
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
    during: tuple[Step, ...] = ()
    tight: float = 0.7
    rate: float | str | None = None
    terms: tuple[Aim, ...] = ()
    optimizer: str = "AdamW"
    options: Mapping[str, Any] | None = None
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    clip: float | None = LONGEST
    accumulate: int = 1
    average: float = 0.0
    patience: int | None = None
    keep: Literal["last", "best"] | None = None
    every: float = 1.0

    def __post_init__(self) -> None:
        self._check_objective()
        self._check_machine()
        self._check_during()
        self._check_updates()
        self._check_looks()

    def _check_objective(self) -> None:
        for name in ("epochs", "learning_rate", "temperature"):
            if not within(getattr(self, name), "(0, inf)"):
                raise RangeError(
                    f"{named(name, getattr(self, name))} is not a positive number; the default is {getattr(type(self), name)}."
                )
        if not within(self.teacher, "[0, 1]"):
            raise RangeError(
                f"{named('teacher', self.teacher)} is the teacher's weight in the loss and must be in [0, 1]; use 0.5."
            )
        object.__setattr__(self, "terms", checked_aims(self.terms))

    def _check_machine(self) -> None:
        if not whole(self.devices, 1) and self.devices != -1:
            raise RangeError(f"{named('devices', self.devices)} is no number of devices; use 1 or more, or -1 for all.")
        if self.precision not in PRECISIONS:
            raise RangeError(f"precision={self.precision!r} is not known; use one of {', '.join(map(repr, PRECISIONS))}.")
        if self.memory is not None:
            parse_bytes(self.memory, "memory")

    def _check_updates(self) -> None:
        if not within(self.weight_decay, "[0, inf)"):
            raise RangeError(f"{named('weight_decay', self.weight_decay)} is no number of at least 0; the default is 0.")
        optimizers.check(self.optimizer, self.options, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        if self.options is not None:
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in self.options.items()}
            object.__setattr__(self, "options", plain)
        if not isinstance(self.schedule, str) or self.schedule not in SCHEDULES:
            raise RangeError(f"{named('schedule', self.schedule)} is not known; use one of {', '.join(map(repr, SCHEDULES))}.")
        if self.clip is not None and not within(self.clip, "(0, inf)"):
            raise RangeError(f"{named('clip', self.clip)} is no norm that gradients may have; the default is 5, None is any.")
        if not whole(self.accumulate, 1):
            raise RangeError(f"{named('accumulate', self.accumulate)} is no number of batches of an update; use 1 or more.")
        if not within(self.average, "[0, 1)"):
            raise RangeError(
                f"{named('average', self.average)} is the part that an update leaves of the average and must be in [0, 1); use "
                "0.999, or 0 for no average."
            )

    def _check_looks(self) -> None:
        if self.patience is not None and not whole(self.patience, 1):
            raise RangeError(
                f"{named('patience', self.patience)} is no number of looks that find nothing better; use 5, or None."
            )
        if self.keep not in (None, "last", "best"):
            raise RangeError(f"{named('keep', self.keep)} is not known; use 'last' or 'best'.")
        if not within(self.every, "(0, inf)"):
            raise RangeError(f"{named('every', self.every)} is no number of epochs between looks; the default is 1.")
        if self.every != type(self).every and not self._judged:
            raise RangeError(
                f"every={self.every} is for looks at the quality, and none is asked for; say patience=5 or keep='best'."
            )

    @property
    def _judged(self) -> bool:
        """True where `evaluate` is asked on the way."""
        return self.patience is not None or self.keep == "best"

    def _check_during(self) -> None:
        if isinstance(self.during, (str, Mapping)) or not isinstance(self.during, Iterable):
            raise RecipeError(f"{named('during', self.during)} is no list of steps; write during=[Prune(0.9)].")
        object.__setattr__(self, "during", tuple(self.during))
        for step in self.during:
            if isinstance(step, type) or not isinstance(step, Rehearsable):
                name = step.__name__ if isinstance(step, type) else type(step).__name__
                raise RecipeError(f"{name} in during= does not tighten while one trains; use Prune(0.9) there, or put it before.")
        if not within(self.tight, "[0, 1]"):
            raise RangeError(f"{named('tight', self.tight)} is the part of the training before steps are whole; use 0.7.")
        if self.tight != type(self).tight and not self.during:
            raise RangeError(f"tight={self.tight} is for steps in during=, and there are none; leave it out, or give during=.")
        prices = [*(aim for aim in self.terms if isinstance(aim, Rate)), *(() if self.rate is None else (Rate(self.rate),))]
        if len(prices) > 1:
            raise RecipeError(
                f"{prices[0]} and {prices[1]} in one training price the same codes; leave one of rate= and terms=[Rate(...)] out."
            )

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The trained copy."""
        check_call(self, model, task)
        if self._judged and task.evaluate is None:
            asked = f"patience={self.patience}" if self.patience is not None else "keep='best'"
            raise TaskError(
                f"{asked} goes by the quality on validation data, and the task has no evaluate; give Task(evaluate=...)."
            )
        start = time.monotonic()
        student = prepared(duplicate(model), task, self.during, gradual=self.tight > 0)
        _check_trainable(student)
        if _images(student):
            _lay_channels_last_(student, task.sample)
        examples = Examples(task, self.epochs)
        paths, size = world.same(self.fitting(student, task))
        loop = self._loop(size, task.seed, place_of(model, str(self)))
        aims = self.terms if self.rate is None else (*self.terms, Rate(self.rate))
        objective = Objective(task, self.teacher, self.temperature, aims, self.epochs)
        schedule = Schedule(student, self.during, batches=loop.updates(examples.total), end=self.tight)
        with checkpointed(student, paths), objective.begun(student):
            ready = max(self.tight if self.during else 0.0, *(getattr(term, "ready", 0.0) for term in objective.terms), 0.0)
            run = loop.run(student, objective, examples, [schedule.step], [schedule.observe], [schedule], ready)
            schedule.finish_()
        student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        settle_(student).train(model.training)
        return student, self._record(run, student, time.monotonic() - start + run.before_s)

    def _loop(self, size: int | None, seed: int, place: Path | None) -> Loop:
        return Loop(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            devices=self.devices,
            precision=self.precision,
            size=size,
            seed=seed,
            optimizer=self.optimizer,
            options=self.options,
            schedule=self.schedule,
            clip=self.clip,
            accumulate=self.accumulate,
            average=self.average,
            patience=self.patience,
            keep=self.keep or ("last" if self.patience is None else "best"),
            every=self.every,
            rescue=size is None,
            place=place,
        )

    def _record(self, run: Run, student: nn.Module, seconds: float) -> Record:
        losses, total = [each for each in run.losses if math.isfinite(each)], run.examples.done
        tail = losses[-max(1, len(losses) // 10) :]
        figures = {"loss_first": losses[0], "loss_last": sum(tail) / len(tail), "batches": float(total)}
        told = [term.told() for term in run.objective.terms if isinstance(term, Telling)]
        for found, missed in told:
            figures |= found
            if missed:
                logger.warning("%s; ask for what it came to, or train for more batches.", missed)
        change = Change("", f"trained for {total} batches", f"loss {losses[0]:.3g} to {figures['loss_last']:.3g}")
        kept = f"the running statistics of batch norms in {run.alone} of {total} batches"
        alone = Change("", kept, "they gave single values, which have no variance, as a batch of one sample does")
        short = [Change("", "missed", missed) for _, missed in told if missed]
        made, left, of_weights = came_of(student, [getattr(step, "layers", "*") for step in self.during])
        skipped = (*run.notes, *run.examples.notes, *((alone,) if run.alone else ()), *short, *left)
        return Record(str(self), (change, *run.changes, *made), skipped, of_weights | figures | run.figures, seconds)

    def fitting(self, student: nn.Module, task: Task) -> tuple[tuple[str, ...], int | None]:
        """The layers to checkpoint and the samples of a pass, so that a step keeps within the memory allowed.

        Raises: LimitError when nothing does.
        """
        memory = task.memory if self.memory is None else self.memory
        if memory is None:
            return (), None
        from enxuto.memory.planning import settle  # it needs much of torch that training alone does not

        lesson = _Lesson(
            student, Objective(task, self.teacher, self.temperature).bare_(), copies=bool(self.average) + self._judged
        )
        option = settle(
            lesson,
            (Examples(task, self.epochs).first(), None),
            memory,
            loss=lambda loss, _: loss,
            optimizer=optimizers.maker(self.optimizer, self.options),
            precision=self.precision,
        )
        passes = f", {option.accumulation} passes of {option.batch_size} samples an update" if option.accumulation > 1 else ""
        logger.info("%s of memory%s, checkpointing %d layers", memory, passes, len(option.checkpoint))
        return tuple(path.removeprefix("student.") for path in option.checkpoint), option.batch_size


class _Lesson(nn.Module):
    """A student, its teacher, copies of what learns, and the objective as one model whose output is the loss, to ask what a step
    needs."""

    def __init__(self, student: nn.Module, objective: Objective, copies: int) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self.teacher = None if objective.teacher is None else objective.teacher.module  # its weights count
        learned = [parameter.detach() for parameter in student.parameters() if parameter.requires_grad]
        for place, tensor in enumerate(learned * copies):
            self.register_buffer(f"copy{place}", tensor.clone())

    def forward(self, inputs: Batch, targets: object) -> Tensor:
        outputs = call(self.student, inputs)
        with torch.autocast(first_tensor(outputs).device.type, enabled=False):
            teacher = None if self.teacher is None else Teacher(self.teacher)
            return self.objective(Moment(self.student, outputs, inputs, targets, teacher))


def _check_trainable(student: nn.Module) -> None:
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


def _images(student: nn.Module) -> bool:
    """True for networks of two-dimensional convolutions whose tensors all have at most four dimensions."""
    flat = all(tensor.ndim < 5 for tensor in [*student.parameters(), *student.buffers()])
    return flat and any(isinstance(module, nn.Conv2d) for module in student.modules())


def _lay_channels_last_(student: nn.Module, sample: Batch) -> None:
    """Convolutions train faster so; a network whose forward takes no such tensors, as by `view`, is left as it is."""
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with evaluating(student):
            call(student, sample)
    except RuntimeError:
        student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
