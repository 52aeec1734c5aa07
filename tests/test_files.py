import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from enxuto.errors import OutputError
from enxuto.files import folder_or_own, whole_file, writable_folder, write_bytes


def test_a_file_is_written_whole_and_nothing_else_remains(tmp_path):
    write_bytes(tmp_path / "a.bin", b"one")
    write_bytes(str(tmp_path / "a.bin"), b"two")
    assert (tmp_path / "a.bin").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_inside_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise error("in between")

    with pytest.raises(OutputError if error is OSError else error):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"'.*none/a.bin' could not be written: No such file or directory; .*choose a folder"):
        write_bytes(tmp_path / "none" / "a.bin", b"x")


@pytest.mark.parametrize("name", ["x" * 255, "網" * 85, "ab" + "é" * 126, os.fsdecode(b"\xff" * 250)], ids=range(4))
def test_a_name_may_be_as_long_as_the_folder_allows(name, tmp_path):
    for data in (b"one", b"two"):
        write_bytes(tmp_path / name, data)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"two"


def test_a_name_longer_than_any_file_is_refused(tmp_path):
    with pytest.raises(OutputError, match="could not be written: File name too long"):
        write_bytes(tmp_path / ("x" * 256), b"x")


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_a_device_is_not_replaced_by_a_file(path):
    with pytest.raises(OutputError, match="a folder or a device"):
        write_bytes(path, b"x")
    assert Path(path).is_char_device()


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(OutputError, match="a folder or a device"):
        write_bytes(tmp_path / "sub", b"x")


def test_an_output_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert os.listdir(folder) == []
    assert writable_folder(folder) == folder


def test_an_output_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/enxuto"):
        with pytest.raises(OutputError, match="cannot be written"):
            writable_folder(path)


@pytest.mark.parametrize("path", [5, None, ["out"], "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(OutputError, match="is no path of a file or folder"):
        write_bytes(path, b"")
    with pytest.raises(OutputError, match="is no path of a file or folder"):
        writable_folder(path)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o777, 0o000)])
def test_a_new_file_has_the_permissions_of_the_umask(mask, mode, tmp_path, umask):
    umask(mask)
    write_bytes(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_that_was_there_keeps_its_permissions(mode, tmp_path, umask):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == mode


def test_a_half_written_file_is_nobody_elses_to_read(tmp_path, umask):
    umask(0)
    with whole_file(tmp_path / "a.bin") as temporary:
        assert temporary.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link_and_what_it_points_to_is_written(there, tmp_path):
    (tmp_path / "store").mkdir()
    target, middle, link = tmp_path / "store" / "real.bin", tmp_path / "middle.bin", tmp_path / "a.bin"
    if there:
        target.write_bytes(b"old")
        target.chmod(0o600)
    middle.symlink_to(target)
    link.symlink_to("middle.bin")
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert middle.is_symlink()
    assert target.read_bytes() == b"new"
    assert not there or target.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path / "store")) == ["real.bin"]
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "middle.bin", "store"]


def test_links_in_a_circle_and_into_nowhere_are_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "none" / "d")
    for name in ("a", "c"):
        with pytest.raises(OutputError, match=f"'.*{name}' could not be written"):
            write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).is_symlink()


HELD = """
import os, sys
from enxuto.files import folder_or_own
with folder_or_own(None) as folder:
    (folder / "small.nxt").write_bytes(b"x")
if os.fork() == 0:
    sys.exit()
os.wait()
assert (folder / "small.nxt").read_bytes() == b"x"
held = [folder]  # until the interpreter goes
{last}
"""


@pytest.mark.parametrize("last", ["print('done')", "raise SystemExit('done')", "(folder / 'small.nxt').unlink(); folder.rmdir()"])
def test_a_folder_of_its_own_lives_as_long_as_the_process(last, tmp_path):
    """Not as long as a fork of it; removing it earlier is nobody's error."""
    code, environment = HELD.format(last=last), os.environ | {"TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout + ended.stderr == ("" if "rmdir" in last else "done\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_of_its_own_goes_at_once_when_the_work_fails(error, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail():
        with folder_or_own(None) as folder:
            (folder / ".work").mkdir()
            raise error("in between")

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_folder_of_the_users_stays_when_the_work_fails(tmp_path):
    def fail():
        with folder_or_own(tmp_path / "out") as folder:
            (folder / ".work").mkdir()
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail()
    assert os.listdir(tmp_path / "out") == [".work"]


def test_where_no_temporary_folder_can_be_made_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match=r"no temporary folder can be made: No such file or directory; .*out="):
        folder_or_own(None).__enter__()
