"""The conformance suite: what `creche.abc.Storage` promises, as tests. It knows no storage by name.

The parts stand in modules of their own, one for each thing that a storage does.
"""

from __future__ import annotations

from creche.testing._conformance_callback_texts import CallbackTextConformance
from creche.testing._conformance_callbacks import CallbackConformance, CallbackWakeConformance
from creche.testing._conformance_cancellation import CancellationConformance, LifecycleConformance
from creche.testing._conformance_check import CheckConformance
from creche.testing._conformance_dedup import FingerprintConformance, KeyConformance, RefreshConformance
from creche.testing._conformance_delete import DeleteAtOnceConformance, DeleteConformance
from creche.testing._conformance_insert import InsertConformance
from creche.testing._conformance_joins import JoinConformance
from creche.testing._conformance_listen import ListenConformance, SilenceConformance
from creche.testing._conformance_maintain import PromoteConformance, PruneConformance, RecoverConformance
from creche.testing._conformance_pause import PauseAtOnceConformance, PauseConformance, PauseWakeConformance
from creche.testing._conformance_people import CancelConformance, RetryConformance, ViewConformance
from creche.testing._conformance_progress import ProgressConformance
from creche.testing._conformance_races import JoinAtOnceConformance
from creche.testing._conformance_reserve import ExtendConformance, ReserveConformance
from creche.testing._conformance_retention import RetentionAtOnceConformance, RetentionConformance
from creche.testing._conformance_settle import FencingConformance, SettleConformance
from creche.testing._conformance_shared import SharedConformance
from creche.testing._conformance_table import TableConformance
from creche.testing._conformance_transaction import HandleConformance, TransactionConformance
from creche.testing._conformance_twin import TwinConformance
from creche.testing._conformance_unkept import UnkeptConformance
from creche.testing._conformance_watch import WatchConformance, WatchWakeConformance
from creche.testing._conformance_workers import HoldingsConformance, WorkersAtOnceConformance, WorkersConformance

__all__ = ["StorageConformance"]


class StorageConformance(
    InsertConformance,
    KeyConformance,
    FingerprintConformance,
    RefreshConformance,
    ReserveConformance,
    ExtendConformance,
    ProgressConformance,
    SettleConformance,
    FencingConformance,
    TableConformance,
    RecoverConformance,
    PromoteConformance,
    PruneConformance,
    CancelConformance,
    RetryConformance,
    ViewConformance,
    ListenConformance,
    SilenceConformance,
    SharedConformance,
    CallbackConformance,
    CallbackTextConformance,
    CallbackWakeConformance,
    JoinConformance,
    JoinAtOnceConformance,
    WatchConformance,
    WatchWakeConformance,
    PauseConformance,
    PauseAtOnceConformance,
    PauseWakeConformance,
    DeleteConformance,
    DeleteAtOnceConformance,
    RetentionConformance,
    RetentionAtOnceConformance,
    UnkeptConformance,
    WorkersConformance,
    HoldingsConformance,
    WorkersAtOnceConformance,
    CheckConformance,
    TwinConformance,
    TransactionConformance,
    HandleConformance,
    CancellationConformance,
    LifecycleConformance,
):
    """Hold a storage to `creche.abc.Storage`, on asyncio and on trio.

    Say where an empty storage comes from; pytest does the rest::

        from creche.testing import StorageConformance

        class TestMyStorage(StorageConformance):
            def open_storage(self):
                return MyStorage(...)

    `open_storage` may be a coroutine function. If making a storage needs other fixtures, override the fixture
    `unopened` instead::

        class TestMyStorage(StorageConformance):
            @pytest.fixture
            def unopened(self, tmp_path):
                return MyStorage(tmp_path / "jobs.db")

    If several processes can use the storage, return a second one on the same jobs from `open_another(storage)`, or
    override the fixture `another`: without it, what two of them do to each other is skipped.

    The storage that is returned holds no job and is not open: the suite calls `migrate()` on it, opens and closes
    it. Nothing in the suite sleeps; it hands the time in as `now`.
    """
