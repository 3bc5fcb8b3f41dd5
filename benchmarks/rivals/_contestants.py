"""Who is measured, and how each is started. What a rival is set to stands in its script, and is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

from attrs import field, frozen

from benchmarks.rivals import _environment as environment
from benchmarks.rivals._environment import SCRIPTS, Missing
from creche.bench import CRECHE, Contestant

DRAINS: Final = frozenset({"drain"})


@frozen(kw_only=True)
class Entry:
    """A contestant, and which of the races it is in.

    Attributes:
        name: for tables and `--only`.
        start: finds it, or says why it can't be had.
        changes: of every order that it gets: fields and their values.
        python: whether its calls can be counted.
        races: the kinds of races that it is in.
        engine: the database.
    """

    name: str
    start: Callable[[], Contestant | Missing]
    changes: Mapping[str, Any] = field(factory=dict[str, Any])
    python: bool = True
    races: frozenset[str] = frozenset({"drain", "dispatch", "bulk", "latency", "idle"})
    engine: str = "postgresql"


def _script(name: str, packages: str = "python") -> Callable[[], Contestant | Missing]:
    def find() -> Contestant | Missing:
        if packages == "oban":
            interpreter = environment.python(environment.OBAN, name="oban", minor=12)
        else:
            interpreter = environment.python()
        if isinstance(interpreter, Missing):
            return interpreter
        script = SCRIPTS / f"run_{name}.py"
        return Contestant(name=name, command=[str(interpreter), str(script)], environment={"PYTHONPATH": ""})

    return find


def _graphile() -> Contestant | Missing:
    found = environment.node()
    if isinstance(found, Missing):
        return found
    binary, home = found
    command = [str(binary), str(SCRIPTS / "run_graphile.mjs")]
    return Contestant(name="graphile-worker", command=command, environment={"RIVALS_NODE": str(home)})


def _ours() -> Contestant:
    return CRECHE


def _ours_on_uvloop() -> Contestant | Missing:
    return CRECHE if find_spec("uvloop") else Missing("needs uvloop beside creche")


BARE: Final = Contestant(name="bare psycopg", command=[sys.executable, str(SCRIPTS / "run_bare.py")])

ENTRIES: Final[Sequence[Entry]] = (
    Entry(name="creche", start=_ours),
    Entry(name="creche, rows deleted", start=_ours, changes={"keep": False}, races=DRAINS),
    Entry(name="creche, trio", start=_ours, changes={"backend": "trio"}),
    Entry(name="creche, uvloop", start=_ours_on_uvloop, changes={"backend": "uvloop"}),
    Entry(name="pgqueuer", start=_script("pgqueuer")),
    Entry(name="pgqueuer, uvloop", start=_script("pgqueuer"), changes={"backend": "uvloop"}),
    Entry(name="graphile-worker", start=_graphile, python=False),
    Entry(name="procrastinate", start=_script("procrastinate"), changes={"keep": False}),
    Entry(name="oban", start=_script("oban", "oban")),
    Entry(name="chancy", start=_script("chancy")),
    Entry(name="saq", start=_script("saq")),
    Entry(name="awa-pg", start=_script("awa")),
    Entry(name="creche, SQLite", start=_ours, engine="sqlite"),
    Entry(name="creche, SQLite, rows deleted", start=_ours, engine="sqlite", changes={"keep": False}, races=DRAINS),
    Entry(name="huey, SQLite", start=_script("huey"), engine="sqlite"),
    Entry(name=BARE.name, start=lambda: BARE, races=frozenset({"latency", "idle"})),
)
