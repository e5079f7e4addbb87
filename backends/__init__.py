"""Backends by device name. `open_backend` is the only place that knows which runtime serves which device."""

from __future__ import annotations

from difflib import get_close_matches

from graphprune.backends.base import Backend
from graphprune.errors import UsageError

DEVICES = ("host",)


def open_backend(device: str, threads: int = 1) -> Backend:
    """The backend that runs on `device`. Raises UsageError naming the devices there are."""
    if device != "host":
        near = get_close_matches(device, DEVICES, n=1)
        raise UsageError(
            f"unknown device {device!r}", at="--device",
            fix=f"did you mean {near[0]}?" if near else f"the devices are: {', '.join(DEVICES)} (this machine)",
        )  # fmt: skip
    from graphprune.backends.onnxruntime import OnnxRuntime

    return OnnxRuntime(threads=threads)
