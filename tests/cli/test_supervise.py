"""`creche worker --processes N`: what becomes of the children, whatever happens to them or to their supervisor."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from pathlib import Path
from uuid import UUID

import anyio
import pytest
from attrs import evolve

from commands import APP, PATIENCE, Command, Jobs, application, asked, jobs_in, started
from creche import Queue, Status
from creche.cli._children import End
from creche.cli._slot import Report
from creche.cli._supervise import Crashes, Verdict, judge
from processes import eventually, gone
from sockets import closed_port

TERM, INT, KILL, STOP = signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP
USR1, USR2, CONT = signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT
TWO = ("worker", "app:queue", "--processes", "2", "--poll-interval", "0.2s")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return application(tmp_path)


@pytest.fixture
def jobs(folder: Path) -> Jobs:
    return jobs_in(folder)


def up(command: Command, number: int = 2) -> list[int]:
    """Wait until so many children have begun to work; return their pids."""
    command.says(" serves ", number)
    return command.children()


HURRY = """
    from creche.cli import _children, _slot, _supervise
    _children.MARGIN = _slot.MARGIN = _supervise.MARGIN = 1.0
"""


def hurry(folder: Path) -> None:
    """Let processes with this folder on their PYTHONPATH be killed a second after their grace."""
    (folder / "sitecustomize.py").write_text(textwrap.dedent(HURRY))


# --- what follows when a child ends -----------------------------------------------------------------

WORKED = Report(up=True, live=True, ready=True, reason="")


def verdict(
    code: int, report: Report = WORKED, lived: float = 5.0, leaving: bool = False, proven: bool = True
) -> Verdict:
    return judge(End(code=code, report=report, lived=lived), Crashes(), leaving=leaving, proven=proven)


def over(why: str) -> Report:
    return evolve(WORKED, ended=why)


def test_one_that_reached_its_limit_is_replaced_at_once() -> None:
    assert verdict(0, over("max_jobs")) == verdict(0, over("max_memory")) == Verdict(again_in=0.0)


def test_one_that_reaches_its_limit_again_and_again_is_replaced_once_a_second() -> None:
    assert verdict(0, over("max_jobs"), lived=0.3) == Verdict(again_in=0.7)


def test_one_that_somebody_stopped_is_replaced() -> None:
    assert verdict(0, over("stopped")) == Verdict(again_in=0.0)


def test_one_that_has_drained_the_queues_is_not_replaced() -> None:
    assert verdict(0, over("drained")) == Verdict()
    assert verdict(1, over("drained")) == Verdict(code=1)


def test_what_died_before_a_limit_of_a_burst_is_not_forgotten() -> None:
    assert verdict(1, over("max_jobs")) == Verdict(code=1, again_in=0.0)


@pytest.mark.parametrize("code", [0, 1, 2, 7, -9, -11])
def test_a_crash_is_answered_with_patience(code: int) -> None:
    answer = verdict(code)
    assert (answer.code, answer.hopeless) == (0, False)
    assert answer.again_in is not None
    assert 0.5 <= answer.again_in <= 1.0


@pytest.mark.parametrize(("code", "told"), [(1, 1), (2, 2), (0, 1), (-9, 1)])
def test_a_crash_before_anything_worked_is_a_wrong_configuration(code: int, told: int) -> None:
    assert verdict(code, Report(), proven=False) == Verdict(code=told, hopeless=True)


def test_when_all_are_leaving_nothing_is_replaced() -> None:
    assert verdict(0, over("stopped"), leaving=True) == Verdict()
    assert verdict(0, over("max_jobs"), leaving=True) == Verdict()
    assert verdict(-KILL, leaving=True) == Verdict(code=1)
    assert verdict(-TERM, Report(), leaving=True) == Verdict(), "it had not begun"
    assert verdict(-TERM, leaving=True) == Verdict(code=1)


def test_one_that_was_killed_after_its_work_was_done_has_done_no_harm() -> None:
    assert verdict(-KILL, over("stopped"), leaving=True) == Verdict()
    assert verdict(-KILL, over("max_jobs")) == Verdict(again_in=0.0)


def test_patience_doubles_to_half_a_minute_and_begins_anew_after_a_minute_of_life() -> None:
    crashes = Crashes()
    delays: list[float] = []
    for _ in range(8):
        asked = crashes.again_in(lived=0.1)
        delays.append(crashes.delay)
        assert crashes.delay / 2 <= asked <= crashes.delay
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]
    crashes.again_in(lived=60)
    assert crashes.delay == 1


# --- with real processes ----------------------------------------------------------------------------


def test_children_share_the_work_and_say_which_of_them_speaks(folder: Path, jobs: Jobs) -> None:
    with started(folder, *TWO, "-c", "2") as supervisor:
        children = up(supervisor)
        ids = jobs.dispatch("whoami", count=8)
        for each in ids:
            jobs.becomes(each, "completed")
        assert {int(jobs.find(each).result or b"0") for each in ids} == set(children)
        supervisor.send(TERM)
        assert supervisor.ended() == 0
    for name in ("worker-1", "worker-2", "supervisor"):
        assert f" {name} creche: " in supervisor.told
    assert "Traceback" not in supervisor.told


def test_a_child_that_crashes_is_started_again_and_the_other_goes_on(folder: Path, jobs: Jobs) -> None:
    with started(folder, *TWO) as supervisor:
        before = up(supervisor)
        os.kill(before[0], KILL)
        supervisor.says("was ended by SIGKILL: it is started again in")
        after = up(supervisor, 3)
        assert len(after) == 2
        assert len(set(before) & set(after)) == 1
        supervisor.send(TERM)
        assert supervisor.ended() == 0


def test_a_child_that_reached_its_limit_is_replaced(folder: Path, jobs: Jobs) -> None:
    ids = jobs.dispatch("quick", count=6)
    with started(folder, *TWO, "--max-jobs", "2", "-c", "1") as supervisor:
        for each in ids:
            jobs.becomes(each, "completed")
        supervisor.says("(max_jobs): it is replaced", 3)
        supervisor.send(TERM)
        assert supervisor.ended() == 0


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_stop_gives_jobs_their_grace_and_leaves_nobody_behind(
    folder: Path, jobs: Jobs, number: signal.Signals
) -> None:
    ids = [*jobs.dispatch("second", count=2), *jobs.dispatch("slow", count=2)]
    with started(folder, *TWO, "--grace", "3s") as supervisor:
        children = up(supervisor)
        for each in ids:
            jobs.becomes(each, "processing")
        supervisor.send(number)
        assert supervisor.ended() == 0
        assert all(map(gone, children))
    assert [str(jobs.find(each).status) for each in ids] == ["completed", "completed", "pending", "pending"]


@pytest.mark.parametrize("number", [TERM, INT])
def test_who_signals_each_process_by_itself_as_systemd_does_takes_nobody_his_grace(
    folder: Path, jobs: Jobs, number: signal.Signals
) -> None:
    ids = jobs.dispatch("second", count=2)
    with started(folder, *TWO, "--grace", "10s") as supervisor:
        children = up(supervisor)
        for each in ids:
            jobs.becomes(each, "processing")
        for pid in (*children, supervisor.process.pid, *children):
            os.kill(pid, number)
        assert supervisor.ended() == 0
    assert [str(jobs.find(each).status) for each in ids] == ["completed", "completed"]


def test_a_second_signal_skips_the_grace(folder: Path, jobs: Jobs) -> None:
    (job,) = jobs.dispatch("slow")
    with started(folder, *TWO, "--grace", "10m") as supervisor:
        up(supervisor)
        jobs.becomes(job, "processing")
        supervisor.send(TERM)
        supervisor.says("stopping within 600 s")
        assert not eventually(lambda: supervisor.process.poll() is not None, 0.5)
        supervisor.send(TERM)
        assert supervisor.ended() == 0
    assert jobs.find(job).status is Status.PENDING


def test_a_child_that_does_not_end_is_killed_when_its_time_is_over(folder: Path, jobs: Jobs) -> None:
    hurry(folder)
    with started(folder, *TWO, "--grace", "0s", PYTHONPATH=str(folder)) as supervisor:
        children = up(supervisor)
        os.kill(children[0], STOP)
        supervisor.send(TERM)
        assert supervisor.ended() == 1
        assert "not ended in time, and killed" in supervisor.told
        assert eventually(lambda: all(map(gone, children)))


def test_a_child_whose_process_stays_after_its_end_is_replaced_all_the_same(folder: Path, jobs: Jobs) -> None:
    hurry(folder)
    stays = "\n    import threading\n    threading.Thread(target=time.sleep, args=[600]).start()\n"
    application(folder, APP + stays)
    ids = jobs.dispatch("quick", count=3)
    with started(folder, *TWO, "--max-jobs", "1", PYTHONPATH=str(folder)) as supervisor:
        for each in ids:
            jobs.becomes(each, "completed")
        supervisor.says("but its process does not: it is killed", 2)


def test_quiet_reaches_all_children_and_stacks_are_shown_by_all(folder: Path, jobs: Jobs) -> None:
    with started(folder, *TWO) as supervisor:
        up(supervisor)
        supervisor.send(USR2)
        supervisor.says("supervisor.run", 2)
        supervisor.send(USR1)
        supervisor.says("quiet:")
        time.sleep(0.5)
        (job,) = jobs.dispatch("quick")
        time.sleep(1)
        assert jobs.find(job).status is Status.PENDING
        assert len(supervisor.children()) == 2
        os.kill(supervisor.children()[0], KILL)
        assert eventually(lambda: len(supervisor.children()) == 1)
        supervisor.send(TERM)
        assert supervisor.ended() == 1, "one was killed"


def test_a_burst_ends_when_all_children_have_with_1_if_something_died(folder: Path, jobs: Jobs) -> None:
    jobs.dispatch("quick", count=10)
    with started(folder, *TWO, "--burst") as supervisor:
        assert supervisor.ended() == 0
    jobs.dispatch("boom")
    with started(folder, *TWO, "--burst") as supervisor:
        assert supervisor.ended() == 1
        assert "is replaced" not in supervisor.told


def test_a_burst_goes_on_after_a_limit_until_nothing_is_left(folder: Path, jobs: Jobs) -> None:
    ids = jobs.dispatch("quick", count=9)
    with started(folder, *TWO, "--burst", "--max-jobs", "2") as supervisor:
        assert supervisor.ended() == 0
    assert {jobs.find(each).status for each in ids} == {Status.COMPLETED}


def test_children_of_a_killed_supervisor_finish_their_jobs_and_end(folder: Path, jobs: Jobs) -> None:
    short, long = jobs.dispatch("second")[0], jobs.dispatch("slow")[0]
    with started(folder, *TWO, "--grace", "3s") as supervisor:
        children = up(supervisor)
        jobs.becomes(short, "processing")
        jobs.becomes(long, "processing")
        supervisor.send(KILL)
        assert eventually(lambda: all(map(gone, children)), PATIENCE)
    assert (jobs.find(short).status, jobs.find(long).status) == (Status.COMPLETED, Status.PENDING)


def test_a_mistake_in_the_configuration_ends_all_of_them_with_its_code(folder: Path) -> None:
    with started(folder, "worker", "app:nothing", "--processes", "3") as supervisor:
        assert supervisor.ended() == 2
        assert "before anything worked: giving up" in supervisor.told
    (folder / "app.py").write_text("import nowhere_at_all\n")
    with started(folder, "worker", "app:queue", "--processes", "3") as supervisor:
        assert supervisor.ended() == 1
        assert "No module named 'nowhere_at_all'" in supervisor.told


def test_an_option_from_the_environment_reaches_the_children(folder: Path, jobs: Jobs) -> None:
    (job,) = jobs.dispatch("quick", queue="elsewhere")
    with started(
        folder, "worker", CRECHE_APP="app:queue", CRECHE_WORKER_PROCESSES="2", CRECHE_WORKER_QUEUE="elsewhere"
    ):
        jobs.becomes(job, "completed")


def test_a_name_is_told_apart_by_its_process(folder: Path, jobs: Jobs) -> None:
    with started(folder, *TWO, "--name", "blue") as supervisor:
        up(supervisor)
        assert "worker blue-1:" in supervisor.told
        assert "worker blue-2:" in supervisor.told


def test_a_worker_with_settings_of_its_own_can_be_run_in_several_processes(folder: Path) -> None:
    with started(folder, "worker", "app:worker", "--processes", "2") as supervisor:
        assert len(up(supervisor)) == 2
        supervisor.send(TERM)
        assert supervisor.ended() == 0


def test_a_frozen_child_makes_the_supervisor_not_live(folder: Path) -> None:
    port = closed_port()
    with started(folder, *TWO, "--health-port", str(port)) as supervisor:
        children = up(supervisor)
        assert eventually(lambda: asked(port, "/ready")[0] == 200, PATIENCE)
        os.kill(children[0], STOP)
        assert eventually(lambda: asked(port, "/live")[0] == 503, PATIENCE)
        assert "worker-1: it has said nothing for" in asked(port, "/live")[1]["reason"]
        assert asked(port, "/ready")[0] == 200, "the other one is"
        os.kill(children[0], CONT)
        assert eventually(lambda: asked(port, "/live")[0] == 200, PATIENCE)


def test_it_works_on_a_server_with_either_event_loop(folder: Path, postgresql_dsn: str, anyio_backend: str) -> None:
    async def migrate() -> None:
        await Queue(postgresql_dsn).migrate()

    anyio.run(migrate)
    jobs = Jobs(postgresql_dsn)
    with started(folder, *TWO, "--backend", anyio_backend, JOBS=postgresql_dsn) as supervisor:
        children = up(supervisor)
        ids: list[UUID] = jobs.dispatch("whoami", count=40)
        for each in ids:
            jobs.becomes(each, "completed")
        assert {int(jobs.find(each).result or b"0") for each in ids} == set(children)
        supervisor.send(TERM)
        assert supervisor.ended() == 0
