"""The renewer: keeps leases alive and ends what it cannot keep. It runs no job and settles none."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio import CancelScope

from creche._leases import Held, Holdings, Verdict
from creche._patience import Patience, answered_within
from creche.abc import Storage
from creche.errors import StorageError


class Renewer:
    """Pushes all deadlines out together, in one statement, three times per lease.

    Args:
        storage: where the leases are.
        holdings: which they are.
        lease: seconds that each renewal asks for.
        margin: seconds by which our own deadline comes before the database's.
        renewed: called with each job whose lease was extended.
    """

    def __init__(
        self,
        storage: Storage,
        holdings: Holdings,
        *,
        lease: float,
        margin: float,
        renewed: Callable[[Held], None],
    ) -> None:
        self._storage = storage
        self._holdings = holdings
        self._lease = lease
        self._margin = margin
        self._renewed = renewed
        self._scope = CancelScope(shield=True)

    def stop(self) -> None:
        """The last lease was settled: end."""
        self._scope.cancel()

    async def run(self) -> None:
        """Renew until stopped. Shielded: jobs that are being settled still need their leases."""
        patience = Patience("renewer", shortest=self._lease / 30, longest=self._lease / 10)
        with self._scope:
            while True:
                await anyio.sleep(self._lease / 3)
                await self._renew_all(patience)

    async def _renew_all(self, patience: Patience) -> None:
        """Renew once; what can't be reached is tried again while something is still held."""
        while held := [held for held in self._holdings if not held.expired]:
            try:
                await self._renew(held)
            except StorageError as error:
                # Nothing else has to be done: each scope's own deadline ends what we can't hold.
                await patience.after(error)
            else:
                patience.success()
                return

    async def _renew(self, held: list[Held]) -> None:
        sent = anyio.current_time()  # before the statement: the database counts from later
        with answered_within(self._lease / 3, "a renewal"):
            extension = await self._storage.extend([each.lease for each in held], self._lease)
        for each in held:
            if each.lease in extension.lost:
                if self._holdings.get(each.lease) is each:  # it may have been settled while we asked
                    each.revoke(Verdict.LOST)
                continue
            each.postpone(sent + self._lease - self._margin)
            if each.lease in extension.cancel_requested:
                each.revoke(Verdict.ASKED)
            self._renewed(each)
