"""`python -m enxuto` is the `enxuto` command."""

from enxuto.cli import main

if __name__ == "__main__":
    main()
