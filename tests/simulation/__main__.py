"""Simulates until so many worker-hours are full: `python -m simulation --hours 100000`, in the folder `tests`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice

from simulation.plan import plan_of
from simulation.world import Report, simulate


def _of_seed(seed: int) -> Report:
    return simulate(plan_of(seed))


def _reports(first: int, processes: int) -> Iterator[tuple[int, Report]]:
    seeds = count(first)
    with ProcessPoolExecutor(processes) as pool:
        while True:
            batch = list(islice(seeds, 8 * processes))
            yield from zip(batch, pool.map(_of_seed, batch), strict=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--hours", type=float, default=1_000, help="worker-hours")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=1, help="how many simulations at once")
    parser.add_argument("--digests", type=int, nargs="+", metavar="SEED", help="print the hash of the events of each")
    options = parser.parse_args()
    if options.digests:
        for seed in options.digests:
            print(seed, _of_seed(seed).digest)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began, hours, cpu, counts, seed = time.monotonic(), 0.0, 0.0, Counter[str](), options.first
    try:
        for seed, report in _reports(options.first, options.processes):
            hours, cpu = hours + report.worker_hours, cpu + report.cpu
            counts += report.counts
            if report.violations:
                print(f"CRECHE_SIMULATION_SEED={seed}\n{report}")
                return 1
            if hours >= options.hours:
                break
    except KeyboardInterrupt:
        print("interrupted: this is what was done")
    for what, how_often in sorted(counts.items()):
        print(f"{how_often:9,}  {what}")
    print(
        f"seeds {options.first} to {seed}: {hours:,.0f} worker-hours, no violation; {cpu:,.0f} s of CPU, "
        f"{hours / cpu * 60:,.0f} worker-hours per minute of it; {time.monotonic() - began:,.0f} s in all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
