"""Writing results by rename: a reader sees the old file or the whole new one, never half of either.

Owns the temporary names, the clean-up after a failure or Ctrl-C, and what an `OSError` means to the user. It does
not own what is written.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from graphprune.errors import EnvironmentFault, UsageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def as_fault(error: OSError, path: str | Path) -> EnvironmentFault:
    """What an operating system error about `path` means to the user. Returns the fault, does not raise it."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        what, fix = "no space left to write", "free some space, or choose a place on another disk"
    elif error.errno in _DENIED:
        what, fix = "not allowed here", "choose another place, or change the permissions"
    else:
        what, fix = "the system refused", "choose another place"
    return EnvironmentFault(f"{what}: {reason}", at=str(path), fix=fix)


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` by rename; folders above it are made. A symbolic link keeps pointing where it does.

    A device or a pipe (/dev/stdout) is written to directly, since renaming over it would replace it.
    Raises UsageError if `path` is a folder, EnvironmentFault if the system refuses or the disk is full.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        try:
            with open(path, "wb") as stream:
                stream.write(data)
        except OSError as error:
            raise as_fault(error, path) from error
        return
    real = Path(os.path.realpath(path))
    publish(real.parent, {real.name: data})


def publish(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` hold `files` (plain file name -> content), all of them or, on any failure, none of them.

    Everything is first written and flushed to disk in a hidden folder beside its destination, then renamed. A new
    folder appears with one rename; in an existing one the other files stay, and files already replaced are put back
    when a later rename fails. Raises UsageError if `folder` is a file or a name in `files` is a folder there,
    EnvironmentFault if the system refuses or the disk is full.
    """
    folder = Path(os.path.realpath(folder))
    for name in files:
        if Path(name).name != name:
            raise ValueError(f"not a plain file name: {name!r}")
    made = _make_parents(folder)
    staging = (folder if folder.is_dir() else folder.parent) / f".graphprune-{uuid.uuid4().hex[:12]}.tmp"
    done = False
    try:
        staging.mkdir()
        for name, data in files.items():
            if (folder / name).is_dir():
                raise UsageError("there is a folder where a file should go", at=str(folder / name),
                                 fix="remove it, or choose another name")
            with open(staging / name, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        if folder.is_dir():
            _replace_all(staging, folder, files)
        else:
            os.rename(staging, folder)
        done = True
    except OSError as error:
        raise as_fault(error, folder) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not done:
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def check_writable(folder: str | Path) -> None:
    """Fail now rather than after minutes of work if `publish(folder, ...)` could not write. Leaves nothing behind.

    Raises UsageError if `folder` is a file, EnvironmentFault if the system refuses.
    """
    folder = Path(os.path.realpath(folder))
    made = _make_parents(folder)
    probe = (folder if folder.is_dir() else folder.parent) / f".graphprune-{uuid.uuid4().hex[:12]}.tmp"
    try:
        probe.write_bytes(b"probe")
    except OSError as error:
        raise as_fault(error, folder) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _make_parents(folder: Path) -> list[Path]:
    """Make the folders above `folder`; those that were missing are returned, deepest first, for undoing."""
    missing = []
    nearest = folder
    while not os.path.exists(nearest):
        missing.append(nearest)
        nearest = nearest.parent
    if not os.path.isdir(nearest):
        raise UsageError("a folder is needed here, but this is a file", at=str(nearest), fix="choose another place")
    missing = missing[1:]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_fault(error, folder.parent) from error
    return missing


def _replace_all(staging: Path, folder: Path, names: Mapping[str, bytes]) -> None:
    """Rename each staged file into `folder`; on any exception (Ctrl-C too) put back what was there."""
    old = staging / ".old"
    old.mkdir()
    begun: list[str] = []
    try:
        for name in names:
            begun.append(name)
            _keep(folder / name, old / name)
            os.replace(staging / name, folder / name)
    except BaseException:
        for name in begun:
            if (old / name).exists():
                os.replace(old / name, folder / name)
            elif not (staging / name).exists():
                (folder / name).unlink(missing_ok=True)
        raise



def _keep(path: Path, copy: Path) -> None:
    """A second name for `path`, if it exists; a copy on file systems without hard links."""
    try:
        os.link(path, copy)
    except FileNotFoundError:
        return
    except OSError:
        shutil.copy2(path, copy)
