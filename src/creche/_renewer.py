"""The renewer: keeps leases alive and ends what it cannot keep. It runs no job and settles none.

What handlers say about their progress is written by the way: with a renewal, of which there is one more where
somebody has news.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import anyio
from anyio import CancelScope, create_task_group

from creche._job import Lease, Progress
from creche._leases import Held, Holdings, Verdict
from creche._patience import Patience, answered_within
from creche.abc import Storage
from creche.errors import StatementRejected, StorageError

_log = logging.getLogger("creche")

# Seconds between two writes of progress: a bar moves smoothly enough, and a handler may say as much as it likes.
PROGRESS_PAUSE: Final = 1.0

_PAUSE: Final = 0.1  # seconds in which cancellations that are asked for one by one are learned of together


class Renewer:
    """Pushes all deadlines out together, in one statement, three times per lease.

    Args:
        storage: where the leases are.
        holdings: which they are.
        lease: seconds that each renewal asks for.
        margin: seconds by which our own deadline comes before the database's.
        renewed: called with each job whose lease was extended.
        progressed: called with each job whose progress was written.
    """

    def __init__(
        self,
        storage: Storage,
        holdings: Holdings,
        *,
        lease: float,
        margin: float,
        renewed: Callable[[Held], None],
        progressed: Callable[[Held, Progress], None],
    ) -> None:
        self._storage = storage
        self._holdings = holdings
        self._lease = lease
        self._margin = margin
        self._renewed = renewed
        self._progressed = progressed
        self._news = anyio.Event()
        self._asked = anyio.Event()
        self._reporting: set[Lease] = set()  # whose progress is on its way
        self._scope = CancelScope(shield=True)

    def stop(self) -> None:
        """The last lease was settled: end."""
        self._scope.cancel()

    def report(self, held: Held, progress: Progress) -> None:
        """Have a job's progress written soon; of several reports, the last."""
        held.progress = progress
        self._news.set()

    def hurry(self) -> None:
        """Renew now: somebody may have asked for the cancellation of a job that is held."""
        if self._holdings:
            self._asked.set()

    async def run(self) -> None:
        """Renew until stopped. Shielded: jobs that are being settled still need their leases."""
        with self._scope:
            async with create_task_group() as tasks:
                tasks.start_soon(self._write_news, name="progress")
                tasks.start_soon(self._holdings.end_what_runs_out, name="deadlines")
                await self._renew_regularly()

    async def _renew_regularly(self) -> None:
        patience = Patience("renewer", shortest=self._lease / 30, longest=self._lease / 10)
        while True:
            await self._holdings.wait_for_a_lease()  # an idle worker has nothing to renew, and no reason to wake up
            with anyio.move_on_after(self._lease / 3):
                await self._asked.wait()
            self._asked = anyio.Event()
            await self._renew_all(patience)
            await anyio.sleep(min(_PAUSE, self._lease / 30))

    async def _write_news(self) -> None:
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            if self._reporting:  # a regular renewal took some along, which is older and must not be written later
                self._news.set()
            elif held := [held for held in self._holdings if held.progress is not None and not held.expired]:
                try:
                    await self._renew(held)
                except StorageError:
                    self._news.set()  # the regular renewals tell of it
            await anyio.sleep(PROGRESS_PAUSE)

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
        news = {each.lease: each.progress for each in held if each.progress and each.lease not in self._reporting}
        self._reporting |= news.keys()
        try:
            with answered_within(self._lease / 3, "a renewal"):
                extension = await self._storage.extend([each.lease for each in held], self._lease, progress=news)
        except StatementRejected as error:
            if not news:
                raise
            _log.warning("what handlers said of their progress is dropped: %s", error)
            for each in held:
                each.progress = None
            await self._renew(held)  # without it: what one handler says must cost nobody a lease
            return
        finally:
            self._reporting -= news.keys()
        for each in held:
            if each.lease in extension.lost:
                if self._holdings.get(each.lease) is each and not each.settling:  # it may be settled while we ask
                    each.revoke(Verdict.LOST)
                continue
            each.postpone(sent + self._lease - self._margin)
            if (
                each.lease in extension.cancel_requested and not each.settling
            ):  # a commit is not cut off: ask again later
                each.revoke(Verdict.ASKED)
            self._renewed(each)
            if (written := news.get(each.lease)) is not None:
                if each.progress is written:
                    each.progress = None
                self._progressed(each, written)
