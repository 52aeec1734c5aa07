"""Quality, size, latency and memory, measured on the files that ship. Import the module you need."""
