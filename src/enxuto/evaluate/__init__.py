"""Quality, size, latency and memory, measured on the files that ship; import the module you need, none is loaded here."""
