"""How people write lengths of time on a command line: `90`, `90s`, `15m`, `2h`, `7d`. It reads no clock."""

from __future__ import annotations

import re
from typing import Final

import click

from creche._job import DELAY_LIMIT

UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[smhd]?)", re.ASCII)


def duration(text: str | float) -> float:
    """Return the seconds that a text means, for `click.option(type=duration)`; without a unit it counts seconds."""
    found = _DURATION.fullmatch(str(text).strip().lower())
    if found is None:
        raise click.BadParameter(f"{text!r} is no duration: write 90, 90s, 15m, 2h or 7d.")
    seconds = float(found["number"]) * dict(UNITS).get(found["unit"], 1)
    if seconds > DELAY_LIMIT:
        raise click.BadParameter(f"{text!r} is more than a century.")
    return seconds


def in_words(seconds: float) -> str:
    """Return seconds as people would write them on a command line, whole units only: `7d`, `90s`."""
    whole = round(seconds)
    unit, size = next(((unit, size) for unit, size in UNITS if whole and whole % size == 0), UNITS[-1])
    return f"{whole // size}{unit}"
