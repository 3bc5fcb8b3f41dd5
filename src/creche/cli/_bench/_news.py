"""What the commands of `creche bench` say alike: how far they are, what a job cost, and on what it was measured.

It prints no figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from creche.cli._display import can_draw, console_of_words, say

if TYPE_CHECKING:
    from creche.bench._measure import Work


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


def measured_on() -> Mapping[str, Any]:
    """Return when, where and with what it was measured, for JSON."""
    from creche.bench._facts import gather

    facts = gather()
    return {"date": facts.date, "machine": facts.machine, "versions": facts.versions}


def cost(work: Work) -> float:
    """Return the seconds that the processes computed per job."""
    return sum(answer.cpu for answer in work.answers) / max(1, work.jobs)
