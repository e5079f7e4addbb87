"""What the driver of an NVIDIA GPU says of itself. Imports nothing: it is asked through its own program."""

from __future__ import annotations

import subprocess

_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm")


def driver() -> dict[str, str]:
    """The `name` of the first GPU, the `driver_version` and the `clocks`, in words; nothing where it cannot be
    asked."""
    try:
        asked = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"],
                               capture_output=True, text=True, timeout=20, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = asked.stdout.splitlines() or [""]
    said = dict(zip(_FIELDS, (v.strip() for v in lines[0].split(",")), strict=False))
    clocks = ", ".join(f"{k} {v}" for k, v in said.items() if k.startswith("clocks"))
    return {"name": said["name"], "driver_version": said.get("driver_version", ""), "clocks": clocks}
