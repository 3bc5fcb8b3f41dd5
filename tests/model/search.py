"""Breadth-first search: every state that can be reached, nearest first, so what is found has no shorter way to it.
It knows nothing of jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from sys import intern
from typing import Generic, TypeVar

from attrs import frozen

S = TypeVar("S")
B = TypeVar("B")


@frozen(kw_only=True)
class Found(Generic[B]):
    """What a search came to.

    Attributes:
        broken: what doesn't hold; None if everything does, in every state.
        trace: how one gets there, in words.
        states: how many were reached.
        steps: how many lead from one to another.
        depth: how many steps the furthest is away.
    """

    broken: B | None
    trace: Sequence[str]
    states: int
    steps: int
    depth: int

    def __str__(self) -> str:
        if self.broken is None:
            return f"holds in all {self.states:,} states, over {self.steps:,} steps; the furthest is {self.depth} away"
        return "\n".join(
            [
                f"BROKEN: {getattr(self.broken, 'value', self.broken)}",
                *(f"{number:4}. {words}" for number, words in enumerate(self.trace, 1)),
            ]
        )


def explore(
    start: S,
    steps: Callable[[S], Iterable[tuple[str, S, B | None]]],
    *,
    key: Callable[[S], Hashable],
    broken_in: Callable[[S], B | None],
) -> Found[B]:
    """Go through all states, until something is broken.

    Args:
        start: where it begins.
        steps: what can happen in a state: in words, what follows, and what the step itself breaks.
        key: what tells one state from another.
        broken_in: what doesn't hold in a state.
    """
    seen = {key(start)}
    came: list[tuple[int, str]] = [(-1, "")]  # from which state, and how
    taken = depth = 0
    here = [(0, start)]

    def found(broken: B | None, place: int, *last: str) -> Found[B]:
        trace = list(last)
        while place > 0:
            place, words = came[place]
            trace.append(words)
        return Found(broken=broken, trace=trace[::-1], states=len(came), steps=taken, depth=depth)

    if (broken := broken_in(start)) is not None:
        return found(broken, 0)
    while here:
        following: list[tuple[int, S]] = []
        for place, state in here:
            for words, after, broken in steps(state):
                taken += 1
                if broken is not None:
                    return found(broken, place, words)
                name = key(after)
                if name in seen:
                    continue
                seen.add(name)
                came.append((place, intern(words)))
                if (broken := broken_in(after)) is not None:
                    return found(broken, len(came) - 1)
                following.append((len(came) - 1, after))
        here = following
        depth += bool(here)
    return found(None, 0)
