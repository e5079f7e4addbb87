"""Keeping what a library prints on its own off standard output, which belongs to results."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_STDOUT = 1


@contextmanager
def silenced() -> Iterator[None]:
    """Whatever native code writes to standard output meanwhile is dropped; of the whole process, other threads too.

    Where there is no such descriptor (closed, or a host without one) nothing is done.
    """
    try:
        saved = os.dup(_STDOUT)
    except OSError:
        yield
        return
    try:
        _flush()
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), _STDOUT)
        yield
    finally:
        _flush()  # what waits in C's own buffer would come out later
        os.dup2(saved, _STDOUT)
        os.close(saved)


def _flush() -> None:
    with suppress(AttributeError, ValueError):  # no stream, or a closed one
        sys.stdout.flush()
    with suppress(OSError, AttributeError, TypeError):  # no C library by that name
        ctypes.CDLL(None).fflush(None)
