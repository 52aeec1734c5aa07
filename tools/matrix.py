"""`make check-matrix`: the tests under another Python and the oldest torch, and a file that runs in a bare environment.

Each has an environment of its own under .matrix/. One that cannot be had here (no interpreter, no wheel) is skipped in a line
that says so; what runs and fails ends with exit code 1. MATRIX_PYTHON names interpreters, MATRIX_TESTS what is tested.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".matrix"
PYTHONS = ("python3.12", "python3.13")
OLDEST_TORCH = "2.9.*"  # as pyproject.toml allows
MOST_S = 3600

SAVE = """
import sys, numpy, torch, enxuto as ex
torch.manual_seed(0)
net, batch = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).eval(), torch.randn(4, 16)
small, _ = ex.run(ex.Task(net, calibration=[batch]), [ex.Quantize(bits=8)])
ex.save(small, sys.argv[1] + "/net.nxt", original=net, graph=[batch])
numpy.savez(sys.argv[1] + "/net.npz", batch=batch.numpy(), expected=small(batch).detach().numpy())
"""
RUN = """
import importlib.util, sys, numpy, enxuto.runtime
found = numpy.load(sys.argv[1] + "/net.npz")
outputs = enxuto.runtime.open(sys.argv[1] + "/net.nxt")(found["batch"])
assert numpy.abs(outputs - found["expected"]).max() < 1e-5, "other outputs"
assert importlib.util.find_spec("torch") is None, "torch is here"
print("outputs equal; no torch")
"""


class Unavailable(Exception):
    """Something that this machine does not have, in words."""


def main() -> int:
    """Runs those that are named on the command line, or all; the exit code says whether any failed."""
    wanted = sys.argv[1:] or ["bare", "python", "oldest"]
    FOLDER.mkdir(exist_ok=True)
    failed = False
    for name, check in _checks(wanted):
        try:
            check()
            print(f"{name}: passed", flush=True)
        except Unavailable as error:
            print(f"{name}: skipped, {error}", flush=True)
        except subprocess.CalledProcessError as error:
            print(f"{name}: FAILED with exit code {error.returncode}", flush=True)
            failed = True
    return int(failed)


def _checks(wanted: Sequence[str]) -> list[tuple[str, Callable[[], None]]]:
    checks: list[tuple[str, Callable[[], None]]] = []
    if "bare" in wanted:
        checks.append(("a bare environment", bare))
    if "python" in wanted:
        names = os.environ.get("MATRIX_PYTHON", "").split() or PYTHONS
        checks += [(name, lambda name=name: tests(name, "")) for name in names]  # type: ignore[misc]
    if "oldest" in wanted:
        checks.append((f"torch {OLDEST_TORCH}", lambda: tests(sys.executable, OLDEST_TORCH)))
    return checks


def bare() -> None:
    """The wheel with its extra `run` in an environment of its own, where a file with its graph runs."""
    python = _environment("bare", sys.executable)
    shutil.rmtree(FOLDER / "wheel", ignore_errors=True)
    _call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", FOLDER / "wheel", cwd=ROOT)
    (wheel,) = (FOLDER / "wheel").glob("*.whl")
    _install(python, "--force-reinstall", "--no-deps", wheel)
    _install(python, f"{wheel}[run]")
    _call(sys.executable, "-c", SAVE, FOLDER)
    _call(python, "-c", RUN, FOLDER)


def tests(interpreter: str, torch: str) -> None:
    """The test suite under an interpreter, with the locked packages and, where named, another torch."""
    python = _environment(re.sub(r"\W", "", f"{Path(interpreter).name}{torch}"), interpreter)
    constraints = FOLDER / f"constraints{'-oldest' if torch else ''}.txt"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints.write_text(
        "".join(f"torch=={torch}\n" if torch and line.startswith("torch==") else f"{line}\n" for line in lines)
    )
    _install(python, "-c", constraints, "torch")
    for lock in ("requirements.lock", "requirements-dev.lock"):
        packages = [
            line
            for line in (ROOT / lock).read_text().splitlines()
            if line[:1] not in ("#", "") and not line.startswith("torch==")
        ]
        own = FOLDER / lock
        own.write_text("\n".join(packages) + "\n")
        _install(python, "-c", constraints, "-r", own)
    _install(python, "--no-deps", "--no-build-isolation", "-e", ROOT)
    chosen = os.environ.get("MATRIX_TESTS", "tests").split()
    _call(python, "-m", "pytest", *chosen, cwd=ROOT)


def _environment(name: str, interpreter: str) -> Path:
    """The interpreter of a virtual environment, made where there is none. Raises: Unavailable without that Python."""
    python = FOLDER / name / "bin" / "python"
    if not python.exists():
        found = shutil.which(interpreter)
        if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
            raise Unavailable(f"there is no {interpreter} here that runs; name one in MATRIX_PYTHON")
        _call(found, "-m", "venv", FOLDER / name)
    return python


def _install(python: Path, *arguments: str | Path) -> None:
    """Installs packages. Raises: Unavailable, with pip's last words, when one cannot be had."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MOST_S)
    if done.returncode:
        raise Unavailable(f"pip could not install {arguments[-1]}: {(done.stderr.strip().splitlines() or ['no words'])[-1]}")


def _call(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, timeout=MOST_S)


if __name__ == "__main__":
    sys.exit(main())
