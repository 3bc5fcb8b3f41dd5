"""A handler's transaction on an SQLite file, as the contract has it: its writes, and the end of its attempt in it. Its
connection and its thread are those of `_sqlite_session.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from creche._job import Settlement
from creche.storage import _sqlite_rows as rows
from creche.storage._sqlite3 import Database, translated
from creche.storage._sqlite_session import Connection, Session
from creche.storage._sqlite_statements import Statements


class SQLiteTransaction:
    """A handler's transaction.

    Attributes:
        ended: jobs that are over when it is committed.
        woken: queues to be woken then.
    """

    def __init__(self, session: Session, database: Database, texts: Mapping[str, str]) -> None:
        self.ended: set[UUID] = set()
        self.woken: set[str] = set()
        self._session = session
        self._database = database
        self._texts = texts

    @property
    def connection(self) -> Connection:
        """What the handler writes through."""
        return self._session.connection

    async def settle(self, settlement: Settlement, *, now: datetime | None = None) -> bool:
        """See `Transaction.settle`.

        Raises:
            UsageError: the transaction is over already: it was committed or rolled back through `connection`, or
                SQLite rolled it back when a statement failed.
        """

        def work(connection: sqlite3.Connection) -> tuple[set[UUID], set[str], bool]:
            with translated(self._database.path):
                changed, woken = Statements(connection, self._texts).settle([settlement], rows.moment(now))
                return rows.ended(changed.values()), woken, bool(changed)

        ended, woken, held = await self._session.run(work)
        self.ended |= ended
        self.woken |= woken
        return held
