"""What a compilation gives: the compressed model, the plan it follows, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from graphprune.files import publish
from graphprune.plan import Plan
from graphprune.report import Report


@dataclass(frozen=True)
class Result:
    """A compressed model with its plan and report. `model` is an onnx.ModelProto; beside: what else it takes to run it
    on the device, by file name."""

    data: bytes = field(repr=False)
    plan: Plan
    report: Report
    beside: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.ModelProto.FromString(self.data)

    def save(self, folder: str | Path) -> None:
        """Write model.onnx, plan.json, plan.npz, report.json, report.html and what goes beside, all or none."""
        from graphprune.report_html import render_html

        publish(
            folder,
            {
                "model.onnx": self.data,
                **self.plan.files(),
                "report.json": self.report.to_json().encode(),
                "report.html": render_html(self.report).encode(),
                **self.beside,
            },
        )
