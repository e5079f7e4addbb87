"""The time of one kernel on a device from figures of a data sheet: a roofline with the steps that tiles and waves make.

A matrix kernel computes whole tiles, and whole waves of tiles (one for every unit at a time); it is fed from the cache
that all units share; and nothing is faster than memory gives and takes the bytes. What is left out (clocks under load,
how well a library does) is in `EFFICIENCY`, until a table of measured times says more (see `correction`).

Roofline: Williams, Waterman and Patterson, CACM 52(4), 2009. Tiles and waves: NVIDIA, Matrix Multiplication Background
User's Guide, 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from graphprune.devices.device import BYTES, Device
from graphprune.devices.work import Work

EFFICIENCY = {"matrix": 0.8, "vector": 0.5, "memory": 0.85}
"""Of the peaks, what good kernels reach: products in large tiles; operations that are no multiply-adds; bandwidth."""
LAUNCH_US = {"gpu": 2.0, "cpu": 1.0}
"""What a kernel takes before and after its work, where the file of the device says nothing."""
_TILES = {"gpu": (128, 128, 32), "cpu": (8, 32, 1)}
_LEAST_TILE = {"gpu": 32, "cpu": 1}
_MOST_PARTS = 32
"""Parts into which a long sum may be cut so that all units have work."""
_SMALLER = 0.25
"""Exponent of what is left of the rate in smaller tiles, which have fewer products for each operand that they load; an
assumption that fits what small products of libraries reach."""
_FILL = 3
"""Steps of k that a tile takes before its pipeline is full and after it runs empty."""


def milliseconds(work: Work, device: Device, held: float = 0.0) -> float:
    """The time of one kernel; held: bytes of the weights of the whole model, which stay in a cache they fit into."""
    launch = device.figure("overhead.launch_us", LAUNCH_US[device.kind]) * 1e-6
    if work.kind == "view":
        return 0.0 if device.kind == "gpu" else launch * 1e3
    compute = work.operations / (device.peak("fp32") * device.count * EFFICIENCY["vector"])
    if work.kind == "matrix":
        compute += work.steps * min(_tiled(work, device))
    return 1e3 * (launch * work.steps + max(compute, memory_seconds(work, device, held)))


def memory_seconds(work: Work, device: Device, held: float = 0.0) -> float:
    """Seconds for the bytes: activations are in a cache if they fit beside each other, weights if all of the model's
    fit."""
    moved = work.inputs + work.outputs
    weights = work.weights / bandwidth(device, max(held, work.weights)) if work.weights else 0.0
    return (moved / bandwidth(device, moved) if moved else 0.0) + weights


def bandwidth(device: Device, footprint: float) -> float:
    """Bytes per second out of the smallest cache that holds a footprint twice, or out of memory, all units together."""
    best = device.bandwidth
    for level in ("l3", "l2"):
        size = 2**20 * device.figure(f"cache.{level}_mb", 0.0)
        rate = 1e9 * device.figure(f"cache.{level}_gb_s", 0.0)
        if device.kind == "cpu":  # of a core
            size *= device.count if level == "l2" else 1
            rate *= device.count
        if rate and 2 * footprint <= size:
            best = max(best, rate)
    return best * EFFICIENCY["memory"]


def _tiled(work: Work, device: Device) -> Iterator[float]:
    """Seconds of the products for every size of tile and number of parts that a library may choose."""
    rate, size = device.peak(work.precision) * EFFICIENCY["matrix"], BYTES[work.precision]
    shared = 1e9 * device.figure("cache.l2_gb_s", 0.0) if device.kind == "gpu" else 0.0
    most_m, most_n, step = (
        round(device.figure(f"tile.{axis}", default)) for axis, default in zip("mnk", _TILES[device.kind], strict=True)
    )
    if device.kind == "cpu":  # one tile after the other: only what is computed in vain counts
        rows = work.m if work.m < most_m else most_m * math.ceil(work.m / most_m)
        vector = max(1, round(most_n / 2 * 4 / size))
        padded = work.batch * rows * vector * math.ceil(work.n / vector) * work.k
        yield 2 * padded / (rate * device.count)
        return
    for m, n in {(a, b) for a in _halves(most_m, device) for b in _halves(most_n, device)}:
        tiles = work.batch * math.ceil(work.m / m) * math.ceil(work.n / n)
        parts = 1
        while parts <= _MOST_PARTS and (parts == 1 or tiles * parts <= 2 * device.count):
            k = math.ceil(work.k / parts / step) * step
            waves = math.ceil(tiles * parts / device.count)
            one = 2 * m * n * (k + _FILL * step) / (rate * (m * n / (most_m * most_n)) ** _SMALLER)
            if shared:  # both operands of every tile come out of the cache
                busy = min(tiles * parts, device.count)
                one = max(one, (m + n) * k * size * busy / shared)
            again = 2 * (parts > 1) * parts * work.batch * work.m * work.n * 4 / bandwidth(device, 0)
            yield waves * one + again
            parts *= 2


def _halves(size: int, device: Device) -> Iterator[int]:
    yield size
    while size // 2 >= _LEAST_TILE[device.kind]:
        size //= 2
        yield size
