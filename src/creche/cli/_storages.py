"""For commands that need a database but no application: the option --dsn, and the storage behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from creche._job import Severity
from creche._queue import DEFAULT_DSN
from creche.abc import Storage
from creche.cli._problems import Misuse, Trouble
from creche.cli._targets import chosen_dsn
from creche.storage import open_storage

F = TypeVar("F", bound=Callable[..., Any])


def dsn_option(function: F) -> F:
    """Give a command the option --dsn, with the fallbacks that `Queue()` has, and [tool.creche] before the last."""
    return click.option(
        "--dsn",
        envvar=["CRECHE_DSN", "DATABASE_URL"],
        default=DEFAULT_DSN,
        callback=_or_the_projects,
        show_default=True,
        show_envvar=True,
        allow_from_autoenv=False,
        metavar="URL",
        help="The database.",
    )(function)


def _or_the_projects(context: click.Context, parameter: click.Parameter, dsn: str) -> str:
    said = context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
    return dsn if said or context.resilient_parsing else chosen_dsn()


def shared_storage(dsn: str) -> Storage:
    """Return the storage that a DSN names, or raise Misuse if no other process could see what is in it."""
    if "://" not in dsn:
        raise Trouble("the DSN names no database: write it like sqlite:///reports.db or postgresql://user@host/name")
    storage = open_storage(dsn)
    if not storage.capabilities.shared:
        raise Misuse(f"{dsn} lives inside one process: name the database that it shares")
    return storage


@asynccontextmanager
async def opened(dsn: str) -> AsyncGenerator[Storage]:
    """Open a storage to look at jobs: one that is there, with its schema. A look neither makes nor migrates one."""
    storage = shared_storage(dsn)
    pending = [name for name, _ in await storage.pending_migrations()]
    if pending:
        reach, *_ = await storage.check()
        if reach.severity is Severity.PROBLEM:  # of SQLite: there is no such file
            raise Trouble(f"{reach.message}: name the right one with --dsn or CRECHE_DSN, or `creche migrate` makes it")
        lacks = f"{dsn} lacks {', '.join(pending)}"
        raise Trouble(f"{lacks}: run `creche migrate`, or name another database with --dsn")
    async with storage:
        yield storage
