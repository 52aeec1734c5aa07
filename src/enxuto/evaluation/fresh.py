"""A function run in a brand-new Python interpreter: what is measured there owes nothing to the process that asks.

Function and arguments travel by cloudpickle through a temporary folder, so functions of a script or a notebook do too.
"""

from __future__ import annotations

import copyreg
import io
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import cloudpickle

from enxuto.errors import Error, TaskError

P = ParamSpec("P")
R = TypeVar("R")
_TAIL = 2000  # characters of the child's output shown when it dies
_log = logging.getLogger(__name__)


class UnpicklableError(TaskError):
    """What was to run in a fresh process cannot be sent there; the caller may run it here and say so."""


class FreshProcessError(Error, RuntimeError):
    """The fresh process died, or an error in it cannot be raised here; the message holds its last words."""


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `function(*args, **kwargs)` returns in a new interpreter that has this one's `sys.path`.

    An error of the function is raised here, with its type and message and the other process's traceback as a note.
    What the function prints goes to the debug log, and is shown if the process dies. Ctrl-C ends the child too.
    Raises: UnpicklableError when function, arguments or result cannot be sent; FreshProcessError when the process dies.
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    with tempfile.TemporaryDirectory(prefix="enxuto-") as folder:
        job, answer, printed = (Path(folder) / part for part in ("job", "answer", "printed"))
        job.write_bytes(_pickled((function, args, kwargs), f"'{name}' and its arguments"))
        code = _run(job, answer, printed)
        words = printed.read_text(errors="replace")[-_TAIL:].strip()
        if not answer.exists():
            raise FreshProcessError(
                f"'{name}' ended its fresh process with code {code} and no answer ({words or 'it said nothing'}); "
                "run it in a plain Python script to see why, or free memory if it was killed."
            )
        if words:
            _log.debug("%s in a fresh process said: %s", name, words)
        kind, payload = pickle.loads(answer.read_bytes())
    if kind == "error":
        raise payload
    return payload


def _run(job: Path, answer: Path, printed: Path) -> int:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with printed.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "enxuto.evaluation.fresh", os.fspath(job), os.fspath(answer)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            return child.wait()
        finally:  # also on Ctrl-C
            if child.poll() is None:
                child.kill()
                child.wait()


def _pickled(value: object, what: str) -> bytes:
    try:
        file = io.BytesIO()
        _Pickler(file).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, ImportError, RuntimeError) as error:
        raise UnpicklableError(
            f"{what} cannot be sent between processes ({type(error).__name__}: {error}); "
            "keep open files, locks, sessions and generators out of it, or create them inside the function."
        ) from error
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Cloudpickle that takes what torch makes hard to send.

    A module with parametrizations, whose class is made at run time: torch refuses it, cloudpickle sends such a class by
    value. A tensor that is a part of a larger one travels alone, not with all that lies around it.
    """

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")  # not imported for this: a child that measures memory stays small
        if torch is None:
            return super().reducer_override(value)
        if isinstance(value, torch.nn.Module) and torch.nn.utils.parametrize.is_parametrized(value):
            return copyreg.__newobj__, (type(value),), vars(value)  # type: ignore[attr-defined]
        dense = type(value) is torch.Tensor and value.is_leaf and value.layout == torch.strided
        if dense and value.untyped_storage().nbytes() > 2 * value.nbytes:
            return value.detach().clone().requires_grad_(value.requires_grad).__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        return super().reducer_override(value)


def _opened(job: str) -> tuple[Callable[..., object], tuple[object, ...], dict[str, object]]:
    try:
        work: tuple[Callable[..., object], tuple[object, ...], dict[str, object]] = pickle.loads(Path(job).read_bytes())
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        raise UnpicklableError(
            f"the job cannot be opened in a fresh process ({type(error).__name__}: {error}); "
            "put the module it names on sys.path, and what it needs into that module."
        ) from error
    return work


def _sendable(error: Exception) -> Exception:
    """The error itself if it survives the journey, else one that holds its type and message."""
    try:
        sent = pickle.loads(cloudpickle.dumps(error))
        if type(sent) is type(error) and str(sent) == str(error):
            return error
    except Exception as failure:  # an error class may fail in any way while it is rebuilt
        _log.debug("%s does not travel: %s", type(error).__name__, failure)
    return FreshProcessError(f"{type(error).__name__} in a fresh process: {error}")


def _main(job: str, answer: str) -> None:
    try:
        function, args, kwargs = _opened(job)
        data = _pickled(("result", function(*args, **kwargs)), "the result of the function")
    except Exception as error:
        sent = _sendable(error)
        sent.add_note("in a fresh process:\n" + traceback.format_exc()[-_TAIL:])
        data = cloudpickle.dumps(("error", sent))
    part = Path(answer).with_suffix(".part")
    part.write_bytes(data)
    part.replace(answer)


if __name__ == "__main__":
    from enxuto.evaluation.fresh import _main as main  # so that error classes are this package's, not those of __main__

    main(sys.argv[1], sys.argv[2])
