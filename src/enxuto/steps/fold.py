"""Fold: batch norm disappears into the layer before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from enxuto.batches import Batch, leaves, mapped
from enxuto.calls import attempt, evaluating, float_outputs
from enxuto.copies import separate_
from enxuto.errors import NothingChangedError, TaskError
from enxuto.evidence.samples import small_batch
from enxuto.functional.likeness import distance, largest
from enxuto.layers.coded import Coded, code_, decode_, plain_class, sources
from enxuto.layers.grids import CodedTensor
from enxuto.layers.traits import standard, traits
from enxuto.records import Change, Record, reasons
from enxuto.select import Patterns, matches
from enxuto.sites import Site
from enxuto.surgery import borrowed, duplicate, replace_
from enxuto.task import Task, check_call

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SAME = 0.02  # relative difference of outputs that rounding explains, in bfloat16 too
EXACT = 1e-6  # the same in double precision
SCALES = (1.0, -3.0, 100.0)  # of the inputs on which a layer with a forward of its own must be what a folded one is


@dataclass(frozen=True)
class Fold:
    """Every batch norm that directly follows a Linear or convolution is merged into it; outputs stay the same.

    A norm after anything else, or after a layer whose output is also read elsewhere, is left alone and named. So is one after
    a coded layer whose codes could not stay: each scale must belong to one output channel (grouped scales keep 8 bits of
    precision). A coded bias becomes a float one. Layers and norms with a forward of their own are folded where that forward,
    tried alone, computes what the folded layer does.
    Source: Jacob et al. 2018, section 3.2.
    """

    layers: Patterns = "*"

    def __call__(self, model: nn.Module, task: Task) -> tuple[nn.Module, Record]:
        """The folded copy. Raises: NothingChangedError when no norm can be folded."""
        check_call(self, model, task)
        start = time.monotonic()
        sample = small_batch(model, task.sample)
        pairs, skipped = pairs_to_fold(model, sample, self.layers)
        expected = float_outputs(model, sample)
        folded, changes, refused = _folded(model, pairs)
        if changes and _fault(folded, sample, expected):  # something reads what autograd does not see
            folded, changes, refused = borrowed(model), [], []
            for pair in pairs:
                candidate, change, reason = _folded(folded, [pair])
                fault = _fault(candidate, sample, expected) if change else ""
                if fault:
                    reason = [Change(pair[1], "not folded", fault)]
                else:
                    folded, changes = candidate, changes + change
                refused += reason
        skipped += refused
        if not changes:
            why = reasons(skipped) or "the model has no batch norm"
            raise NothingChangedError(f"Fold would change nothing: {why}; leave the step out.")
        return separate_(folded, model), Record(str(self), tuple(changes), tuple(skipped), {}, time.monotonic() - start)


def _folded(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> tuple[nn.Module, list[Change], list[Change]]:
    """A copy with these norms folded, what was done, and what was refused."""
    model = borrowed(model)
    changes, refused = [], []
    for layer_path, norm_path in pairs:
        layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
        reason = _refusal(layer, norm)
        if reason:
            refused.append(Change(norm_path, "not folded", reason))
            continue
        _fold_(layer, norm)
        replace_(model, norm_path, nn.Identity())
        changes.append(Change(norm_path, f"folded into {layer_path}", "it scales and shifts that layer's outputs"))
    return model, changes, refused


def _fault(folded: nn.Module, sample: Batch, expected: list[Tensor]) -> str:
    """Why the folded model is not the model it was; empty when it is."""
    try:
        outputs = float_outputs(folded, sample)
    except TaskError as error:
        return f"the model reads what is gone with the norm ({type(error.__cause__).__name__}: {error.__cause__})"
    same = all(distance(*pair) <= SAME for pair in zip(outputs, expected, strict=True))
    return "" if same else "the outputs of the model would change"


def pairs_to_fold(model: nn.Module, sample: Batch, layers: Patterns) -> tuple[list[tuple[str, str]], list[Change]]:
    """(layer, norm) paths where the norm reads the layer's output and nothing else does; and the norms left, with reasons.

    Runs the sample once: a norm follows a layer when it reads the very tensor the layer gave, unchanged in place. Another
    reader of that tensor is found by asking the autograd graph how often it is used.
    """
    given: dict[int, tuple[str, Tensor]] = {}
    versions: dict[int, int] = {}
    reads: dict[str, str] = {}
    calls: dict[str, int] = {}
    shapes: dict[str, torch.Size] = {}

    def gave(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            calls[path] = calls.get(path, 0) + 1
            if isinstance(output, Tensor):
                shapes[path] = next((tensor.shape for tensor in leaves((args, kwargs))), torch.Size())
                given[id(output)] = (path, output)  # the tensor is kept, so its id stays its own
                versions[id(output)] = output._version

        return hook

    def read(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            calls[path] = calls.get(path, 0) + 1
            first = next(leaves((args, kwargs)))
            source, output = given.get(id(first), ("", first))
            wide = bool(source) and output.ndim == candidates[source].weight.ndim  # else the norm's channels lie elsewhere
            reads[path] = source if wide and versions[id(output)] == output._version else ""

        return hook

    model = borrowed(model).requires_grad_(True)
    sample = _with_gradients(sample)
    norms = {path: m for path, m in model.named_modules() if isinstance(m, NORMS) and matches(path, layers)}
    candidates: dict[str, Any] = {path: m for path, m in model.named_modules() if _is_product(m)}
    hooks = [m.register_forward_hook(gave(path), with_kwargs=True) for path, m in candidates.items()]
    hooks += [m.register_forward_pre_hook(read(path), with_kwargs=True) for path, m in norms.items()]
    try:
        with evaluating(model), torch.enable_grad():
            output = attempt(model, sample, "calibration batch 1")
            users = _users(output, given)
    finally:
        for handle in hooks:
            handle.remove()
    pairs, skipped = [], []
    for path, norm in norms.items():
        source = reads.get(path, "")
        reason = _reason(norm, source, users, many=calls.get(path, 0) > 1 or calls.get(source, 0) > 1)
        reason = reason or _own(candidates[source], norm, shapes[source])
        if reason:
            skipped.append(Change(path, "not folded", reason))
        else:
            pairs.append((source, path))
    return pairs, skipped


def _is_product(module: nn.Module) -> bool:
    return traits(module).product or traits(module).transposed


def _reason(norm: nn.Module, source: str, users: Mapping[str, int], *, many: bool) -> str:
    """Why a norm that reads from `source` cannot be folded; empty when it can."""
    if not source:
        return "it does not directly follow a Linear or convolution"
    if many:
        return "it or the layer before it is called more than once"
    if source not in users:
        return f"what reads the output of '{source}' could not be seen"
    if users[source] > 1:
        return f"the output of '{source}' is also read elsewhere"
    if norm.running_mean is None:
        return "it keeps no running statistics"
    return ""


def _own(layer: Any, norm: Any, shape: torch.Size) -> str:
    """Why a layer and a norm are not what these kinds are; empty when they are, or compute what a folded layer would.

    Subclasses with a forward of their own are tried in double precision on inputs of several sizes.
    """
    computed = [module for module in (layer, norm) if "weight" not in module._parameters and not isinstance(module, Coded)]
    if computed:
        return f"the weight of {type(computed[0]).__name__} is computed from other parameters"
    own = [module for module in (layer, norm) if not standard(plain_class(type(module)))]
    if not own:
        return ""
    reason = f"{type(own[0]).__name__} has a forward of its own, which "
    first, then = duplicate(layer).eval(), duplicate(norm).eval()
    decode_(first)
    decode_(then)
    folded: Any = duplicate(first.double())
    chance = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            _fold_(folded, then.double())
            for scale in SCALES:
                x = scale * torch.randn(2, *shape[1:], dtype=torch.float64, generator=chance)
                x = x.to(layer.weight.device)
                expected = then(first(x))
                if not torch.allclose(folded(x), expected, rtol=EXACT, atol=EXACT * largest(expected)):
                    return reason + "is not what a folded layer computes"
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        return reason + f"could not be tried alone ({type(error).__name__}: {error})"
    return ""


def _users(output: object, given: dict[int, tuple[str, Tensor]]) -> dict[str, int]:
    """How many operations of the autograd graph read each layer's output."""
    makers = {tensor.grad_fn: path for path, tensor in given.values() if tensor.grad_fn is not None}
    users: dict[str, int] = {}
    stack = [t.grad_fn for t in leaves(output) if t.grad_fn is not None]
    for maker in stack:
        if maker in makers:
            users[makers[maker]] = users.get(makers[maker], 0) + 1
    seen = set(stack)
    while stack:
        node = stack.pop()
        for following, _ in node.next_functions:
            if following in makers:
                users[makers[following]] = users.get(makers[following], 0) + 1
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return users


