"""The same work for many things on all cores: threads, since the runtime and the linear algebra let go of the lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def n_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[T], R], things: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """work(thing) for each, in their order, some of them at a time. workers: how many (default: one for every core).

    No more is begun than is needed next. What `work` raises is raised where its result would be; then, and when the
    iterator is closed or interrupted, nothing new is begun.
    """
    workers = workers or n_cores()
    if workers == 1:
        yield from map(work, things)
        return
    pool, waiting, rest = ThreadPoolExecutor(workers), deque[Future[R]](), iter(things)
    try:
        for thing in rest:
            waiting.append(pool.submit(work, thing))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
