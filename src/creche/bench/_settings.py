"""Which settings of a worker are tried, and which of them is the one to take. It measures and draws nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final, TypeVar

from attrs import field, frozen

T = TypeVar("T")

CLOSE: Final = 0.05  # of the best rate: what is less apart makes no difference to anybody
_FAR: Final = 0.25  # of the best rate: where equal runs differ by more, nothing is said by calling them equal


@frozen(kw_only=True, order=True)
class Setting:
    """What a worker is told. The smaller costs less: first processes, then slots, then jobs that wait in them."""

    processes: int
    concurrency: int
    prefetch: int


@frozen(kw_only=True)
class Cell:
    """One setting, tried several times.

    Attributes:
        milliseconds: that a handler takes.
        rates: jobs per second, of each run so far.
        costs: seconds that the workers computed per job, of each run so far.
    """

    setting: Setting
    milliseconds: float = 0.0
    rates: list[float] = field(factory=list[float])
    costs: list[float] = field(factory=list[float])

    @property
    def rate(self) -> float:
        """The median of the rates."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Half of what lies between the slowest run and the fastest, as a share of the median."""
        return (max(self.rates) - min(self.rates)) / 2 / self.rate


@frozen(kw_only=True)
class Choice:
    """What to take.

    Attributes:
        best: the cell of the highest median.
        chosen: the smallest setting that is as good.
        tolerance: what counts as equally good, as a share of the best.
    """

    best: Cell
    chosen: Cell
    tolerance: float


def grid(concurrency: Sequence[int], prefetch: Sequence[int], processes: Sequence[int]) -> list[Setting]:
    """Return every combination once, the smaller first."""
    return sorted(
        {
            Setting(processes=p, concurrency=c, prefetch=ahead)
            for p, c, ahead in product(processes, concurrency, prefetch)
        }
    )


def rounds(things: Sequence[T], number: int) -> Iterator[tuple[int, T]]:
    """Yield each of them once a round, every other round backwards: what drifts then drifts for all."""
    for turn in range(number):
        for each in things if turn % 2 == 0 else reversed(things):
            yield turn, each


def choose(cells: Sequence[Cell]) -> Choice:
    """Return the corner of the plateau: of all that are as good as the best, the smallest. The very best is a matter of
    luck, and next to it there is nearly always something smaller.

    As good is what is within a few percent of it, or within what equal runs differed by, if that was more.
    """
    by_size = sorted(cells, key=lambda cell: cell.setting)
    best = max(by_size, key=lambda cell: cell.rate)
    tolerance = min(_FAR, max(CLOSE, statistics.median(cell.spread for cell in cells)))
    chosen = next(cell for cell in by_size if cell.rate >= best.rate * (1 - tolerance))
    return Choice(best=best, chosen=chosen, tolerance=tolerance)
