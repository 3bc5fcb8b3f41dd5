"""`creche doctor`: what is wrong with the database, or will be one day, and what to do about it. It changes nothing.

The looking is the storage's own, `Storage.check`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio
import click

from creche import Worker
from creche._job import Finding, Severity
from creche.abc import Storage
from creche.cli._chosen import counted
from creche.cli._display import BAD, CARE, GOOD, console_of_data, print_json, say, text_of
from creche.cli._problems import ExitCode
from creche.cli._storages import dsn_option, shared_storage
from creche.cli._targets import chosen_app, load
from creche.errors import StorageError
from creche.storage import mask

_STYLES: Final = {Severity.OK: GOOD, Severity.WARNING: CARE, Severity.PROBLEM: BAD}


@click.command(epilog="Exit codes: 0 no problem, 1 a problem (--strict: or a warning), 2 usage.")
@click.argument("target", required=False)
@dsn_option
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many jobs a worker runs at once, to be held against the number of connections.",
)
@click.option("--strict", is_flag=True, help="Take a warning for a problem.")
@click.option("--json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    context: click.Context, target: str | None, *, dsn: str, concurrency: int | None, strict: bool, json: bool
) -> None:
    """Examine the database, and say what is wrong with it.

    Its version, schema, settings, connections and clock are looked at; what each finding advises is below it.

    TARGET is module:name of a Worker or a Queue, for its database and the worker's concurrency; CRECHE_APP or
    [tool.creche] in pyproject.toml stands in for it. --dsn on the command line names another database.
    """
    named = context.get_parameter_source("dsn") is click.core.ParameterSource.COMMANDLINE
    app = target if named else chosen_app(target)
    found = None if app is None else load(app)
    if isinstance(found, Worker):
        concurrency = concurrency or found.concurrency
        found = found.queue
    storage = shared_storage(dsn) if found is None or named else found.storage
    findings = anyio.run(_check, storage, concurrency)
    if json:
        print_json([_finding(each) for each in findings])
    else:
        _print(findings)
    say(_sum(findings))
    bad = {Severity.PROBLEM, Severity.WARNING} if strict else {Severity.PROBLEM}
    context.exit(ExitCode.TROUBLE if any(each.severity in bad for each in findings) else ExitCode.OK)


async def _check(storage: Storage, concurrency: int | None) -> Sequence[Finding]:
    try:
        return await storage.check(concurrency=concurrency)
    except StorageError as error:
        advice = "is the server up, and are the address and the password right?"
        return [Finding(check="connection", severity=Severity.PROBLEM, message=str(error), advice=advice)]


def _finding(finding: Finding) -> Mapping[str, Any]:
    return {
        "check": finding.check,
        "severity": finding.severity,
        "message": mask(finding.message),
        "advice": mask(finding.advice),
    }


def _print(findings: Sequence[Finding]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        table.add_row(text_of(each.severity, _STYLES[each.severity]), text_of(each.check), text_of(mask(each.message)))
        if each.advice:
            table.add_row("", "", text_of(f"→ {mask(each.advice)}"))
    console_of_data().print(table)


def _sum(findings: Sequence[Finding]) -> str:
    numbers = {severity: sum(each.severity is severity for each in findings) for severity in Severity}
    if not (numbers[Severity.PROBLEM] or numbers[Severity.WARNING]):
        return f"nothing is wrong: {counted(len(findings), 'check')}"
    return f"{counted(numbers[Severity.PROBLEM], 'problem')}, {counted(numbers[Severity.WARNING], 'warning')}"
