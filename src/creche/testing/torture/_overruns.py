"""Handlers that were alive after their own deadline: for how long, for how much of that they could have ended, and why
they did not. It judges none; the auditor does.

A worker's own deadline comes a margin before the end of the lease. Whoever is awake for longer than that margin past it
is to blame; time in which the process stood still, or a handler blocked its event loop, is taken off first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from attrs import frozen

from creche.testing.torture._jobs import LONGER, STUBBORN
from creche.testing.torture._story import Attempt, Story

Span: TypeAlias = tuple[float, float]

STOOD: Final = "its process stood still"
SWALLOWED: Final = "it swallowed its cancellation"
BLOCKED: Final = "its event loop was blocked"
COMMITTING: Final = "it waited for the answer to its commit"

LAST_WORD: Final = 2.0  # seconds that a commit has after the lease: see `Job.transaction`


@frozen(kw_only=True)
class Overrun:
    """A handler that was alive after its own deadline.

    Attributes:
        past: seconds after the deadline.
        awake: of those, in which its process could have ended it.
        margin: that it had until its lease was over.
        why: it took long; empty if nothing is known.
        allowed: how long it may be awake, for that reason.
    """

    attempt: Attempt
    past: float
    awake: float
    margin: float
    why: str
    allowed: float

    @property
    def outlived(self) -> bool:
        """Whether it was still alive when its lease was over."""
        return self.past > self.margin

    @property
    def unexcused(self) -> bool:
        """Whether it was, and nothing explains it."""
        return self.outlived and self.awake > self.allowed


def overruns(story: Story) -> Iterator[Overrun]:
    """Yield all overruns."""
    stood = _stood(story)
    blocked = _blocks(story)
    margin = story.plan.margin
    for attempt in (each for attempts in story.attempts.values() for each in attempts):
        end = attempt.alive_until
        if end is None or end <= attempt.until:
            continue
        still = _overlap(stood[attempt.who], attempt.until, end)
        stuck = _overlap(blocked[attempt.who], attempt.until, end)
        together = _overlap([*stood[attempt.who], *blocked[attempt.who]], attempt.until, end)
        past = end - attempt.until
        awake = past - together
        why, allowed = "", margin
        if attempt.swallows:
            why, allowed = SWALLOWED, STUBBORN + margin
        elif attempt.commits and awake > margin:
            why, allowed = COMMITTING, LAST_WORD + margin
        elif stuck or still:
            why = BLOCKED if stuck >= still else STOOD
        yield Overrun(attempt=attempt, past=past, awake=awake, margin=margin, why=why, allowed=allowed)


def _stood(story: Story) -> defaultdict[str, list[Span]]:
    found = defaultdict[str, list[Span]](list)
    for entry in story.all("stood"):
        found[entry["who"]].append((entry["since"], entry["at"]))
    # Who is killed while it is frozen, or as soon as it is thawed, has no time to tell; who froze it has.
    for name, entries in story.by("name", "frozen", "thawed").items():
        frozen: float | None = None
        for entry in entries:
            if entry["what"] == "frozen":
                frozen = entry["at"]
            elif frozen is not None:
                found[name].append((frozen, entry["at"]))
                frozen = None
        if frozen is not None and name in story.deaths:
            found[name].append((frozen, story.deaths[name]))
    return found


def _blocks(story: Story) -> defaultdict[str, list[Span]]:
    found = defaultdict[str, list[Span]](list)
    for who, entries in story.by("who", "blocks", "unblocked").items():
        begun: float | None = None
        for entry in entries:
            if entry["what"] == "blocks":
                begun = entry["at"]
            elif begun is not None:
                found[who].append((begun, entry["at"]))
                begun = None
        if begun is not None:
            found[who].append((begun, begun + LONGER * story.plan.lease))
    return found


def _overlap(spans: Sequence[Span], since: float, until: float) -> float:
    """Return how much of the time between two moments these cover together."""
    covered, reached = 0.0, since
    for begun, ended in sorted(spans):
        if ended > reached and begun < until:
            covered += min(ended, until) - max(begun, reached)
            reached = max(reached, min(ended, until))
    return covered
