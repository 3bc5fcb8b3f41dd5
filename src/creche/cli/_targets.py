"""Finds the application: `module:name` to its queue or its worker. It starts neither."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import tomllib
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

import click
from attrs import field, frozen

from creche import Queue, Task, Worker
from creche._queue import DEFAULT_DSN
from creche.cli._problems import Misuse, Problem, Trouble
from creche.errors import CrecheError
from creche.storage import mask

T = TypeVar("T")

APP: Final = "CRECHE_APP"
DSN: Final = ("CRECHE_DSN", "DATABASE_URL")
_HERE: Final = Path(__file__).parent
_WANTED: Final = "a Queue, a Worker, or a function that returns one"


# --- [tool.creche] in pyproject.toml ----------------------------------------------------------------


@frozen(kw_only=True)
class Project:
    """What `[tool.creche]` in a pyproject.toml says.

    Attributes:
        folder: where the file is, and so where the application is; the working folder, if there is no such file.
        app: TARGET.
        dsn: the database; a relative SQLite file is beside pyproject.toml, wherever the command is called.
    """

    folder: Path = field(factory=Path.cwd)
    app: str | None = None
    dsn: str | None = None


def project() -> Project:
    """Return the settings of the nearest pyproject.toml that has some, in the working folder or above it.

    Raises:
        Trouble: it can't be read, or holds what is no setting.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        settings = _settings(folder / "pyproject.toml")
        if settings is not None:
            dsn = settings.get("dsn")
            return Project(folder=folder, app=settings.get("app"), dsn=None if dsn is None else _placed(dsn, folder))
    return Project()


def chosen_app(target: str | None = None) -> str | None:
    """Return TARGET: the one that is given, else what CRECHE_APP says, else [tool.creche]; None if nobody says."""
    return target or os.environ.get(APP) or project().app


def chosen_dsn() -> str:
    """Return which database is meant when nobody says --dsn: as `Queue()` has it, with [tool.creche] before the file
    of last resort.
    """
    said = next((said for name in DSN if (said := os.environ.get(name))), None)
    return said or project().dsn or DEFAULT_DSN


def required_app(target: str | None) -> str:
    """Return TARGET as `chosen_app` does.

    Raises:
        click.UsageError: nobody says.
    """
    app = chosen_app(target)
    if not app:
        raise click.UsageError(
            "Missing argument 'TARGET': name it, or set CRECHE_APP, or app = \"module:name\" under [tool.creche] in "
            "pyproject.toml."
        )
    return app


def _settings(file: Path) -> dict[str, str] | None:
    try:
        text = file.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Trouble(f"{file} can't be read: {error}") from None
    try:
        tool: object = tomllib.loads(text).get("tool")
    except tomllib.TOMLDecodeError as error:
        raise Trouble(f"{file} is not TOML: {error}") from None
    section: object = cast("dict[str, object]", tool).get("creche") if isinstance(tool, dict) else None
    if section is None:
        return None
    if not isinstance(section, dict):
        raise Trouble(f"{file}: creche under [tool] is no table: write [tool.creche]")
    for name, value in cast("dict[str, object]", section).items():
        if name not in {"app", "dsn"}:
            near = get_close_matches(name, ["app", "dsn"], 1, 0.5)
            hint = f": did you mean {near[0]}?" if near else ": there are app and dsn"
            raise Trouble(f"{file}: [tool.creche] has no setting {name!r}{hint}")
        if not isinstance(value, str) or not value:
            raise Trouble(f'{file}: [tool.creche] {name} is no text: write {name} = "…"')
    return cast("dict[str, str]", section)


def _placed(dsn: str, folder: Path) -> str:
    scheme, _, path = dsn.partition(":///")
    if not scheme.startswith("sqlite") or not path or path.startswith("/"):
        return dsn
    return f"{scheme}:///{quote(bytes(folder))}/{path}"


# --- from TARGET to what it names -------------------------------------------------------------------


def load(target: str) -> Queue | Worker:
    """Return the queue or the worker that `module:name` names, from the working folder or `sys.path`.

    Raises:
        Misuse: there is no such thing.
        Trouble: the module fails when it is imported, or the function when it is called.
    """
    said = project()
    if said.dsn is not None and not any(map(os.environ.get, DSN)):
        os.environ[DSN[0]] = said.dsn  # for a Queue() of the application that names no database
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise Misuse(f"{target!r}: write TARGET as module:name, such as app:queue")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise Misuse(f"{target!r} names a file: write the module, {dotted}:{name}")
    module = _import(module_name, said.folder)
    try:
        found = attrgetter(name)(module)
    except AttributeError:
        raise Misuse(f"{target!r}: the module has no {name!r}{_what_it_has(module)}") from None
    if isinstance(found, Task):
        raise Misuse(f"{target!r} is a task: name its queue{_what_it_has(module)}")
    if not isinstance(found, Queue | Worker) and callable(found) and not inspect.iscoroutinefunction(found):
        found = _guarded(target, found)
    if not isinstance(found, Queue | Worker):
        kind = "an async function" if inspect.iscoroutinefunction(found) else f"of type {type(found).__name__}"
        raise Misuse(f"{target!r} is {kind}; it must be {_WANTED}")
    return found


def load_queue(target: str) -> Queue:
    """Return the queue that `module:name` names; a worker's queue, if it names a worker."""
    found = load(target)
    return found.queue if isinstance(found, Worker) else found


def _import(name: str, folder: Path) -> ModuleType:
    for each in (str(folder), str(Path.cwd())):  # the working folder comes first
        if each not in sys.path:
            sys.path.insert(0, each)

    def load_module() -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and imports something that is not
            where = "in the working folder or on sys.path"
            raise Misuse(f"{name!r}: there is no module {error.name!r} {where}") from None

    return _guarded(name, load_module)


def _guarded(what: str, call: Callable[[], T]) -> T:
    """Call the application's code. Its settings may be wrong: one line; it may have a bug: its traceback, not ours."""
    try:
        return call()
    except Problem:
        raise
    except CrecheError as error:
        raise Trouble(f"{what}: {error}") from error
    except Exception as error:
        _show(error)
        raise Trouble(f"{what} failed: {type(error).__name__}: {error}") from error


def _show(error: Exception) -> None:
    lines = traceback.format_exception(type(error), error, _without_ours(error.__traceback__))
    click.echo(mask("".join(lines)), err=True, nl=False)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not (Path(file).parent == _HERE or file.startswith("<frozen importlib") or "importlib" in Path(file).parts):
            return trace
        trace = trace.tb_next
    return None


def _what_it_has(module: ModuleType) -> str:
    has: list[str] = []
    members: dict[str, Any] = vars(module)
    for name, member in members.items():
        if isinstance(member, Queue | Worker):
            has.append(f"{name} (a {type(member).__name__})")
    return f"; it has {', '.join(has)}" if has else ""
