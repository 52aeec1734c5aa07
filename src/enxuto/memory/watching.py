"""Watches memory around the user's own loop: every step is followed, the last one is kept, a terminal shows it live."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from enxuto.batches import leaves
from enxuto.errors import TaskError
from enxuto.memory.profile import BACKWARD, INPUTS, Block, Moment, Profile
from enxuto.memory.recording import resident_bytes
from enxuto.memory.tracker import Tracker
from enxuto.memory.workspace import Workspaces

if TYPE_CHECKING:
    from rich.live import Live


class Watch:
    """What is followed while the block runs, and afterwards what was seen of it.

    `steps` counts whole steps, `peak_bytes` is the most that was alive at one moment of all of them, `peak_rss_bytes` the
    most of the whole process at the end of one (0 where the system does not say). Nothing grows with the number of steps.
    """

    def __init__(self, model: nn.Module, *optimizers: torch.optim.Optimizer, live: bool = True) -> None:
        self.model, self.optimizers = model, optimizers
        self.steps = 0
        self.peak_bytes = 0
        self.peak_rss_bytes = 0
        self.fullest: Profile | None = None  # the step in which the most was alive
        self.tracker = Tracker(model, *optimizers, workspace=self._inside, on_moment=self._moment)
        self._live = live
        self._workspaces = Workspaces()
        self._view: Live | None = None
        self._hooks: list[Any] = []
        self._last: tuple[tuple[Block, ...], tuple[Moment, ...]] | None = None
        self._briefly = 0  # bytes inside the operator that runs
        self._most = 0  # the most alive since the last cut
        self._fresh = True  # a forward pass that comes now is the first of its backward pass
        self._runs = False  # the model was called at all
        self._learns = False  # the model was called with gradients in this step
        self._evaluates = False  # the last call was without gradients

    def profile(self) -> Profile:
        """The last whole step; when there was none, all that ran until now.

        Raises: TaskError when nothing ran.
        """
        blocks, moments = self._last or (self.tracker.blocks(), tuple(self.tracker.moments))
        return Profile(blocks, moments, predicted=False)

    @property
    def now(self) -> dict[str, int]:
        """Bytes of each category at this moment."""
        return self.tracker.now()

    def __enter__(self) -> Self:
        self._hooks.append(self.model.register_forward_pre_hook(self._called, with_kwargs=True, prepend=True))
        self.tracker.__enter__()
        if self.optimizers:  # after the tracker's own, which then knows the states
            self._hooks.append(self.optimizers[-1].register_step_post_hook(lambda *_: self._stepped()))
        if self._live and sys.stderr is not None and sys.stderr.isatty():
            from enxuto.memory.live import view

            self._view = view(self)
            self._view.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.tracker.moments:
                whole = not self.optimizers and self._runs and kind is None
                self._keep((self.tracker.blocks(), tuple(self.tracker.moments)), whole=whole)
            if self._view is not None:
                self._view.stop()  # shows the last state
        finally:
            self._view = None
            self.tracker.__exit__(kind, error, trace)
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()

    # what runs

    def _inside(self, func: Any, args: tuple[Any, ...], outputs: Any) -> int:
        self._briefly = self._workspaces(func, args, outputs)
        return self._briefly

    def _moment(self) -> None:
        self._most = max(self._most, self.tracker.now_bytes + self._briefly)
        self._briefly = 0
        if self.tracker.moments[-1].phase == BACKWARD:
            self._fresh = True

    def _called(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is about to run. Without an optimizer that is a step; an evaluation is no step and is not kept."""
        learns = torch.is_grad_enabled()
        for tensor in leaves((args, kwargs)):
            self.tracker.add(tensor)
        if self._fresh or not learns:
            self.tracker.name_outside(INPUTS)  # targets too, and whatever else was made before the model runs
        apart = not self._learns and (self._evaluates or not learns)
        if self.tracker.moments and (not self.optimizers or apart):
            self._keep(self.tracker.cut(), whole=not self.optimizers and self._runs)
        self._fresh, self._runs, self._evaluates, self._learns = False, True, not learns, self._learns or learns

    def _stepped(self) -> None:
        self._keep(self.tracker.cut(), whole=True)
        self._fresh, self._evaluates, self._learns = True, False, False

    def _keep(self, passed: tuple[tuple[Block, ...], tuple[Moment, ...]], *, whole: bool) -> None:
        """Takes in what ran since the last cut."""
        if whole or self._last is None:
            self._last = passed
        self.steps += whole
        if self._most > self.peak_bytes:
            self.peak_bytes = self._most
            self.fullest = Profile(*passed, predicted=False)
        self._most = self.tracker.now_bytes
        self.peak_rss_bytes = max(self.peak_rss_bytes, resident_bytes())


def watch(model: nn.Module, *optimizers: torch.optim.Optimizer, live: bool = True) -> Watch:
    """Follows the memory of every step of the loop inside `with watch(model, optimizer) as seen:`.

    A step ends where the optimizer has made its update, of several the last one; without any, each call of the model begins one.
    Calls without gradients in between are an evaluation: they count for the peak, not as steps. What operators need inside
    themselves is foreseen as in `predict`. With `live`, a terminal shows it on stderr as it changes.
    Raises: TaskError when the model is no Module.
    """
    if not isinstance(model, nn.Module):
        raise TaskError(f"model is {type(model).__name__}, not a torch.nn.Module; pass the network that is trained.")
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TaskError(f"optimizer is {type(optimizer).__name__}, not a torch.optim.Optimizer; pass the one that steps.")
    return Watch(model, *optimizers, live=live)
