"""Runs every bench, one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    ("startup.py",),
    ("fuzz_file.py",),
    ("hostile_files.py",),
    ("strangers.py",),
    ("search_margin.py",),
    ("search_promise.py",),
    ("speed_mobilenet.py",),
    ("file_size.py", "lenet-300-100"),
    ("file_size.py", "resnet-20"),
    ("file_coders.py",),
    ("file_zstd.py",),
    ("file_speed.py",),
    ("decoded_speed.py",),
    ("rounding.py",),
    ("evidence.py",),
    ("pruning.py",),
    ("ranks.py",),
    ("repair.py",),
    ("equalize.py",),
    ("allocation.py",),
    ("file_untrained.py",),
    ("training_size.py", "lenet-300-100", "8"),
    ("loop.py",),
    ("training_speed.py",),
    ("distillation.py",),
    ("records.py",),
    ("transfer.py",),
    ("sparse_training.py", "8", "0.97"),
    ("sparse_training.py", "4", "0.97", "scratch"),
    ("terms_speed.py",),
    ("int8.py",),
    ("file_large.py",),
    ("speed_resnet.py",),
    ("channel_groups.py",),
    ("channel_scores.py",),
    ("device_size.py",),
    ("memory_predict.py",),
    ("memory_plan.py",),
    ("memory_checkpoint.py",),
    ("memory_watch.py",),
    ("memory_arena.py",),
)


def main() -> None:
    """Stops at the first that fails."""
    for script, *arguments in SCRIPTS:
        subprocess.run([sys.executable, Path(__file__).parent / script, *arguments], check=True)


if __name__ == "__main__":
    main()
