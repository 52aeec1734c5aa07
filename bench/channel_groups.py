"""Channels that are zero come out and no output changes: enxuto's own channel groups beside torch-pruning's.

In each test network half of the units of every group are made zero (rows, biases, scale and shift of norms); then both tools
are asked to take half of all channels out, by magnitude, so that the zeros must go.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import common
from enxuto.errors import NothingChangedError
from enxuto.groups import find_groups
from enxuto.steps.channels import PruneChannels
from enxuto.task import Task
from enxuto.zoo import build

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from channel_nets import image_nets

TOLERANCE = 1e-4
Cut = Callable[[nn.Module, Tensor], nn.Module]


def main() -> None:
    """One row for each network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(8, 3, 8, 8)
    rows = []
    zoo = {name: build(name, in_channels=3).eval() for name in ("resnet-20", "mobilenet-v2")}
    for name, net in {**image_nets(), **zoo}.items():
        model, units = _with_zeros(net, images)
        row: dict[str, object] = {"network": name, "parameters": _parameters(model), "zero_units": units}
        for tool, cut in (("enxuto", _ours), ("torch_pruning", _theirs)):
            start = time.perf_counter()
            row[tool], row[f"{tool}_parameters"] = _verdict(model, images, cut)
            row[f"{tool}_s"] = time.perf_counter() - start
        rows.append(row)
    common.tell("channel_groups", "zero channels come out and no output changes", rows)


def _with_zeros(net: nn.Module, x: Tensor) -> tuple[nn.Module, int]:
    model, chance, count = copy.deepcopy(net), np.random.default_rng(0), 0
    for group in find_groups(model, x).groups:
        units = chance.choice(group.size, group.size // 2, replace=False)
        count += len(units)
        for part in group.slices:
            tensor = getattr(model.get_submodule(part.path), part.name)
            if isinstance(tensor, nn.Parameter) and (part.writes or not part.reads):
                tensor.data.index_fill_(part.dim, torch.tensor(part.indices(units)), 0.0)
    return model, count


def _ours(model: nn.Module, x: Tensor) -> nn.Module:
    return PruneChannels()(model, Task(model, calibration=[x]))[0]


def _theirs(model: nn.Module, x: Tensor) -> nn.Module:
    import torch_pruning

    model = copy.deepcopy(model)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, x, torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[last]
    )
    pruner.step()
    return model.eval()


def _verdict(model: nn.Module, x: Tensor, cut: Cut) -> tuple[str, int | None]:
    """What came of it, and the parameters that are left."""
    with torch.no_grad():
        wanted = model(x)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            smaller = cut(model, x)
        with torch.no_grad():
            got = smaller(x)
    except NothingChangedError:
        return "removed nothing, said so", _parameters(model)
    except Exception as error:  # a peer may raise anything; the row says what
        return f"failed: {type(error).__name__}", None
    left = _parameters(smaller)
    if left == _parameters(model):
        return "removed nothing, silently", left
    change = float((got - wanted).abs().max() / wanted.abs().max())
    return ("exact" if change < TOLERANCE else f"outputs changed by {change:.0%}"), left


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
