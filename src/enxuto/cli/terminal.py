"""How a command talks: results on stdout, everything else on stderr, errors in one line, exit codes for scripts.

Every command runs inside `session`, the only place where errors become exit codes.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json as jsonlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import typer

from enxuto.errors import Error, without_escapes
from enxuto.extras import explained

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

UNEXPECTED, BAD_INPUT, GOAL_MISSED, INTERRUPTED = 1, 2, 3, 130
PLAIN = {"−": "-", "–": "-", "…": "...", "×": "x", "→": "->", "µ": "u", "≈": "~", "✓": "ok", "✗": "no", "\u00a0": " "}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
PIPE_WIDTH = 120  # columns when stdout is no terminal, which has a width of its own


@dataclass
class Session:
    """One run of one command: where it prints, and what it has to say."""

    json: bool
    quiet: bool
    debug: bool
    stdout: TextIO
    kept: str = "nothing was kept"  # what a person reads after Ctrl-C
    answered: bool = False  # there is one document on stdout, never two
    _console: dict[str, Console] = field(default_factory=dict)

    def show(self, *items: RenderableType) -> None:
        """Prints tables and lines for a person; nothing with --json."""
        from rich.text import Text

        if not self.json:
            for item in items:
                plain = isinstance(item, (str, Text))  # a line stays one line, however narrow the terminal
                said = without_escapes(item) if isinstance(item, str) else item
                if isinstance(item, Text):
                    said = Text(without_escapes(item.plain), style=item.style)
                self._on("stdout").print(said, markup=False, highlight=False, soft_wrap=plain)

    def remark(self, line: str) -> None:
        """Prints a line that is not part of the result, on stderr; nothing with --quiet or --json."""
        if not (self.json or self.quiet):
            self.complain(line, style="dim")

    def answer(self, data: Mapping[str, Any]) -> None:
        """Prints the result as JSON, with --json only."""
        self.answered = True
        if self.json:
            self.stdout.write(jsonlib.dumps(data, indent=1, allow_nan=False) + "\n")
            self.stdout.flush()

    def fail(self, code: int, kind: str, words: str) -> None:
        """With --json, what went wrong as the one document on stdout; unless the answer is there already."""
        if not self.answered:
            self.answer({"error": " ".join(words.split()), "kind": kind, "exit_code": code})

    def complain(self, line: str, style: str = "red") -> None:
        """Prints one line on stderr."""
        self._on("stderr").print(
            " ".join(without_escapes(line).split()), style=style, markup=False, highlight=False, soft_wrap=True
        )

    def _on(self, name: str) -> Console:
        from rich.console import Console

        if name not in self._console:
            file = self.stdout if name == "stdout" else sys.stderr
            width = None if file.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
            self._console[name] = Console(file=file, width=width)
        return self._console[name]

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """Within the block a bar on stderr shows how far long jobs are, unless --quiet or stderr is no terminal."""
        from enxuto.cli.bars import Bars
        from enxuto.progress import listening

        console = self._on("stderr")
        if self.quiet or not console.is_terminal:
            yield
            return
        with Bars(console) as bars, listening(bars):
            yield


def open_streams() -> None:
    """Makes stdout and stderr safe to print to: a closed one swallows, one that is not Unicode gets plain signs."""
    codecs.register_error("plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The signs that a terminal without Unicode lacks, in ASCII: a minus must stay a minus."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


@contextlib.contextmanager
def session(*, json: bool, quiet: bool, debug: bool) -> Iterator[Session]:
    """Runs a command: with --json whatever else is printed goes to stderr; errors become one line and an exit code.

    Raises: typer.Exit with BAD_INPUT for an enxuto.Error, INTERRUPTED after Ctrl-C, UNEXPECTED for anything else.
    """
    run = Session(json=json, quiet=quiet, debug=debug, stdout=sys.stdout)
    level = logging.DEBUG if debug else logging.ERROR if quiet else logging.WARNING
    try:
        with (
            explained("the command"),
            _log_to_stderr(level),
            contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext(),
        ):
            yield run
    except Error as error:
        _traceback(run)
        run.complain(f"error: {error}")
        run.fail(BAD_INPUT, type(error).__name__, str(error))
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt as error:
        run.complain(f"interrupted: {run.kept}.", style="yellow")
        run.fail(INTERRUPTED, "KeyboardInterrupt", f"interrupted: {run.kept}.")
        raise typer.Exit(INTERRUPTED) from error
    except (typer.Exit, typer.BadParameter, BrokenPipeError):
        raise
    except OSError as error:
        _traceback(run)
        room = error.errno in NO_ROOM
        advice = (
            "free some disk, or name other folders with --out and TMPDIR" if room else "run the same with --debug to see where"
        )
        run.complain(f"error: {'' if room else f'unexpected {type(error).__name__}: '}{error}; {advice}.")
        with contextlib.suppress(OSError):  # stdout itself may be what is full
            run.fail(BAD_INPUT if room else UNEXPECTED, type(error).__name__, str(error))
        raise typer.Exit(BAD_INPUT if room else UNEXPECTED) from error
    except Exception as error:  # the roof of the house: whatever else went wrong ends here, in words
        _traceback(run)
        run.complain(f"error: unexpected {type(error).__name__}: {error}; run the same with --debug to see where.")
        run.fail(UNEXPECTED, type(error).__name__, str(error))
        raise typer.Exit(UNEXPECTED) from error


def _traceback(run: Session) -> None:
    if run.debug:
        import traceback

        traceback.print_exc()


@contextlib.contextmanager
def _log_to_stderr(level: int) -> Iterator[None]:
    """Within the block the library's log goes to stderr from this level on."""
    logger = logging.getLogger("enxuto")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
