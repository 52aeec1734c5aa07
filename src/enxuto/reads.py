"""Which weights a network reads past their layers: a tied product, a fused operator. Such a layer cannot be two thin ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from enxuto.batches import Batch, leaves
from enxuto.calls import attempt, evaluating
from enxuto.errors import TaskError
from enxuto.sites import Site, sites
from enxuto.surgery import to_float


def read_elsewhere(model: nn.Module, sample: Batch) -> dict[str, str]:
    """The layers whose weights are computed with while they do not run themselves, each with the reason to leave it alone.

    The sample is run once. What only asks for a dtype or a size computes nothing.
    """
    plain = to_float(model)
    seen = _Reads({id(site.tensor): site for site in sites(plain)})
    handles = []
    for path, module in plain.named_modules():
        handles += [
            module.register_forward_pre_hook(seen.enters(path)),
            module.register_forward_hook(seen.leaves(path), always_call=True),
        ]
    try:
        with evaluating(plain), seen:
            attempt(plain, sample, "its own sample inputs")
    except TaskError:  # a model that cannot be watched is told by its outputs alone
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return {path: f"'{reader or 'the model'}' computes with its weight directly" for path, reader in seen.found.items()}


class _Reads(TorchDispatchMode):
    """Notes each operation that takes a weight, and the module in which it runs."""

    def __init__(self, owners: Mapping[int, Site]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners = owners
        self.running: list[str] = [""]
        self.found: dict[str, str] = {}

    def enters(self, path: str) -> Callable[..., None]:
        return lambda *_: self.running.append(path)

    def leaves(self, path: str) -> Callable[..., None]:
        def leave(*_: object) -> None:
            while self.running.pop() != path:
                pass

        return leave

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        for tensor in leaves((args, named)):
            site = self.owners.get(id(tensor))
            paths = [place.path for place in site.places] if site is not None else []
            if not {*paths} & {*self.running} and func is not torch.ops.aten.detach.default:
                self.found |= {path: self.running[-1] for path in paths if path not in self.found}
        return func(*args, **named)
