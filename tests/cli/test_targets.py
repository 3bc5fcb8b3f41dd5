"""Where TARGET and the database may be named, and what is said of a name that leads nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from commands import application, environment, executed
from creche.cli import _targets as targets
from creche.cli._problems import Trouble
from creche.storage import open_storage


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CRECHE_APP", "CRECHE_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(text)


def test_without_any_settings_there_is_no_target_and_the_database_is_a_file(folder: Path) -> None:
    assert targets.chosen_app() is None
    assert targets.chosen_dsn() == "sqlite:///creche.db"
    assert targets.project().folder == folder


def test_a_target_is_the_arguments_or_the_environments_or_the_projects(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(folder, '[tool.creche]\napp = "project:queue"\n')
    assert targets.chosen_app() == "project:queue"
    monkeypatch.setenv("CRECHE_APP", "environment:queue")
    assert targets.chosen_app() == "environment:queue"
    assert targets.chosen_app("argument:queue") == "argument:queue"


def test_a_dsn_is_the_environments_or_the_projects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(folder, '[tool.creche]\ndsn = "postgresql://bob@db/jobs"\n')
    assert targets.chosen_dsn() == "postgresql://bob@db/jobs"
    monkeypatch.setenv("DATABASE_URL", "sqlite:///second.db")
    assert targets.chosen_dsn() == "sqlite:///second.db"
    monkeypatch.setenv("CRECHE_DSN", "sqlite:///first.db")
    assert targets.chosen_dsn() == "sqlite:///first.db"


def test_the_nearest_project_that_has_settings_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = folder / "services" / "mail"
    below.mkdir(parents=True)
    configured(folder, '[tool.creche]\napp = "outer:queue"\n')
    configured(below, '[project]\nname = "mail"\n')
    monkeypatch.chdir(below)
    assert (targets.project().app, targets.project().folder) == ("outer:queue", folder)
    configured(below, '[tool.creche]\napp = "inner:queue"\n')
    assert targets.project().app == "inner:queue"


def test_a_projects_sqlite_file_is_beside_it_wherever_the_command_is_called(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = folder / "a folder"
    below.mkdir()
    monkeypatch.chdir(below)
    configured(folder, '[tool.creche]\ndsn = "sqlite:///jobs.db"\n')
    assert targets.chosen_dsn() == f"sqlite:///{folder}/jobs.db"
    configured(folder, '[tool.creche]\ndsn = "sqlite:////var/jobs.db"\n')
    assert targets.chosen_dsn() == "sqlite:////var/jobs.db"


def test_a_projects_folder_may_have_a_name_that_is_no_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = folder / os.fsdecode(b"caf\xe9")
    here.mkdir()
    monkeypatch.chdir(here)
    configured(here, '[tool.creche]\ndsn = "sqlite:///jobs.db"\n')
    assert repr(open_storage(targets.chosen_dsn())) == f"<SQLiteStorage {here}/jobs.db>"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.creche\n", "is not TOML"),
        ("[tool]\ncreche = 3\n", "write [tool.creche]"),
        ("[tool.creche]\napp = 3\n", 'write app = "…"'),
        ('[tool.creche]\napp = ""\n', 'write app = "…"'),
        ('[tool.creche]\ntarget = "a:b"\n', "there are app and dsn"),
        ('[tool.creche]\napps = "a:b"\n', "did you mean app?"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_what_to_write(folder: Path, text: str, says: str) -> None:
    configured(folder, text)
    with pytest.raises(Trouble) as error:
        targets.project()
    assert str(folder / "pyproject.toml") in str(error.value)
    assert says in str(error.value)


def test_a_file_that_can_not_be_read_is_named(folder: Path) -> None:
    (folder / "pyproject.toml").mkdir()
    with pytest.raises(Trouble, match=r"pyproject.toml can't be read"):
        targets.project()


def test_a_worker_below_the_project_finds_application_and_database(folder: Path) -> None:
    application(folder, "from creche import Queue\nqueue = Queue()\n@queue.task('t')\nasync def t() -> None: ...\n")
    below = folder / "below"
    below.mkdir()
    configured(folder, '[tool.creche]\napp = "app:queue"\ndsn = "sqlite:///project.db"\n')
    done = executed(below, "worker", "--burst")
    assert done.returncode == 0, done
    assert (folder / "project.db").exists()
    assert not list(below.iterdir())


def test_whoever_names_no_target_is_told_where_it_can_stand(folder: Path) -> None:
    done = executed(folder, "worker")
    assert done.returncode == 2
    assert done.stdout == ""
    for place in ("TARGET", "CRECHE_APP", "[tool.creche]"):
        assert place in done.stderr


def test_the_environment_of_these_tests_names_nothing() -> None:
    assert not {name for name in environment() if name.startswith("CRECHE_")}


def test_commands_without_a_target_use_the_projects_application_and_database(folder: Path) -> None:
    application(folder)
    configured(folder, '[tool.creche]\napp = "app:queue"\ndsn = "sqlite:///jobs.db"\n')
    below = folder / "below"
    below.mkdir()
    assert executed(below, "migrate").returncode == 0
    assert (folder / "jobs.db").exists()
    sent = executed(folder, "dispatch", "quick", "number=3")
    assert sent.returncode == 0, sent
    assert sent.stdout.strip() in executed(below, "jobs", "list").stdout
    assert "/elsewhere.db: " in executed(below, "jobs", "list", CRECHE_DSN="sqlite:///elsewhere.db").stderr
    assert executed(folder, "doctor").returncode == 0
