"""Training with what will be shipped in view: `prepare` before, `convert` after, any loop between.

The layers of a prepared model keep float leaves and see them through the projection they will be shipped with; a
`Schedule` tightens that projection as training goes on. `Recover` uses the same two halves, `rehearse_` and `settle_`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from enxuto.checks import check_list
from enxuto.errors import RecipeError, TaskError
from enxuto.layers.rehearsal import Rehearsal
from enxuto.sites import sites
from enxuto.surgery import duplicate
from enxuto.task import Step, Task
from enxuto.training.rehearsals import rehearse_, settle_
from enxuto.training.tighten import Calibrated, Rehearsable, check_whole

_log = logging.getLogger(__name__)


def prepare(task: Task, steps: Sequence[Step] = (), *, gradual: bool = False) -> nn.Module:
    """A copy of the task's model to train in a loop of one's own, in which every lossy step is already at work.

    Prune, Quantize and Share project float leaves at every forward pass; PruneChannels, Factorize and Fold are done at
    once, so that the smaller layers are what trains. What is compressed already stays so: zeros (of biases those of masks) stay
    zero under any optimizer, codes follow float leaves, and their grids learn; without steps this is all it does. A weight that
    is zero throughout stays so too, and is named in the log. With `gradual`, projections of weights wait for a `Schedule`. The
    ranges of inputs, if Quantize is to round them, begin as they are before the training and learn. Make the optimizer after this
    call, from the parameters of the copy.
    Raises: RecipeError for a step that trains by itself, or that changes layers after others made them train; the errors of
    the steps themselves.
    """
    if not isinstance(task, Task):
        raise RecipeError(f"task is {type(task).__name__}, not a Task; write Task(model, calibration=[batch]).")
    check_list(steps)
    model = duplicate(task.model)
    for weight in sites(model):
        if not bool(weight.read().count_nonzero()):
            _log.warning("'%s' is zero throughout and stays so; give it small values before if it is to learn.", weight.key)
    return prepared(model, task, steps, gradual=gradual).train()


def prepared(model: nn.Module, task: Task, steps: Sequence[Step], *, gradual: bool) -> nn.Module:
    """The same of a model that is the caller's own, whatever the task's is."""
    for leaf in model.modules():
        if isinstance(leaf, Rehearsal):
            leaf.passed = ()  # these steps are the ones to decide
    projected = ""
    for step in steps:
        if isinstance(step, type) or not isinstance(step, Step):
            raise RecipeError(f"{step!r} in steps is no step; write for example Quantize(bits=8).")
        if hasattr(step, "epochs"):
            raise RecipeError(f"{type(step).__name__} trains by itself; prepare is for your own loop: leave the step out.")
        if isinstance(step, Rehearsable):
            step.rehearse_(model, 0.0 if gradual else 1.0)
            if isinstance(step, Calibrated):
                step.calibrate_(model, task)
            projected = projected or type(step).__name__
        elif projected:
            raise RecipeError(
                f"{type(step).__name__} changes layers at once, but {projected} before it is only rehearsed in training; "
                f"put {type(step).__name__} first, or run it on what convert returns."
            )
        else:
            model, _ = step(model, task)
    return rehearse_(model)


def convert(model: nn.Module) -> nn.Module:
    """The trained model as it ships: codes where there was a grid, exact zeros where weights were out, plain floats else."""
    if not isinstance(model, nn.Module):
        raise TaskError(f"model is {type(model).__name__}, not a torch.nn.Module; give what prepare returned, trained.")
    check_whole(
        model, "convert takes a whole model", "load its full state dict into another that prepare has made, and give that"
    )
    return settle_(duplicate(model)).eval()
