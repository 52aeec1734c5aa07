"""Which packages belong to which extra of the wheel, and the error with the line that installs a missing one.

The wheel itself needs numpy and numba, enough to read files; what else is missing is said here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from enxuto.errors import MissingPackageError

RUN = ("onnxruntime",)
COMPRESS = (
    *("torch", "scipy", "onnx", "onnxscript", "lightning_fabric", "safetensors"),
    *("cloudpickle", "yaml", "rich", "typer", "jinja2", "markupsafe"),
)
ALL = ("sklearn", "matplotlib")
LIGHTNING = ("lightning", "pytorch_lightning")
TRANSFORMERS = ("transformers", "accelerate")
EXTRAS = (
    dict.fromkeys(ALL, "all")
    | dict.fromkeys(COMPRESS, "compress")
    | dict.fromkeys(RUN, "run")
    | dict.fromkeys(LIGHTNING, "lightning")
    | dict.fromkeys(TRANSFORMERS, "transformers")
)
"""The extra that brings a package, by the name it is imported by."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Within the block a package of ours that is not installed is an error that says how to install it.

    Raises: MissingPackageError in the place of ModuleNotFoundError.
    >>> with explained("ex.compress"):
    ...     raise ModuleNotFoundError("No module named 'torch'", name="torch")
    Traceback (most recent call last):
    enxuto.errors.MissingPackageError: ex.compress needs torch, which is not installed; run pip install 'enxuto[compress]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingPackageError(
            f"{what} needs {package}, which is not installed; run pip install 'enxuto[{EXTRAS[package]}]'."
        ) from error
