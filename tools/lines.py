"""A pytest plugin (`-p tools.lines`) that names the lines of the product that no test reaches, and fails where they are many.

slipcover marks lines in the bytecode, and a mark goes when its line was reached (its other way, to compile functions anew after a
while, keeps tensors alive that tests of memory count). Not seen: files with loops for numba, and what runs in other processes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import slipcover

SOURCE = Path(__file__).parents[1] / "src" / "enxuto"
COMPILED = [
    str(path) for path in SOURCE.rglob("*.py") if re.search("njit|import hot", path.read_text("utf-8"))
]  # numba reads bytecode
LEAST = 95  # percent of all lines

marks = slipcover.Slipcover(immediate=True, source=[str(SOURCE)], omit=COMPILED, exclude_also=["if TYPE_CHECKING:"])
slipcover.ImportManager(marks, slipcover.FileMatcher(sources=[str(SOURCE)], omit=COMPILED)).__enter__()
reached: list[dict[str, Any]] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Workers hand over what they saw."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["lines"] = json.dumps(marks.get_coverage())


def pytest_testnodedown(node: Any) -> None:
    """Takes what a worker saw."""
    if "lines" in getattr(node, "workeroutput", {}):
        reached.append(json.loads(node.workeroutput["lines"]))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The files with lines that no test reached, and the percentage of all."""
    if hasattr(config, "workeroutput"):
        return
    total, *others = reached or [marks.get_coverage()]
    for other in others:
        slipcover.merge_coverage(total, other)
    slipcover.print_coverage(total, outfile=sys.stdout, skip_covered=True, missing_width=60)
    if total["summary"]["percent_covered"] < LEAST:
        terminalreporter.write_line(f"FAILED: fewer than {LEAST} % of the lines are reached", red=True)
        pytest.exit("too few lines are reached", returncode=2)
