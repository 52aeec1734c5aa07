"""Quality, size, latency and memory, measured on the files that ship. Import the module you need."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the runtime is loaded; else it wants a home folder to write to