def _with_gradients(batch: Batch) -> Batch:
    def ready(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(tensor.is_floating_point())

    made: Batch = mapped(batch, ready)
    return made


def _gain(norm: Any) -> Tensor:
    gain = torch.rsqrt(norm.running_var + norm.eps)
    return (gain if norm.weight is None else gain * norm.weight).detach()


def _refusal(layer: nn.Module, norm: nn.Module) -> str:
    """Why the codes of a layer could not stay when its channels are multiplied; empty when they can."""
    tensor = dict(sources(layer).items()).get("weight")
    if tensor is None:
        return ""
    if not isinstance(tensor, CodedTensor) or tensor.grid.shares:
        return "the layer before it shares values between channels; fold first, then share"
    if traits(layer).transposed:
        return "the scales of the layer before it belong to its inputs; fold first, then quantize"
    if tensor.grid.bits == 1 and not bool(_gain(norm).all()):
        return "it makes channels zero, which one bit cannot say; fold first, then quantize"
    return ""


@torch.no_grad()
def _fold_(layer: Any, norm: Any) -> None:
    """w · g and (b − mean) · g + beta, with g = gamma / sqrt(var + eps); a coded weight keeps its codes."""
    tensor = dict(sources(layer).items()).get("weight")
    input_grid = layer._modules.get("input_grid")
    decode_(layer)
    decode_(norm)
    gain = _gain(norm)
    weight = Site("", "weight", layer)
    scaled = weight.shaped(weight.matrix() * gain[:, None])
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * gain if norm.bias is None else bias * gain + norm.bias
    layer.weight = nn.Parameter(scaled)
    layer.bias = nn.Parameter(bias)
    if isinstance(tensor, CodedTensor):
        coded = tensor.scaled(scaled, gain)
        assert coded is not None  # `_refusal` asked
        code_(layer, "weight", coded)
        if input_grid is not None:
            layer.input_grid = input_grid
