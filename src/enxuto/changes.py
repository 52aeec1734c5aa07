"""The changes that `sensitivities` tries on one layer, and the steps that make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from enxuto.checks import named, whole
from enxuto.errors import RangeError
from enxuto.losses import Loss
from enxuto.recipe import line, to_data
from enxuto.steps.factorize import Factorize
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.task import Step


def changes(
    bits: Sequence[int | Quantize], sparsity: Sequence[float], sizes: Sequence[float]
) -> tuple[Quantize, tuple[Loss, ...]]:
    """How weights get bits, and every change that is tried.

    Raises: RangeError for a value out of range, or when there is none.
    """
    for name, values in (("bits", bits), ("sparsity", sparsity), ("sizes", sizes)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise RangeError(f"{named(name, values)} is no list; write for example bits=(8, 4), sparsity=() and sizes=(0.5,).")
    quantize, widths = _widths(bits)
    found = [Loss(bits=each) for each in widths]
    middle = widths[max(0, len(widths) // 2 - 1) : len(widths) // 2 + 1]
    bases = [*(Loss(sparsity=each) for each in sparsity), *(Loss(size=each) for each in sizes)]
    found += [replace(base, bits=more) for base in bases for more in (None, *middle)]
    if not found:
        raise RangeError("bits, sparsity and sizes are all empty, and nothing would be measured; give at least one of them.")
    for change in found:
        steps_of(change, ["*"], quantize)
    return quantize, tuple(dict.fromkeys(found))


def arguments(quantize: Quantize) -> dict[str, object]:
    """The arguments of the step as plain data, but for bits and layers."""
    return {name: value for name, value in to_data([quantize])[0].items() if name not in ("step", "bits", "layers")}


def steps_of(loss: Loss, layers: Sequence[str], quantize: Quantize) -> tuple[Step, ...]:
    """The steps that make this change to these layers, one after the other."""
    chosen = layers[0] if len(layers) == 1 else tuple(layers)
    found: list[Step] = []
    if loss.sparsity is not None:
        found.append(Prune(loss.sparsity, layers=chosen, scope="layer"))
    if loss.size is not None:
        found.append(Factorize(size=loss.size, layers=chosen))
    if loss.bits is not None:
        found.append(replace(quantize, bits=loss.bits, layers=chosen))
    return tuple(found)


def _widths(bits: Sequence[int | Quantize]) -> tuple[Quantize, list[int]]:
    """The step that all bits have in common, and the bits. Raises: RangeError when there are several, or one without bits."""
    for each in bits:
        if not isinstance(each, Quantize) and not whole(each, 1):
            what = f"the class {each.__name__}" if isinstance(each, type) else named("a value", each).partition("=")[2]
            raise RangeError(
                f"bits holds {what}, which is no number of bits and no Quantize step; write for example bits=(8, 4)."
            )
    steps = [each if isinstance(each, Quantize) else Quantize(bits=each) for each in bits]
    kinds = list(dict.fromkeys(replace(step, bits=8, layers="*") for step in steps))
    if len(kinds) > 1:
        raise RangeError(
            f"bits holds {line(kinds[0])} and {line(kinds[1])}, which differ not in bits alone; measure one after the other."
        )
    if kinds and kinds[0].tolerance is not None:
        raise RangeError(f"tolerance={kinds[0].tolerance} chooses bits itself, and here they are given; leave it out.")
    return kinds[0] if kinds else Quantize(), [step.bits for step in steps]
