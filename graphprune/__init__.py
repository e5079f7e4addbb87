"""graphprune: make a trained network as fast as you ask, measured, with the least loss of quality.

    result = graphprune.compile("model.onnx", target_speedup=2, calibration="feeds/")
    result.save("out")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.certificate import Certificate, certify
    from graphprune.driver import compile, compile_family, compile_for, replay
    from graphprune.inspect import bench, explain, explain_group, verify
    from graphprune.result import Result

_HOME = {
    "Certificate": "certificate", "certify": "certificate",
    "Result": "compiler", "compile": "driver", "compile_family": "driver", "compile_for": "driver", "replay": "driver",
    "bench": "inspect", "explain": "inspect", "explain_group": "inspect",
    "verify": "inspect",
}  # fmt: skip
__all__ = ["Certificate", "Result", "bench", "certify", "compile", "compile_family", "compile_for", "explain",
           "explain_group", "replay", "verify"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `graphprune --help` does not import a runtime.
    if name not in _HOME:
        raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"graphprune.{_HOME[name]}"), name)
