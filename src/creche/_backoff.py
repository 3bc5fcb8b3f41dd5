"""From the number of an attempt to the delay before the next: after an error, after a lost lease. It never sleeps."""

from __future__ import annotations

import math
import random
from typing import Final
from uuid import UUID

from attrs import Attribute, field, frozen

from creche._job import check_seconds
from creche.errors import OptionInvalid

_MAX_EXPONENT: Final = 1_023.0  # of two; a float holds no more


def _duration(_: object, attribute: Attribute[float], value: float) -> None:
    check_seconds(attribute.name, value)


def _multiplier(_: object, attribute: Attribute[float], value: float) -> None:
    if not 1 <= value < math.inf:
        raise OptionInvalid(attribute.name, value, "a number, 1 or more")


def _fraction(_: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise OptionInvalid(attribute.name, value, "a number from 0 to 1")


@frozen
class ExponentialBackoff:
    """`base × multiplier^(attempt − 1)` seconds, spread by ± `jitter`, never more than `cap`.

    Args:
        base: seconds after the first attempt.
        multiplier: how much longer after each further one, 1 or more.
        cap: the most seconds, jitter included.
        jitter: a part of the delay, from 0 to 1, by which it is moved up or down at random, so that
            jobs that failed together do not come back together.
    """

    base: float = field(default=1.0, validator=_duration)
    multiplier: float = field(default=2.0, validator=_multiplier)
    cap: float = field(default=300.0, validator=_duration)
    jitter: float = field(default=0.1, validator=_fraction)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt`, counted from 1."""
        exponent = max(0, attempt - 1) * math.log2(self.multiplier)
        raw = self.cap if exponent > _MAX_EXPONENT else self.base * 2.0**exponent
        spread = random.uniform(-self.jitter, self.jitter)  # noqa: S311 - spreading load, guarding nothing
        return max(0.0, min(self.cap, min(self.cap, raw) * (1 + spread)))


_DOUBLINGS: Final = 6


def recovery_delay(job_id: UUID, attempt: int) -> int:
    """Return the microseconds between the moment when a job is recovered and the one when it is due again.

    A part of a span that doubles with each attempt: 0 to 1 s after the first, 0 to 2 s after the second, up to 64 s.
    The part is drawn from the id, whose last 48 bits are random: its last three groups of 16 bits take turns, attempt
    by attempt, so those that stood side by side once do not the next time. What is drawn is the same on every engine.

    Args:
        job_id: whose.
        attempt: the number of the attempt whose lease ran out, counted from 1.
    """
    group = job_id.int >> (32 - 16 * ((attempt - 1) % 3)) & 0xFFFF
    span = 1_000_000 << min(attempt - 1, _DOUBLINGS)
    return group * span >> 16
