"""Search longer than the tests do: python -m tests.fuzz --cases 20000, or --minutes 60. Exit code 1 on any finding."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import time
import warnings

from tests.fuzz.files import REGRESSIONS, SUFFIX, write
from tests.fuzz.programs import SLICES
from tests.fuzz.search import CASES, Statistics, search


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, help="networks to try (default: 20000, or as many as go)")
    parser.add_argument("--minutes", type=float, help="time to spend, at most")
    parser.add_argument("--seed", type=int, default=None, help="of the whole search (default: a random one)")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    warnings.simplefilter("ignore")  # the libraries warn about operators that they do not know
    logging.disable()
    cases = options.cases or (20_000 if options.minutes is None else sys.maxsize)
    end = time.monotonic() + 60 * (options.minutes or float("inf"))
    found, statistics = 0, Statistics()
    for i in range(-(-cases // CASES)):
        if time.monotonic() > end:
            break
        finding = search(seed + i, statistics)
        if finding is not None:
            found += 1
            path = REGRESSIONS / f"seed_{seed + i}{SUFFIX}"
            write(finding, path)
            print(f"{finding.what}\n  {finding.program}\n  written to {path}", flush=True)
        if i % SLICES == SLICES - 1:
            print(statistics, flush=True)
    print(statistics)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
