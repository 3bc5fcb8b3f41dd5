"""A share of a core: what is written where the kernel would read it. That it holds, the benchmark itself shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from benchmarks._shares import limited

from creche.bench import CRECHE


def groups(root: Path) -> list[Path]:
    return [found.parent for found in root.rglob("cgroup.procs")]


@pytest.mark.parametrize("unified", [True, False])
def test_each_process_is_in_a_group_of_its_own_that_has_the_share(tmp_path: Path, unified: bool) -> None:
    if unified:
        (tmp_path / "cgroup.controllers").write_text("cpu")
    else:
        (tmp_path / "cpu").mkdir()
    with limited(0.25, tmp_path) as workers:
        assert workers.command[-len(CRECHE.command) :] == CRECHE.command
        shell = workers.command[: -len(CRECHE.command)]
        tell = (sys.executable, "-c", "import os; print(os.getpid())")
        ran = [subprocess.run([*shell, *tell], check=True, capture_output=True, text=True).stdout for _ in range(2)]
        found = groups(tmp_path)
        assert sorted((group / "cgroup.procs").read_text() for group in found) == sorted(ran)
        for group in found:
            if unified:
                assert (group / "cpu.max").read_text().split() == ["2500", "10000"]
                assert (group.parent / "cgroup.subtree_control").read_text() == "+cpu"
            else:
                assert (group / "cpu.cfs_quota_us").read_text().split() == ["2500"]
                assert (group / "cpu.cfs_period_us").read_text().split() == ["10000"]
        parent = found[0].parent
        for group in found:  # the kernel's files are no obstacle to its rmdir; these are
            shutil.rmtree(group)
            group.mkdir()
        (parent / "cgroup.subtree_control").unlink(missing_ok=True)
    assert not parent.exists()


def test_who_has_a_core_has_no_group(tmp_path: Path) -> None:
    with limited(1.0, tmp_path) as workers:
        assert workers is CRECHE


def test_without_the_right_to_make_groups_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="share of a core"), limited(0.5, tmp_path / "nowhere"):
        pytest.fail("there is no such folder")
