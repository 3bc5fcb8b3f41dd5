"""On what, and of what, a measurement was made. It never says where: no host's name, no address, no password."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from attrs import field, frozen

_PACKAGES: Final = ("creche", "anyio", "msgspec", "psycopg", "asyncmy", "trio", "uvloop")
_PLACE: Final = re.compile(r"(\w+://)\S+")


@frozen(kw_only=True)
class Facts:
    """What has to be known to measure the same again.

    Attributes:
        date: UTC, ISO 8601.
        command: the command line, without what DSNs say.
        machine: cores, processor, memory, kernel.
        versions: of Python and of the packages that matter.
        servers: the version of each.
        settings: of servers, contestants and runs, by who has them.
    """

    date: str
    command: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    servers: Sequence[str] = ()
    settings: Mapping[str, str] = field(factory=dict[str, str])


def gather(*, servers: Sequence[str] = (), settings: Mapping[str, str] | None = None) -> Facts:
    """Return the facts of this moment."""
    words = [Path(sys.argv[0]).parent.name or "", *(_PLACE.sub(r"\1…", word) for word in sys.argv[1:])]
    return Facts(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join(words),
        machine=machine(),
        versions=versions(),
        servers=list(servers),
        settings=dict(settings or {}),
    )


def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the packages that matter, of those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine() -> Mapping[str, str]:
    """Return what this machine is."""
    return {
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "processor": _processor(),
        "memory": f"{_memory() / (1 << 30):.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    with suppress(OSError):
        if found := re.search(r"(?m)^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text()):
            return found[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
