"""What the commands of `creche bench` say alike: how far they are, which runs were too short, what a job cost, and on
what it was measured.

It prints no figures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from creche.cli._bench._options import MOST
from creche.cli._chosen import counted
from creche.cli._display import can_draw, console_of_words, say

if TYPE_CHECKING:
    from creche.bench._measure import Work
    from creche.bench._orders import Order

_SHORT: Final = 0.5  # of the time that a run had: what lasts less is its beginning and its end, mostly


@contextmanager
def news(number: int) -> Generator[Callable[[str], None]]:
    """Give out what tells people how far it is: on one line that goes where there is a terminal, else line by line."""
    done = 0

    def counting(show: Callable[[str], None]) -> Callable[[str], None]:
        def tell(words: str) -> None:
            nonlocal done
            done += 1
            show(f"{done} of {number}, {words}")

        return tell

    if can_draw(sys.stderr):
        with console_of_words().status("…") as line:
            yield counting(line.update)
    else:
        yield counting(say)


def own_up(drains: Sequence[Work], order: Order) -> None:
    """Say so where the jobs were gone long before the time was: it is `--jobs` then that was measured with."""
    limit = order.limit or 0.0
    short = [work for work in drains if work.jobs >= order.jobs and work.seconds < _SHORT * limit]
    if not short:
        return
    first = min(work.seconds for work in short)
    jobs = min(MOST, max(math.ceil(work.rate * limit / 1_000) * 1_000 for work in short))
    where = f"{len(short)} of {counted(len(drains), 'run')}"
    say(f"out of jobs early in {where}, once after {first:.2g} of {limit:g} s, little to judge by: say --jobs {jobs}")


def measured_on() -> Mapping[str, Any]:
    """Return when, where and with what it was measured, for JSON."""
    from creche.bench._facts import gather

    facts = gather()
    return {"date": facts.date, "machine": facts.machine, "versions": facts.versions}


def cost(work: Work) -> float:
    """Return the seconds that the processes computed per job."""
    return sum(answer.cpu for answer in work.answers) / max(1, work.jobs)
