"""What training batches hold: inputs and targets of every epoch, and what the labels say of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from enxuto.batches import Batch, count, recorded
from enxuto.errors import TaskError
from enxuto.outputs import LOSS
from enxuto.records import Change
from enxuto.task import Task
from enxuto.training.chance import chance, set_chance_

LABELS = "labels"  # the key of the targets in a batch that is a dict, as model libraries give them
Example = tuple[Batch, Any]
"""A batch's inputs and targets; None where a teacher alone teaches, or the model has a loss of its own."""


class Examples:
    """The batches of all epochs, one after the other: `total` of them, as many as `epochs` of the length that the source tells.

    A source that gives fewer in a pass is read from its start again until there were as many: what is scheduled over the total
    comes to its end. One that gives none in a later pass ends before. `notes` says of both.
    Raises: TaskError when there are none, or the source can be read only once.
    """

    def __init__(self, task: Task, epochs: float) -> None:
        self.task, self.epochs = task, epochs
        self.source: Iterable[Any] = task.train if task.train is not None else task.calibration
        if isinstance(self.source, Iterator):
            raise TaskError(f"train is a {type(self.source).__name__}, which can be read only once; give a list or a DataLoader.")
        length = count(self.source)
        self.length = sum(1 for _ in self.source) if length is None else length
        if not self.length:
            raise TaskError("there is no batch to train on; give train=batches of (inputs, targets).")
        self.total = max(1, round(epochs * self.length))
        self.done = 0  # batches given so far
        self.pass_, self.at = 0, 0  # which pass over the source, and how many batches of it were given
        self.fewest = self.length  # batches of a pass
        self._began: dict[str, Any] = {}  # random numbers when the pass began
        self._back: dict[str, Any] | None = None  # and where to go on with them

    def __iter__(self) -> Iterator[Example]:
        while self.done < self.total:
            # batches that can say which epoch is meant give the same order whatever was iterated before
            source = self.source.epoch(self.pass_) if hasattr(self.source, "epoch") else self.source
            for item in self._rest_of(source):
                self.done, self.at = self.done + 1, self.at + 1
                given = recorded(item)
                yield (given, None) if self.task.train is None else _labelled(given, self.task.loss)
                if self.done == self.total:
                    return
            self.fewest = min(self.fewest, self.at)
            if not self.at:
                return
            self.pass_, self.at = self.pass_ + 1, 0

    def _rest_of(self, source: Iterable[Any]) -> Iterator[Any]:
        """What is still to come of a pass: all of it, or after a kill what was not given before."""
        back, self._back = self._back, None
        if back is None:
            self._began = chance(self.source)
            return iter(source)
        set_chance_(self._began, self.source)
        rest = iter(source)
        for _ in itertools.islice(rest, self.at):
            pass
        set_chance_(back, self.source)
        return rest

    def first(self) -> Example:
        """The batch that a training will begin with; random numbers are as if nobody had looked."""
        before = chance(self.source)
        try:
            return next(iter(Examples(self.task, self.epochs)))
        finally:
            set_chance_(before, self.source)

    def state(self) -> dict[str, Any]:
        """Where it is, to go on from there in another process."""
        place = {"done": self.done, "pass_": self.pass_, "at": self.at, "fewest": self.fewest}
        return {"place": place, "began": self._began, "back": chance(self.source)}

    def resume_(self, state: dict[str, Any]) -> None:
        """The next batch is the one that came after that state, with the random numbers that it had."""
        vars(self).update(state["place"])
        self._began, self._back = state["began"], state["back"]

    @property
    def notes(self) -> tuple[Change, ...]:
        """What is to be said of a source that gave fewer batches than it told."""
        if self.fewest == self.length:
            return ()
        passes = f"{self.pass_ + bool(self.at)} passes over them in place of {self.epochs:g} epochs"
        ended = f"; it gave none in the last, so the training ended after {self.done} of {self.total} batches"
        what = f"the source told of {self.length} batches and gave {self.fewest} in a pass"
        return (Change("", what, passes + (ended if self.done < self.total else "")),)


def _labelled(item: Any, loss: Callable[[Any, Any], Tensor] | None) -> Example:
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


def own_loss(task: Task, outputs: Any, inputs: Batch, targets: Any) -> Tensor | None:
    """What the labels say, by the task's loss or, for a dict that holds labels, by the model itself; None without labels.

    Raises: TaskError when it is not one number that depends on the outputs.
    """
    if task.loss is not None and targets is not None:
        return _checked(task.loss, outputs, targets)
    if task.train is None or not isinstance(inputs, Mapping) or LABELS not in inputs:
        return None
    value = outputs.get(LOSS) if isinstance(outputs, Mapping) else getattr(outputs, LOSS, None)
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
