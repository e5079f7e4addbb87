"""Tables of measured times: their files, what is learnt from them, and the intervals of what is predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphprune.devices import find, known
from graphprune.devices.correction import Corrections
from graphprune.devices.predict import Predictor
from graphprune.devices.roofline import milliseconds
from graphprune.devices.table import Key, Row, Table, read
from graphprune.devices.work import Work
from graphprune.errors import UsageError
from graphprune.target import Kernel, speedup

PLAIN = {
    "title": "A machine", "kind": "gpu", "family": "hopper", "precision": "fp16",
    "sources": {"m": {"title": "measured", "date": "2026-11"}}, "peak": {"fp32": {"value": 60, "source": "m"},
                                                                        "fp16": {"value": 900, "source": "m"}},
    "units": {"count": {"value": 132, "source": "m"}, "clock_ghz": {"value": 1.8, "source": "m"}},
    "memory": {"gb_s": {"value": 3000, "source": "m"}},
}  # fmt: skip
KEY = Key("A machine", "torch 2.11", "driver 580", date="2026-11-22")


def product(m: int, n: int, k: int) -> Work:
    return Work("MatMul", "matrix", inputs=2.0 * m * k, outputs=2.0 * m * n, weights=2.0 * n * k, m=m, n=n, k=k,
                precision="fp16")  # fmt: skip


def off(work: Work) -> float:
    """How far the planted truth is from the analytic time: smoothly different from size to size."""
    return 1.5 + 0.3 * np.sin(work.features[1] / 3) + 0.1 * (work.features[3] - 9) / 4


def table(seed: int = 0, n: int = 80, noise: float = 0.02) -> Table:
    rng, made = np.random.default_rng(seed), Table(KEY, PLAIN, (Row(product(8, 8, 8), 1.0, 0.0),))
    device, rows = made.described(), []
    for _ in range(n):
        work = product(*(int(2 ** rng.uniform(5, 12)) for _ in range(3)))
        ms = milliseconds(work, device, work.weights) * off(work) * np.exp(rng.normal(scale=noise))
        rows.append(Row(work, float(ms), noise))
    return replace(made, rows=tuple(rows))


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(table().to_json())
    assert read(path) == table()
    described = find(str(path))
    assert described.device.title == "A machine" and described.table == table()


def test_what_was_not_measured_is_predicted_from_what_was() -> None:
    learnt, fresh = Corrections(table().rows, table().described()), table(seed=1, noise=0).rows
    errors = [abs(learnt.of(r.work).factor / off(r.work) - 1) for r in fresh]
    plain = [abs(1 / off(r.work) - 1) for r in fresh]
    assert np.median(errors) < 0.05 < 0.25 < np.median(plain)
    covered = [abs(np.log(learnt.of(r.work).factor / off(r.work))) < 1.64 * learnt.of(r.work).deviation for r in fresh]
    assert np.mean(covered) > 0.8


def test_beyond_the_measured_sizes_it_says_so_and_is_less_sure() -> None:
    learnt = Corrections(table().rows, table().described())
    inside, beyond = learnt.of(product(300, 300, 300)), learnt.of(product(300, 300, 300_000))
    assert inside.inside is True and beyond.inside is False
    assert beyond.deviation > 2 * inside.deviation
    unknown = learnt.of(Work("Conv 1x1", "matrix", m=1, n=1, k=1, precision="fp16"))
    assert unknown.inside is None and unknown.factor == pytest.approx(1.5, rel=0.2), "as other products are off"
    assert learnt.of(Work("Exp", "vector", inputs=4)).factor == 1


def predicted(predictor: Predictor, *works: Work):
    return predictor.model([(Kernel(f"k{i}", w.op, 0.0, (), ()), w) for i, w in enumerate(works)])


def test_a_ratio_is_surer_than_the_times_it_is_made_of() -> None:
    for predictor in (Predictor(known()["a100"]), Predictor(table().described(), table())):
        dense, half = (predicted(predictor, product(512, n, 512), product(512, 512, n)) for n in (1024, 512))
        ratio = speedup(dense.timing, half.timing)
        assert ratio.spread < 0.8 * min(dense.timing.spread, half.timing.spread)
        assert ratio.value == pytest.approx(dense.ms / half.ms, rel=0.01)
        same = speedup(dense.timing, dense.timing)
        assert (same.value, same.spread) == (1, 0)


def test_what_all_kernels_are_off_by_together_is_in_the_time_and_not_in_the_ratio() -> None:
    """However many kernels there are, each with an operator of its own, so that their own errors even out."""
    many = [Work(f"Op{i}", "vector", inputs=1e8, outputs=1e8) for i in range(200)]
    for predictor, least in ((Predictor(known()["a100"]), 0.3), (Predictor(table().described(), table()), 0.17)):
        whole, half = predicted(predictor, *many), predicted(predictor, *many[::2])
        assert least < whole.timing.spread < 1.6 * least
        assert speedup(whole.timing, half.timing).spread < 0.1


def test_what_is_known_says_where_it_is_from() -> None:
    inside = product(512, 512, 512)
    assert predicted(Predictor(known()["a100"]), inside).source == "analytic"
    own = Predictor(table().described(), table())
    assert predicted(own, inside).source == "interpolated"
    assert predicted(own, product(512, 512, 500_000)).source == "extrapolated"
    assert predicted(own, Work("Sort", "vector", inputs=1e9, outputs=1e9)).source == "analytic"


def test_a_table_of_another_of_the_family_leaves_more_open() -> None:
    work = product(512, 512, 512)
    own, other = Predictor(table().described(), table()), Predictor(known()["h200"], table())
    assert other.related and not own.related
    assert predicted(other, work).timing.spread > 1.5 * predicted(own, work).timing.spread
    assert predicted(other, work).ms == pytest.approx(milliseconds(work, known()["h200"], work.weights) * off(work),
                                                     rel=0.1)  # fmt: skip


def test_the_same_prediction_twice() -> None:
    a, b = (predicted(Predictor(known()["t4"]), product(64, 64, 64)) for _ in range(2))
    assert a.rounds_ms == b.rounds_ms


def test_another_driver_or_runtime_is_told_with_both_versions() -> None:
    stale = table().stale("torch 2.12", "driver 590")
    assert all(word in stale for word in ("torch 2.11", "torch 2.12", "driver 580", "driver 590"))
    assert table().stale("torch 2.11", "driver 580") == ""


def spoilt(**changes) -> str:
    plain = json.loads(table(n=2).to_json())
    return json.dumps({**plain, **changes})


ROW = json.loads(table(n=1).to_json())["rows"][0]
BAD = {
    "cut short": (table().to_json()[:500], "not a table"),
    "another schema": (spoilt(schema=99), "schema 1"),
    "a list": ("[]", "schema 1"),
    "no rows": (spoilt(rows=[]), "empty"),
    "no key": (spoilt(key={}), "missing or unknown"),
    "a time of nothing": (spoilt(rows=[{**ROW, "ms": 0}]), "no kernel has"),
    "a time that is none": (spoilt(rows=[{**ROW, "ms": float("nan")}]), "no kernel has"),
    "a size that is none": (spoilt(rows=[{**ROW, "m": "many"}]), "no kernel has"),
    "a size below zero": (spoilt(rows=[{**ROW, "m": -5}]), "no kernel has"),
    "a size beyond all": (spoilt(rows=[{**ROW, "steps": 10**350}]), "no kernel has"),
    "a time beyond all": (spoilt(rows=[{**ROW, "ms": 10**400}]), "missing or unknown"),
    "an operator that is no name": (spoilt(rows=[{**ROW, "op": [1]}]), "no kernel has"),
    "an odd kind": (spoilt(rows=[{**ROW, "kind": "odd"}]), "no kernel has"),
    "threads in words": (spoilt(key={"device": "d", "runtime": "r", "threads": "4"}), "key"),
    "a device that is a list": (spoilt(device=[]), "not described"),
    "an unknown precision": (spoilt(rows=[{**ROW, "precision": "fp99"}]), "no kernel has"),
    "no device": (spoilt(device={}), "sources"),
}


@pytest.mark.parametrize("text, said", BAD.values(), ids=BAD)
def test_a_wrong_table_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read(path)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        find(str(tmp_path / "none.json"))
