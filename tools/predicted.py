"""Predicted against measured: how far the times of devices that are not here can be trusted, tried on this one.

    python -m tools.predicted [NETWORK...] [--table host.json] [--plans 8] [--seconds 180]

This machine is described as any other would be: by a table of kernels of random networks (`graphprune profile`; --table
takes one, else it is measured first). Then networks that had no part in it are predicted, dense and pruned, from the
figures of the description alone and with the table's corrections, and measured. Written to --out (.json, .md).

Where there is a GPU: `graphprune profile --device cuda -o h100.json` there, and compare with
`python -m tools.predicted --table h100.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from graphprune.backends.modelled import Modelled
from graphprune.backends.network_kernels import NetworkKernels
from graphprune.backends.onnxruntime import OnnxRuntime
from graphprune.cost import random_plan
from graphprune.devices import Described
from graphprune.devices.table import Table, read
from graphprune.files import atomic_write
from graphprune.profiling import profile
from graphprune.progress import choose
from graphprune.target import speedup
from models import efficientnet_lite0, pp_cls, pp_det
from models.task import cache_dir
from models.width_families import Family
from tools.bench_cost import FAMILIES, pruned
from tools.shared import Row, console, exit_with, table

NETWORKS: dict[str, Callable[[int], Family]] = {
    **FAMILIES,
    "efficientnet_lite0": lambda threads: pruned(efficientnet_lite0.task(), threads),
    "pp_det": lambda threads: pruned(pp_det.task(), threads),
    "pp_cls": lambda threads: pruned(pp_cls.task(), threads),
}
WAYS = ("analytic", "table")


def rows_of(name: str, measured: Table, plans: int, threads: int, seed: int) -> list[Row]:
    """One row for the dense network and one for each plan: its time measured in turns with dense, and predicted."""
    family, here = NETWORKS[name](threads), OnnxRuntime(threads)
    device = measured.described()
    models = {"analytic": Modelled(Described(device), threads), "table": Modelled(Described(device, measured), threads)}
    rng = np.random.default_rng([seed, 2])
    dense = here.load(family.build(family.sizes))
    dense_ms = here.measure([dense], family.feed, max_seconds=4.0)[0].median_ms
    rows = []
    for counts in [family.sizes, *(random_plan(family.sizes, family.levels, rng) for _ in range(plans))]:
        model = family.build(counts)
        ratio = speedup(*here.measure([dense, model], family.feed, max_seconds=3.0))
        row: Row = {"network": name, "dense": counts == family.sizes, "measured_ms": dense_ms / ratio.value,
                    "spread": ratio.spread}  # fmt: skip
        for way, backend in models.items():
            found = backend.predict(model, family.feed)
            low, high = np.quantile(found.rounds_ms, [0.1, 0.9])
            row |= {f"{way}_ms": found.ms, f"{way}_low_ms": float(low), f"{way}_high_ms": float(high),
                    f"{way}_source": found.source}  # fmt: skip
        rows.append(row)
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """One line for each network, and one for all."""
    lines = []
    for name in [*dict.fromkeys(r["network"] for r in rows), "all"]:
        own = [r for r in rows if name in (r["network"], "all")]
        times = [r["measured_ms"] for r in own]
        line: Row = {"network": name, "plans": len(own), "measured_ms": float(np.median(times))}
        for way in WAYS:
            off = np.asarray([r[f"{way}_ms"] / r["measured_ms"] - 1 for r in own])
            line |= {f"{way}_error": float(np.median(abs(off))), f"{way}_bias": float(np.median(off)),
                     f"{way}_covered": float(np.mean([r[f"{way}_low_ms"] <= r["measured_ms"] <= r[f"{way}_high_ms"]
                                                      for r in own])),
                     f"{way}_rank": _rank(own, way) if name != "all" else _mean_rank(rows, way)}  # fmt: skip
        lines.append(line)
    return lines


def _rank(rows: list[Row], way: str) -> float:
    return float(spearmanr([r[f"{way}_ms"] for r in rows], [r["measured_ms"] for r in rows]).statistic)


def _mean_rank(rows: list[Row], way: str) -> float:
    names = dict.fromkeys(r["network"] for r in rows)
    return float(np.median([_rank([r for r in rows if r["network"] == n], way) for n in names]))


_TITLES = ("network", "plans", "ms", *(f"{first}{what}" for way in WAYS for first, what in (
    (f"{way}: ", "error"), ("", "bias"), ("", "rank"), ("", "covered"))))  # fmt: skip


def cells(line: Row) -> list[str]:
    found = [line["network"], str(line["plans"]), f"{line['measured_ms']:.3g}"]
    for way in WAYS:
        found += [f"{line[f'{way}_error']:.1%}", f"{line[f'{way}_bias']:+.1%}", f"{line[f'{way}_rank']:.3f}",
                  f"{line[f'{way}_covered']:.0%}"]  # fmt: skip
    return found


def page(lines: list[Row], made: dict[str, Any]) -> str:
    head = "| " + " | ".join(_TITLES) + " |\n|" + "|".join(["---"] + ["---:"] * (len(_TITLES) - 1)) + "|\n"
    body = "".join("| " + " | ".join(cells(line)) + " |\n" for line in lines)
    return f"""# Predicted against measured

