"""Bars, errors and exit codes: how every command talks."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from rich.text import Text

from enxuto.artifact.save import save
from enxuto.cli.bars import MOST_ROWS, Bars
from enxuto.cli.terminal import open_streams, session
from enxuto.errors import RangeError
from enxuto.progress import interrupting, listening, say


def rows(bars: Bars) -> list[tuple[str, float, float | None]]:
    return [(task.description, task.completed, task.total) for task in bars.progress.tasks]


@pytest.fixture
def bars() -> Bars:
    return Bars(Console(file=io.StringIO(), force_terminal=True))


def test_a_bar_moves_and_ends_with_its_job(bars: Bars) -> None:
    bars("training", 0, 10)
    bars("training", 4, 10)
    assert rows(bars) == [("training", 4, 10)]
    bars("training", 10, 10)
    assert rows(bars) == []


def test_a_job_inside_another_has_a_row_of_its_own(bars: Bars) -> None:
    bars("Prune(0.5)", 0, 2)
    bars("recovering", 3, 100)
    assert rows(bars) == [("Prune(0.5)", 0, 2), ("recovering", 3, 100)]


def test_the_next_step_of_a_recipe_takes_over_the_row_of_the_last(bars: Bars) -> None:
    bars("Prune(0.5)", 0, 2)
    bars("recovering", 100, 100)
    bars("Recover()", 1, 2)
    assert rows(bars) == [("Recover()", 1, 2)]


def test_a_job_of_unknown_length_gives_way_to_the_next(bars: Bars) -> None:
    bars("exporting", 0, 0)
    bars("measuring", 0, 0)
    assert rows(bars) == [("measuring", 0, None)]


def test_rows_of_jobs_that_never_ended_do_not_pile_up(bars: Bars) -> None:
    for number in range(10):
        bars(f"job {number}", 0, 100 + number)
    assert len(rows(bars)) == MOST_ROWS
    assert rows(bars)[-1][0] == "job 9"


@pytest.mark.parametrize("end", [KeyboardInterrupt, TimeoutError, None])
def test_no_row_of_an_interrupted_job_stays(end: type[BaseException] | None, bars: Bars) -> None:
    with listening(bars):
        say("outer", 1, 7)
        with contextlib.suppress(KeyboardInterrupt, TimeoutError), interrupting(lambda: None):
            say("Prune(0.5)", 0, 2)
            say("Recover()", 1, 2)
            say("recovering", 30, 100)
            if end is not None:
                raise end
        say("measuring")
    assert rows(bars) == [("outer", 1, 7), ("measuring", 0, None)]


def test_a_row_has_its_name_from_the_start() -> None:
    file = io.StringIO()
    bars = Bars(Console(file=file, force_terminal=True, width=80))
    with bars:
        bars("training", 0, 10)
    lines = [line for line in file.getvalue().splitlines() if "0:00" in line]
    assert lines
    assert all("training" in line for line in lines)


def code_of(error: BaseException, *, debug: bool = False) -> int:
    with pytest.raises(typer.Exit) as caught, session(json=False, quiet=False, debug=debug):
        raise error
    return caught.value.exit_code


def test_an_error_of_enxuto_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(RangeError("bits=9 is\nout of range")) == 2
    assert capsys.readouterr() == ("", "error: bits=9 is out of range\n")


def test_an_error_nobody_expected_is_exit_code_1_and_names_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(KeyError("x")) == 1
    words = capsys.readouterr().err
    assert "unexpected KeyError" in words
    assert "--debug" in words
    assert "Traceback" not in words


def test_words_with_escape_codes_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with session(json=False, quiet=False, debug=False) as run:
        run.show("\x1b[31mred\x1b[0m", Text("\x1b[1mnote\x1b[0m", style="yellow"))
        run.remark("\x1b[2Jgone")
    out, err = capsys.readouterr()
    assert out == "red\nnote\n"
    assert err == "gone\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(RangeError("no"), debug=True) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130_and_says_what_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted: nothing was kept.\n"


def test_with_json_only_the_answer_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with session(json=True, quiet=False, debug=False) as run:
        print("a word from the task file")
        run.show("a table")
        run.remark("a remark")
        run.answer({"bytes": 3})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"bytes": 3}
    assert err == "a word from the task file\n"


def test_the_log_is_as_before_after_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("enxuto")
    before = (logger.level, list(logger.handlers))
    with session(json=False, quiet=False, debug=False):
        logger.warning("said aloud")
        logger.info("not said")
    assert (logger.level, logger.handlers) == before
    assert capsys.readouterr().err == "WARNING said aloud\n"


@pytest.mark.parametrize(("error", "code"), [(RangeError("bits=9\nis out"), 2), (KeyError("x"), 1), (KeyboardInterrupt(), 130)])
def test_with_json_an_error_is_the_one_document(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), session(json=True, quiet=False, debug=False):
        raise error
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["exit_code"]) == (type(error).__name__, code)
    assert found["error"].count("\n") == 0


def test_an_error_after_the_answer_is_no_second_document(capsys: pytest.CaptureFixture[str]) -> None:
    def answer_and_fail() -> None:
        with session(json=True, quiet=False, debug=False) as run:
            run.answer({"bytes": 3})
            raise RangeError("too late")

    with pytest.raises(typer.Exit):
        answer_and_fail()
    assert json.loads(capsys.readouterr().out) == {"bytes": 3}


def in_a_process(arguments: str, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = f"{shlex.quote(sys.executable)} -m enxuto {arguments} {redirection}"
    variables = {**os.environ, **environment}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=variables, check=False, encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("nxt") / "small.nxt"
    save(torch.nn.Linear(3, 2), path)
    return f"inspect {shlex.quote(str(path))}"


def test_a_terminal_without_unicode_gets_plain_signs(small: str) -> None:
    done = in_a_process(small, "", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "-" in done.stdout
    assert done.stdout.isascii()
    open_streams()
    assert "−1…2×".encode("ascii", "plain") == b"-1...2x"


def test_a_closed_stdout_is_no_error(small: str) -> None:
    done = in_a_process(small, ">&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_full_disk_is_said_in_words(small: str, option: str) -> None:
    done = in_a_process(f"{small} {option}", "> /dev/full")
    assert done.returncode == 2
    assert "No space left on device; free some disk" in done.stderr
    assert "Traceback" not in done.stderr
