"""Files appear whole or not at all: failures, a full disk and Ctrl-C are planted at each step of writing."""

import errno
import os
import stat
from pathlib import Path

import pytest

from graphprune.errors import EnvironmentFault, UsageError
from graphprune.files import atomic_write, check_writable, publish


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_publish_makes_the_folder_and_the_folders_above(tmp_path):
    publish(tmp_path / "a" / "b", {"x": b"1", "y": b"2"})
    assert tree(tmp_path) == {"a/b/x": b"1", "a/b/y": b"2"}


def test_publish_keeps_the_other_files_of_an_existing_folder(tmp_path):
    (tmp_path / "other").write_bytes(b"mine")
    (tmp_path / "x").write_bytes(b"old")
    publish(tmp_path, {"x": b"new"})
    assert tree(tmp_path) == {"other": b"mine", "x": b"new"}


FULL = OSError(errno.ENOSPC, "No space left on device")
CTRL_C = KeyboardInterrupt()


@pytest.mark.parametrize(("step", "failure"), [
    ("fsync", FULL), ("fsync", CTRL_C), ("link", CTRL_C), ("replace", FULL), ("replace", CTRL_C)])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failure_at_any_step_leaves_what_was_there(tmp_path, monkeypatch, failure, step, nth):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "y").write_bytes(b"old too")
    before, calls, real = tree(tmp_path), [], getattr(os, step)

    def fail(*args):
        calls.append(args)
        if len(calls) == nth:
            raise failure
        return real(*args)

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(EnvironmentFault if isinstance(failure, OSError) else KeyboardInterrupt):
        publish(tmp_path, {"x": b"new", "y": b"new too", "z": b"more"})
    assert len(calls) >= nth
    assert tree(tmp_path) == before


def test_a_failed_publish_leaves_no_new_folders(tmp_path, monkeypatch):
    def full(fd):
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault) as caught:
        publish(tmp_path / "a" / "b", {"x": b"1"})
    assert caught.value.exit_code == 5
    assert caught.value.what == "no space left to write: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_publish_works_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(os, "link", refuse)
    publish(tmp_path, {"x": b"new"})
    assert tree(tmp_path) == {"x": b"new"}


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "out").write_bytes(b"mine")
    for path in (tmp_path / "out", tmp_path / "out" / "deeper"):
        for write in (check_writable, lambda folder: publish(folder, {"x": b""})):
            with pytest.raises(UsageError, match="a folder is needed here, but this is a file") as caught:
                write(path)
            assert caught.value.at == str(tmp_path / "out")
    assert tree(tmp_path) == {"out": b"mine"}


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError, match="there is a folder where a file should go"):
        atomic_write(tmp_path / "x", b"1")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_writing_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_new_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        publish(tmp_path / "out", {"x": b"1"})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out" / "x").stat().st_mode) == 0o640


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_device_is_written_to_and_never_replaced():
    atomic_write("/dev/null", b"gone")
    with pytest.raises(EnvironmentFault, match="no space left to write"):
        atomic_write("/dev/full", b"x")
    assert all(stat.S_ISCHR(os.stat(path).st_mode) for path in ("/dev/null", "/dev/full"))


def test_check_writable_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_a_folder_in_it_is_our_own_defect(tmp_path):
    with pytest.raises(ValueError, match="not a plain file name"):
        publish(tmp_path, {"../x": b""})
