"""Writing so that nothing is ever lost: a file is there whole, or the old one still is."""

from __future__ import annotations

import atexit
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enxuto.errors import OutputError

_LONGEST_STEM = 200  # bytes of a name that a temporary file takes over; file systems allow 255 in all


def as_path(path: object) -> Path:
    """The path, if it is one. Raises: OutputError for anything but text and paths, and for text no file can be called."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in os.fspath(path):
        raise OutputError(f"{path!r} is no path of a file or folder; write text as in 'out/small.nxt'.")
    return Path(path)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    The data is flushed to the disk before the rename, so a kill or a full disk leaves the old file or the new one. A link
    stays, and what it points to is replaced; a file that was there keeps its permissions, a new one has those of the umask.
    Raises: OutputError when the folder is missing, cannot be written, or the disk is full.
    """
    path = as_path(path)
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"'{path}' is a folder or a device, which a file must not take the place of; name another file.")
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        stem = os.fsencode(target.name)[:_LONGEST_STEM].decode(errors="ignore")
        beside = target.with_name(f".{stem}.{secrets.token_hex(4)}.part")
        handle = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        temporary = beside
        mode = stat.S_IMODE(target.stat().st_mode if target.exists() else os.fstat(handle).st_mode)
        os.close(handle)
        temporary.chmod(0o600)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"'{path}' could not be written: {error.strerror or error}; "
            "what was there before is untouched; choose a folder that exists, is writable and has room."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Puts `data` into the file at `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def writable_folder(path: str | os.PathLike[str], argument: str = "out") -> Path:
    """The folder at `path`, made if it is missing and shown to be writable before any work starts.

    Raises: OutputError when it cannot be made or written.
    """
    folder = as_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"folder '{folder}' cannot be written: {error.strerror or error}; name another one with {argument}=."
        ) from error
    return folder


@contextmanager
def folder_or_own(path: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The writable folder at `path`; for None a new one, removed when this process ends, or at once when the block fails.

    Raises: OutputError when it cannot be made or written.
    """
    if path is not None:
        yield writable_folder(path)
        return
    try:
        own = Path(tempfile.mkdtemp(prefix="enxuto-"))
    except OSError as error:
        raise OutputError(f"no temporary folder can be made: {error.strerror or error}; name a folder with out=.") from error
    atexit.register(_remove, own, os.getpid())
    try:
        yield own
    except BaseException:
        _remove(own, os.getpid())
        raise


def _remove(folder: Path, process: int) -> None:
    """Not in a fork: the folder is its parent's."""
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
