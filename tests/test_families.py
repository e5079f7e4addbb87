"""One architecture of every family is compiled, the axes of norms included; what comes out is certified."""

from __future__ import annotations

import pytest

import graphprune
from graphprune.load import load
from graphprune.prepare import specs_of
from models import zoo
from tests.steady import keep_steady_time

FAMILIES: dict[str, str] = {}
for _name, _architecture in zoo.architectures().items():
    if _architecture.make is not None:
        FAMILIES.setdefault(_architecture.family, _name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_of_every_family_is_compiled(family: str, monkeypatch) -> None:
    keep_steady_time(monkeypatch)
    path = zoo.build(FAMILIES[family])
    shapes = dict(zoo.get(FAMILIES[family]).shapes) or {
        spec.name: tuple(n if isinstance(n, int) else 2 if i == 0 else 12 for i, n in enumerate(spec.shape))
        for spec in specs_of(load(path).model) if spec.dynamic_axes
    }  # fmt: skip
    result = graphprune.compile(path, target_speedup=1.2, shapes=shapes, axes="all", passes="width")
    assert result.report.reached.speedup >= 1.2
    assert result.report.size.parameters_after < result.report.size.parameters_before
    assert {check.verdict for check in result.report.certificate} <= {"exact", "vacuous"}
