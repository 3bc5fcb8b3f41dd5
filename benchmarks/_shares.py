"""Workers that may take no more than a share of a core each: so two of them and their server leave cores free, on a
machine that has too few of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from attrs import evolve

from creche.bench import CRECHE, Contestant

ROOT: Final = Path("/sys/fs/cgroup")
PERIOD: Final = 10_000  # microseconds, of each of which a process has its share

# A shell makes the process's own group ($0 is where), goes into it, and becomes the process.
_ENTER: Final = 'group=$(mktemp -d "$0/XXXXXX") && {limit} && echo $$ > "$group/cgroup.procs" && exec "$@"'


@contextmanager
def limited(share: float, root: Path = ROOT) -> Generator[Contestant]:
    """Give out creche, each process of which may take this share of a core, by a control group of its own.

    Args:
        share: above 0; with 1 there is no limit, and no group.
        root: where the kernel has its groups.

    Raises:
        click.UsageError: this is no Linux, or we may make no groups.
    """
    if share >= 1:
        yield CRECHE
        return
    quota = int(share * PERIOD)
    unified = (root / "cgroup.controllers").exists()
    try:
        if unified:
            (root / "cgroup.subtree_control").write_text("+cpu")
        parent = Path(tempfile.mkdtemp(prefix="creche-bench-", dir=root if unified else root / "cpu"))
        if unified:
            (parent / "cgroup.subtree_control").write_text("+cpu")
    except OSError as error:
        raise click.UsageError(f"a worker can't be limited to a share of a core: {error}") from error
    limit = (
        f'echo "{quota} {PERIOD}" > "$group/cpu.max"'
        if unified
        else f'echo {PERIOD} > "$group/cpu.cfs_period_us" && echo {quota} > "$group/cpu.cfs_quota_us"'
    )
    try:
        yield evolve(CRECHE, command=("sh", "-c", _ENTER.format(limit=limit), str(parent), *CRECHE.command))
    finally:
        for group in [*(each for each in parent.iterdir() if each.is_dir()), parent]:
            group.rmdir()
