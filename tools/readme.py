"""Puts the results of the demo and the benches into README.md, between its two markers. Numbers are never typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enxuto.reports import read_document
from enxuto.reports.summary import headline, summary_rows

HEADLINES = (
    "file_size_lenet-300-100",
    "file_size_resnet-20",
    "speed_resnet",
    "speed_mobilenet",
    "file_speed_codes",
    "file_large",
    "startup",
)
START, END = "<!-- results:start -->", "<!-- results:end -->"


def main() -> None:
    """Rewrites README.md."""
    parts = []
    if Path("out/result.json").exists():
        document = read_document("out")
        parts += [f"**`make demo`** ({document.name}): {headline(document)}", ""]
        parts += ["| | original | compressed | change |", "|---|---|---|---|"]
        parts += [
            f"| {row.measure} | {row.original.text} | {row.compressed.text} | {row.change.text} |"
            for row in summary_rows(document)
        ]
        parts.append("")
    for name in HEADLINES:
        path = Path("bench/results") / f"{name}.json"
        parts += [*_table(json.loads(path.read_text())), ""]
    before, _, rest = Path("README.md").read_text().partition(START)
    after = rest.partition(END)[2]
    Path("README.md").write_text(f"{before}{START}\n" + "\n".join(parts) + f"{END}{after}")


def _table(document: dict[str, Any]) -> list[str]:
    rows = document["rows"]
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if not key.startswith("_")]
    lines = [f"**{document['claim']}** (`{document['command']}`)", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_word(row.get(column)) for column in columns) + " |" for row in rows]
    return lines


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, list):
        return " to ".join(_word(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
