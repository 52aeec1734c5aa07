"""Pure functions on tensors, one paper per function. Nothing here knows a module, a task or a file."""
