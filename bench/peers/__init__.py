"""Tools of others that need an environment of their own: where it is, how it is made, and a conversation with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent.parent / ".cache" / "peers"
THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "nncodec": (("numpy<2",), ("--no-deps", "nncodec==2.1.3")),  # it asks for torchvision, which integers do not need
    "nncf": (("openvino==2026.4.0", "nncf==3.4.0"),),
    "zipnn": (("torch==2.13.0",), ("numpy", "safetensors", "zstandard", "torch==2.13.0"), ("--no-deps", "zipnn==0.5.4")),
}
"""What pip installs for each, call after call: a CPU build of torch has to come before anything that asks for torch."""


def interpreter(name: str) -> Path | None:
    """The Python that runs a peer: ENXUTO_<NAME>_PYTHON, else one under .cache, made now; None, with a line, if that fails."""
    variable = f"ENXUTO_{name.upper()}_PYTHON"
    given = os.environ.get(variable)
    if given:
        return _working(Path(given), name, f"{variable}={given}")
    python = ENVIRONMENTS / name / "bin" / "python"
    done = ENVIRONMENTS / name / "complete"
    if not done.exists():
        print(f"making an environment for {name} in {python.parent.parent}; some minutes, once", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", python.parent.parent], check=True, capture_output=True)
            for packages in NEEDS[name]:
                command = [python, "-m", "pip", "install", "--quiet", *packages]
                subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            words = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            print(f"SKIPPED {name}: its environment could not be made ({' '.join(words)}); set {variable} to one", flush=True)
            return None
        done.touch()
    return _working(python, name, str(python))


def _working(python: Path, name: str, words: str) -> Path | None:
    try:
        subprocess.run([python, "-c", f"import {name}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print(f"SKIPPED {name}: {words} cannot import it", flush=True)
        return None
    return python


class Peer:
    """A running peer script: `first` is what it said about its input, `round()` asks for one more timed round."""

    def __init__(self, python: Path, name: str, *arguments: object) -> None:
        script = HERE / f"{name}_peer.py"
        self._process = subprocess.Popen(
            [python, script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | THREADS,
        )
        self.first = self._answer()

    def round(self) -> dict[str, Any]:
        """CPU seconds of one more round."""
        return self.ask({})

    def ask(self, setting: dict[str, object]) -> dict[str, Any]:
        """What it says of a setting."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(setting) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with {self._process.wait()} and said nothing; its errors are above")
        return dict(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
