"""How good a network is by what its user says, checked: one value per sample where possible."""

from __future__ import annotations

from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from enxuto.calls import evaluating
from enxuto.errors import Error, TaskError
from enxuto.task import Evaluate


def quality(evaluate: Evaluate, model: nn.Module) -> Tensor:
    """What `evaluate` says of a model, checked: one number (0-d) or one value per sample [samples], float64.

    The model is in eval mode and without gradients. Raises: TaskError when evaluate fails, changes the model, or returns
    nothing, more than one axis, or values that are not finite.
    """
    before = _versions(model)
    try:
        with evaluating(model):
            value = evaluate(model)
    except Error:
        raise
    except Exception as error:
        raise TaskError(
            f"evaluate failed on {type(model).__name__} ({type(error).__name__}: {error}); it gets a model only "
            "and must use nothing of it but calling it: exported files are evaluated with it too."
        ) from error
    edited = [path for path, version in _versions(model).items() if before.get(path, version) != version]
    if edited:
        raise TaskError(f"evaluate changed the weights of the model ('{edited[0]}'); it must only call it: work on a copy.")
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.as_tensor(value)
    if not isinstance(value, (Tensor, Real)) or (isinstance(value, Tensor) and value.is_complex()):
        kind = getattr(value, "dtype", type(value).__name__)
        raise TaskError(f"evaluate returned {kind}; return one number, or a tensor of real numbers, one per sample.")
    values = value.detach().cpu().double() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
    if values.dim() > 1 or values.numel() == 0:
        raise TaskError(f"evaluate returned shape {tuple(values.shape)}; return one number, or one value per sample [samples].")
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise TaskError(f"evaluate returned {bad} NaN or infinite values of {values.numel()}; check the model's outputs.")
    return values


def _versions(model: nn.Module) -> dict[str, int]:
    """How often each parameter was written to; torch counts."""
    return {path: tensor._version for path, tensor in model.named_parameters() if not tensor.is_inference()}
