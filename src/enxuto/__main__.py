"""`python -m enxuto.cli` is the `enxuto` command."""

from enxuto.cli import main

main()