What `graphprune compile --device` promises for a device that is not here, tried on a device that is: {made["device"]},
{made["runtime"]}, {made["threads"]} thread, {made["date"]}. The device is described by {made["rows"]:,} kernels of
random networks ({made["seconds"]:.0f} s of `graphprune profile`); the networks below had no part in that. Each is
measured dense and at random non-uniform widths, in turns with the dense one.

- **analytic**: from the figures of the description alone (peaks, bandwidths, launch), as for a device of
  `graphprune devices`; the figures are measured here rather than read from a data sheet.
- **table**: with the corrections learnt from the table.
- error, bias: median of |predicted / measured - 1|, and of predicted / measured - 1; rank: Spearman correlation over
  the plans of a network, for all the median over networks; covered: how many times were inside the 80 % interval given
  (less than 80 %: the intervals are too narrow). Two constants of the intervals, what all kernels of a model are off by
  together with and without a table, were set by an earlier run on this machine.

{head}{body}
Printed by `python -m tools.predicted`. No GPU was at hand: the same is to be run where one is (see the head of
`tools/predicted.py`).
"""


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (all)")
    parser.add_argument("--table", type=Path, help="a table of this machine; measured first if none is given")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long to measure the table")
    parser.add_argument("--plans", type=int, default=8, help="pruned variants of each network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/predicted.json"))
    options = parser.parse_args(arguments)
    if unknown := [n for n in options.networks if n not in NETWORKS]:
        parser.error(f"{unknown[0]!r} is not among {', '.join(NETWORKS)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options, progress, out = options_of(arguments), choose(), console()
    if options.table is not None:
        measured = read(options.table)
    else:
        kernels, kept = NetworkKernels(OnnxRuntime(options.threads)), cache_dir() / "host_table.json"
        measured = profile(kernels, kept, progress, seconds=options.seconds, seed=options.seed)
    if stale := measured.stale(OnnxRuntime(options.threads).key().runtime):
        out.print(f"warning: the table is of another time: {stale}")
    names = options.networks or list(NETWORKS)
    rows: list[Row] = []
    with progress.stage("measure", len(names)) as step:
        for name in names:
            rows += rows_of(name, measured, options.plans, options.threads, options.seed)
            step()
    lines = summary(rows)
    made = {"device": measured.key.device, "runtime": measured.key.runtime, "threads": options.threads,
            "date": measured.key.date, "rows": len(measured.rows), "seconds": options.seconds}  # fmt: skip
    atomic_write(options.out, (json.dumps({"made": made, "lines": lines, "rows": rows}, indent=1) + "\n").encode())
    atomic_write(options.out.with_suffix(".md"), page(lines, made).encode())
    shown = table(*_TITLES, left=("network",))
    for line in lines:
        shown.add_row(*cells(line))
    out.print(shown)
    return 0


if __name__ == "__main__":
    exit_with(main)
