"""Puts the results of the demo and the benches into README.md, between its two markers. Numbers are never typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enxuto.reports import read_document
from enxuto.reports.ship import file_rows, heads, sentences
from enxuto.reports.summary import Cell

HEADLINES = (
    "file_size_lenet-300-100",
    "file_size_resnet-20",
    "speed_resnet",
    "speed_mobilenet",
    "file_speed_codes",
    "file_large",
    "startup",
)
MEMORY = "**Memory foreseen, planned and laid out, beside the rules that are used otherwise** (`python bench/memory_*.py`)"
START, END = "<!-- results:start -->", "<!-- results:end -->"


def main() -> None:
    """Rewrites README.md."""
    document = read_document("out")  # of `make demo`; fails where it did not run
    parts = [f"**`make demo`** ({document.name}):", "", *(f"- {sentence}" for sentence in sentences(document)), ""]
    parts += ["| | " + " | ".join(heads(document)) + " |", "|---" * (1 + len(heads(document))) + "|"]
    parts += [f"| {row.measure} | " + " | ".join(map(_cell, row.cells)) + " |" for row in file_rows(document)]
    parts.append("")
    for name in HEADLINES:
        path = Path("bench/results") / f"{name}.json"
        parts += [*_table(json.loads(path.read_text())), ""]
    parts += [MEMORY, "", "| what | measured | otherwise |", "|---|---|---|", *_memory(), ""]
    before, _, rest = Path("README.md").read_text().partition(START)
    after = rest.partition(END)[2]
    Path("README.md").write_text(f"{before}{START}\n" + "\n".join(parts) + f"{END}{after}")


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def _memory() -> list[str]:
    """One line of each memory bench; their tables are long."""
    read = {path.stem: json.loads(path.read_text()) for path in Path("bench/results").glob("memory_*.json")}
    lines = []
    for what in ("training", "inference"):
        document = read[f"memory_predict_{what}"]
        rows = document["rows"]
        errors = [abs(row["predicted / measured"] - 1) for row in rows]
        thumb = [row["rule of thumb / measured"] for row in rows]
        near = f"worst error {100 * document['worst']:.1f} %, {sum(e <= 0.03 for e in errors)} of {len(rows)} within 3 %"
        step = {"training": "a training step", "inference": "an inference"}[what]
        lines.append(f"| predicted peak of {step} | {near} | rule of thumb: {min(thumb):.2f} to {max(thumb):.2f} of the truth |")
    plans: dict[str, list[dict[str, Any]]] = {}
    for row in read["memory_plan"]["rows"]:
        plans.setdefault(row["chosen by"], []).append(row)
    kept = {by: f"{sum(row['fits'] for row in rows)} of {len(rows)}" for by, rows in plans.items()}
    batches = ", ".join(f"{a['batch']} for {b['batch']}" for a, b in zip(plans["rule of thumb"], plans["planned"], strict=True))
    within = f"{kept['planned']} within the limit; one sample more: {kept['planned + 1']}"
    lines.append(f"| the largest batch within a limit | {within} | rule of thumb: batches of {batches} |")
    for row in read["memory_checkpoint"]["rows"]:
        saved = f"{100 * row['saved']:.0f} % of activations saved for {100 * (row['time'] - 1):.0f} % more time"
        if row["checkpoints"] == "plan":
            same = "gradients identical" if row["same gradients"] else "GRADIENTS DIFFER"
            lines.append(f"| planned checkpoints, {row['network']} | {saved}, {same} |")
        elif row["checkpoints"] == "every block":
            lines[-1] += f" every block: {saved} |"
    arenas = {row["rule"]: row for row in read["memory_arena_random"]["rows"] if row["order"] == "better"}
    bound, other = arenas["ours"], arenas["by size"]
    ours = f"{bound['mean of bound']:.3f} of the lower bound, at worst {bound['worst']:.2f}"
    lines.append(
        f"| arena of a device, random networks | {ours} | by size: {other['mean of bound']:.2f}, at worst {other['worst']:.2f} |"
    )
    return lines


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
