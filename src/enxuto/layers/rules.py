"""What a file may say of a layer: a rule for each argument of each kind. What has no rule here cannot be said.

Nothing is built to find out: an argument is refused before torch sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from enxuto.checks import named, whole, within
from enxuto.errors import ArtifactError

LARGEST = 2**31 - 1  # what torch takes as the length of an axis in all of its kernels
FARTHEST = 1024  # how far a dilated kernel or a padding may reach that no network at hand confirms


@dataclass(frozen=True)
class Rule:
    """What an argument may be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _each(least: int) -> Callable[[Any], bool]:
    """True for one number from `least` on, or one for each axis."""
    return lambda value: all(whole(size, least, LARGEST) for size in (value if isinstance(value, tuple) else (value,)))


def _one_of(*words: str) -> Rule:
    return Rule(f"one of {', '.join(words)}", lambda value: type(value) is str and value in words)


FLAG = Rule("true or false", lambda value: type(value) is bool)
SIZE = Rule(f"a whole number from 1 to {LARGEST}", lambda value: whole(value, 1, LARGEST))
PLACE = Rule("a whole number, or nothing", lambda value: value is None or whole(value, 0, LARGEST))
SIZES_ = Rule(f"whole numbers from 1 to {LARGEST}", _each(1))
MARGIN = Rule("whole numbers from 0", _each(0))
PADDING = Rule("whole numbers from 0, 'same' or 'valid'", lambda value: value in ("same", "valid") or _each(0)(value))
SHARE = Rule("a number from 0 to 1", lambda value: within(value, "[0, 1]"))
MOMENTUM = Rule("a number from 0 to 1, or nothing", lambda value: value is None or within(value, "[0, 1]"))
NORM = Rule("a positive number, inf, or nothing", lambda value: value in (None, math.inf) or within(value, "(0, 1e30]"))
NUMBER = Rule("a finite number", lambda value: within(value, "[-1e30, 1e30]"))

ARGUMENTS: dict[str, Rule] = {
    **dict.fromkeys(
        ("in_features", "out_features", "in_channels", "out_channels", "groups", "rank", "in_rank", "rows", "columns"), SIZE
    ),
    **dict.fromkeys(("num_features", "num_groups", "num_channels", "num_parameters", "num_embeddings", "embedding_dim"), SIZE),
    **dict.fromkeys(("input_size", "hidden_size", "num_layers"), SIZE),
    **dict.fromkeys(("kernel_size", "stride", "dilation", "normalized_shape"), SIZES_),
    **dict.fromkeys(("bias", "affine", "track_running_stats", "elementwise_affine"), FLAG),
    **dict.fromkeys(("batch_first", "bidirectional", "scale_grad_by_freq", "sparse", "include_last_offset"), FLAG),
    "padding": PADDING,
    "output_padding": MARGIN,
    "padding_mode": _one_of("zeros", "reflect", "replicate", "circular"),
    "nonlinearity": _one_of("tanh", "relu"),
    "mode": _one_of("sum", "mean", "max"),
    "proj_size": Rule("a whole number from 0", lambda value: whole(value, 0, LARGEST)),
    "padding_idx": PLACE,
    "eps": SHARE,
    "momentum": MOMENTUM,
    "dropout": SHARE,
    "max_norm": NORM,
    "norm_type": NORM,
    "init": NUMBER,
}
FORBIDDEN = ("device", "dtype", "_weight", "_freeze")  # arguments of torch that take memory or say what tensors say

_PER_AXIS = ("kernel_size", "stride", "padding", "dilation", "output_padding")


def checked(kind: str, allowed: Mapping[str, object], arguments: object) -> dict[str, Any]:
    """The arguments with lists as tuples, when each is one that the kind has and keeps to its rule.

    Raises: ArtifactError for any other.
    """
    if not isinstance(arguments, Mapping):
        raise ArtifactError(f"the file builds {kind} from {named('args', arguments)}, which are no arguments; it is damaged.")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    plain |= {name: math.inf for name, value in plain.items() if value == "inf"}  # JSON has no number for it
    for name, value in plain.items():
        if name not in allowed or name not in ARGUMENTS:
            known = ", ".join(each for each in allowed if each in ARGUMENTS) or "none"
            raise ArtifactError(f"the file gives {kind} the argument {name!r}; it takes {known}, and the file is damaged.")
        if not ARGUMENTS[name].holds(value):
            raise ArtifactError(
                f"the file gives {kind} {named(name, value)}, which is not {ARGUMENTS[name].words}; the file is damaged."
            )
    kernel = plain.get("kernel_size")
    axes = int(kind[-2]) if kind[-2:] in ("1d", "2d", "3d") else len(kernel) if isinstance(kernel, tuple) else None
    for name in _PER_AXIS:
        if isinstance(plain.get(name), tuple) and len(plain[name]) != axes:
            raise ArtifactError(f"the file gives {kind} {named(name, plain[name])} for {axes} axes; the file is damaged.")
    return plain
