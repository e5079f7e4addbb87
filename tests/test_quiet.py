"""Native code that prints is not heard, what comes before and after is, in order."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import ctypes, sys
from graphprune.quiet import silenced
libc = ctypes.CDLL(None)
print("before")
libc.printf(b"native before\\n")
{enter}
    libc.printf(b"native within\\n")
    print("python within")
    {end}
libc.printf(b"native after\\n")
libc.fflush(None)
print("after")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not tested: the C library is found by name on Linux")
@pytest.mark.parametrize("end", ["pass", "raise ValueError"])
def test_what_native_code_prints_is_dropped_and_the_rest_comes_out(end: str) -> None:
    text = _SCRIPT.format(enter="import contextlib\nwith contextlib.suppress(ValueError), silenced():", end=end)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["before", "native before", "native after", "after", ""]
    loud = text.replace(", silenced()", "")
    assert "native within" in subprocess.run([sys.executable, "-c", loud], capture_output=True, text=True).stdout


def test_without_a_standard_output_nothing_happens() -> None:
    text = "import os\nos.close(1)\nfrom graphprune.quiet import silenced\nwith silenced():\n    pass\nos._exit(7)"
    assert subprocess.run([sys.executable, "-c", text]).returncode == 7
