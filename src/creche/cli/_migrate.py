"""`creche migrate`: brings a database's schema to this version, or says what that would mean. It touches no job."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import click

from creche.cli._display import say
from creche.cli._problems import ExitCode
from creche.cli._storages import dsn_option, shared_storage


@click.command()
@dsn_option
@click.option("--check", is_flag=True, help="Apply nothing; exit with 1 if something is pending.")
@click.option("--sql", is_flag=True, help="Apply nothing; print the SQL of what is pending.")
@click.pass_context
def migrate(context: click.Context, dsn: str, check: bool, sql: bool) -> None:
    """Bring the database's schema up to date.

    Prints the name of what it applied. Any number of processes may do it at once: one does it, the others find it done.
    """
    if not (check or sql):
        applied = anyio.run(shared_storage(dsn).migrate)
        for name in applied:
            click.echo(name)
        say(f"{_count(applied)} applied" if applied else "nothing to do: the schema is up to date")
        return
    pending = anyio.run(shared_storage(dsn).pending_migrations)
    for name, text in pending:
        click.echo(f"-- {name}\n\n{text.strip()}\n" if sql else name)
    say(f"{_count(pending)} pending" if pending else "nothing is pending: the schema is up to date")
    if check and pending:
        context.exit(ExitCode.TROUBLE)


def _count(migrations: Sequence[object]) -> str:
    return f"{len(migrations)} migration{'s' if len(migrations) > 1 else ''}"
