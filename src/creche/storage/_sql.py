"""Finds the SQL of one engine: its statements and its migrations, as files. It runs none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from attrs import frozen

_CHECKOUT: Final = Path(__file__).parents[3] / "sql"


@frozen(kw_only=True)
class Migration:
    """One numbered step of the schema; `name` is its file's, such as `0001_initial.sql`."""

    version: int
    name: str
    sql: str


@frozen(kw_only=True)
class Dialect:
    """All SQL of one engine: `statements["reserve"]` is the text of `reserve.sql`."""

    statements: Mapping[str, str]
    migrations: Sequence[Migration]

    @property
    def version(self) -> int:
        """The schema's version that the statements need."""
        return self.migrations[-1].version


def load(engine: str) -> Dialect:
    """Return the SQL of `engine`, from the wheel or from the checkout of an editable install."""
    folder = _home() / engine
    texts = {entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(".sql")}
    migrations = [
        Migration(version=int(name[:4]), name=name, sql=text)
        for name, text in sorted(texts.items())
        if name[:4].isdigit()
    ]
    statements = {name.removesuffix(".sql"): text for name, text in texts.items() if not name[:4].isdigit()}
    return Dialect(statements=statements, migrations=migrations)


def _home() -> Traversable:
    packaged = files("creche") / "sql"  # hatchling's force-include puts it here, but not in an editable install
    return packaged if packaged.is_dir() else _CHECKOUT
