"""Work on all cores: the same results in the same order as one after the other, and errors where they belong."""

from __future__ import annotations

import threading
import time

import pytest

from graphprune.parallel import in_order, n_cores


@pytest.mark.parametrize("workers", [None, 1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 17])
def test_results_come_in_the_order_of_the_things(n: int, workers: int | None) -> None:
    def slow_at_first(i: int) -> int:
        time.sleep(0.002 * (n - i))
        return i * i

    assert list(in_order(slow_at_first, range(n), workers)) == [i * i for i in range(n)]
    assert n_cores() >= 1


def test_several_run_at_a_time_and_no_more_are_begun_than_are_needed_soon() -> None:
    begun, meeting = [], threading.Barrier(3, timeout=20)

    def meet(i: int) -> int:
        begun.append(i)
        if i < 3:
            meeting.wait()
        return i

    results = in_order(meet, iter(range(100)), 3)
    assert next(results) == 0
    results.close()
    assert len(begun) <= 5


def test_an_error_comes_out_where_its_result_would_and_ends_the_work() -> None:
    def fail(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    seen = []
    with pytest.raises(ValueError, match="three"):
        for result in in_order(fail, range(50), 2):
            seen.append(result)
    assert seen == [0, 1, 2]
