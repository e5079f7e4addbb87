"""Models that tests, benchmarks and the demo work on: how each is obtained, its calibration data, its quality metric.

`get(name)` gives the Task. Nothing is imported, downloaded or trained before it is asked for.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from graphprune.errors import UsageError

if TYPE_CHECKING:
    from models.task import Task

TASKS = ("pp_rec", "pp_det", "pp_cls", "minilm", "mnist_cnn", "efficientnet_lite0")


def get(name: str) -> Task:
    """The task of that name, one of TASKS; UsageError with the nearest name otherwise."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1, 0)
        raise UsageError(f"there is no model '{name}'", at=f"known: {', '.join(TASKS)}",
                         fix=f"did you mean '{near[0]}'?")
    return import_module(f"models.{name}").task()
