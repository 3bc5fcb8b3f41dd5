"""Which indexes the migrations make, read from their own text, and which a database has. It runs no statement."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from attrs import frozen

from creche.storage._asyncmy import Server
from creche.storage._mysql_calls import Row, bare
from creche.storage._mysql_literals import Expression, render
from creche.storage._sql import Migration

PRIMARY: Final = "PRIMARY"

_TABLE: Final = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+) \((.*?)^\) ENGINE", re.DOTALL | re.MULTILINE)
_KEY: Final = re.compile(r"^ +(PRIMARY|UNIQUE)? ?KEY ?(\w*) ?\(([\w, ]+)\)", re.MULTILINE)
_OWN: Final = re.compile(r"^ +(\w+) .*\bPRIMARY KEY\b", re.MULTILINE)  # a column that is the key by itself

_QUERY: Final = """
SELECT table_name, index_name, column_name, non_unique, %(used)s
  FROM information_schema.statistics
 WHERE table_schema = DATABASE()
   AND LEFT(table_name, 7) = 'creche_'
 ORDER BY table_name, index_name, seq_in_index
"""


@frozen
class Key:
    """An index: its columns in order, and whether a value stands in it once."""

    columns: tuple[str, ...]
    unique: bool
    used: bool = True


Keys: TypeAlias = Mapping[tuple[str, str], Key]


def expected(migrations: Iterable[Migration]) -> Keys:
    """Return the indexes that migrations make, by their table and name."""
    keys: dict[tuple[str, str], Key] = {}
    for migration in migrations:
        for table, body in _TABLE.findall(bare(migration.sql)):
            for kind, name, columns in _KEY.findall(body):
                keys[table, name or PRIMARY] = Key(tuple(columns.split(", ")), unique=bool(kind))
            for column in _OWN.findall(body):
                keys[table, PRIMARY] = Key((column,), unique=True)
    return keys


def query(server: Server) -> str:
    """Return the statement that tells which indexes there are. Those that the planner must not use are of no use."""
    used = "ignored = 'NO'" if server.mariadb else "is_visible = 'YES'"
    return render(_QUERY, {"used": Expression(used)})


def found(rows: Iterable[Row]) -> Keys:
    """Return the rows of `query`."""
    keys: dict[tuple[str, str], Key] = {}
    for table, name, column, shared, used in rows:
        before = keys[table, name].columns if (table, name) in keys else ()
        keys[table, name] = Key((*before, column), unique=not shared, used=bool(used))
    return keys


def compared(wanted: Keys, there: Keys) -> list[str]:
    """Return what is wrong, in words."""
    wrong: list[str] = []
    for (table, name), key in wanted.items():
        match there.get((table, name)):
            case None:
                wrong.append(f"{name} on {table} is missing")
            case Key(used=False):
                wrong.append(f"{name} on {table} is kept from use (invisible, or ignored)")
            case Key(columns=columns, unique=unique) if (columns, unique) != (key.columns, key.unique):
                kind = "unique " if key.unique else ""
                wrong.append(f"{name} on {table} is not {kind}on ({', '.join(key.columns)})")
            case _:
                pass
    return wrong
