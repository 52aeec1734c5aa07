"""Where a changed network can be compared with its original: which layers show what they give, and what moves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from enxuto.batches import Batch, leaves
from enxuto.calls import attempt, evaluating
from enxuto.evidence.pairs import NormPlace, OutputPlace
from enxuto.layers.coded import plain_class
from enxuto.layers.grids import CodedTensor
from enxuto.layers.traits import standard, traits
from enxuto.records import Change
from enxuto.sites import Site, held_by, parameters, together

LEFT = "left alone"
NO_TWIN = "the original has no such layer there"


def holder(model: nn.Module, path: str) -> nn.Module:
    """The layer whose bias is added to what the one at `path` gives."""
    module = model.get_submodule(path)
    return module.get_submodule(traits(module).bias or "")


def norm_places(model: nn.Module, original: nn.Module, paths: Iterable[str]) -> Iterator[NormPlace | Change]:
    """The batch norms of these that keep running statistics, as those of the original at the same path do."""
    known = dict(original.named_modules())
    for path in paths:
        now, was = model.get_submodule(path), known.get(path)
        if not isinstance(now, _BatchNorm) or now.running_mean is None:
            continue
        if not isinstance(was, _BatchNorm) or was.running_mean is None:
            yield Change(path, LEFT, NO_TWIN)
        elif was.running_mean.shape != now.running_mean.shape:
            yield Change(path, LEFT, f"it has {len(now.running_mean)} channels and the original's {len(was.running_mean)}")
        else:
            yield NormPlace(path)


def output_places(
    model: nn.Module, original: nn.Module, paths: Iterable[str], sample: Batch, *, gains: bool
) -> Iterator[OutputPlace | Change]:
    """The layers of these with a bias, and the biases of these that are out of reach, each with the reason.

    The sample is run once, to see into which layers norms were folded: what such a layer gives, the norm gave.
    Raises: TaskError when the network fails on the sample.
    """
    held = together(parameters(model))
    known = {path for path, _ in original.named_modules()}
    folded = _folded(model, original, sample)
    inner: set[str] = set()
    for path in paths:
        module = model.get_submodule(path)
        if path not in inner and _adds_its_bias_last(module) and "bias" in held_by(holder(model, path)):
            inner.add(".".join(filter(None, (path, traits(module).bias))))
            reason = "" if path in known else NO_TWIN
            if len(held[id(held_by(holder(model, path))["bias"])]) > 1:
                reason = "its bias is also that of another layer"
            axis = traits(module).axis(module)
            takes = gains and _takes_gains(holder(model, path), held)
            yield Change(path, LEFT, reason) if reason else OutputPlace(path, folded.get(path, path), axis, gains=takes)
        elif path not in inner:
            yield from _out_of_reach(path, module)
        yield from _hidden(path, module)


def _takes_gains(layer: nn.Module, held: Mapping[int, Sequence[Site]]) -> bool:
    """True where a gain for each output channel goes into the weight: a plain one, or codes with scales of its own for each."""
    weight = held_by(layer).get("weight")
    if weight is None or len(held[id(weight)]) > 1:
        return False
    if isinstance(weight, CodedTensor):
        return weight.rows_alone and not traits(layer).transposed
    return isinstance(weight, Tensor)


def _adds_its_bias_last(module: nn.Module) -> bool:
    return traits(module).bias is not None and standard(plain_class(type(module)))


def _out_of_reach(path: str, module: nn.Module) -> Iterator[Change]:
    """The bias of a layer that may do anything with it."""
    if "bias" in held_by(module) and not isinstance(module, _BatchNorm):
        why = f"{plain_class(type(module)).__name__} has a forward of its own, which need not add its bias last"
        yield Change(f"{path}.bias" if path else "bias", LEFT, why)


def _hidden(path: str, module: nn.Module) -> Iterator[Change]:
    """The biases inside a layer, whose effect nothing shows."""
    why = traits(module).hidden
    names = [name for name in held_by(module) if "bias" in name and name != "bias"] if why else []
    for name in names:
        yield Change(f"{path}.{name}" if path else name, LEFT, why)


def _folded(model: nn.Module, original: nn.Module, sample: Batch) -> dict[str, str]:
    """The norms of the original that are none any more, by the path of the layer whose very output comes in their place."""
    known = dict(original.named_modules())
    gone = {path for path, module in model.named_modules() if _is_gone(known.get(path), module)}
    found: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []  # held, so that its id stays its own

    def gave(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: object, output: Any) -> None:
            last[:] = [(path, output)] if isinstance(output, Tensor) else []

        return hook

    def read(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            given = next(leaves((args, dict(kwargs))), None)
            if last and given is last[0][1]:
                found[last[0][0]] = path

        return hook

    layers = [(path, module) for path, module in model.named_modules() if _adds_its_bias_last(module)]
    hooks = [module.register_forward_hook(gave(path)) for path, module in layers if gone]
    hooks += [model.get_submodule(path).register_forward_pre_hook(read(path), with_kwargs=True) for path in gone]
    try:
        with evaluating(model):
            if gone:
                attempt(model, sample, "its own sample inputs")
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _is_gone(was: nn.Module | None, now: nn.Module) -> bool:
    return isinstance(was, _BatchNorm) and not isinstance(now, _BatchNorm)
