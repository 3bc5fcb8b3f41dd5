"""creche: a persistent job queue on the database you already have, run by structured concurrency."""

from creche._attempt import Job, current_job
from creche._backoff import ExponentialBackoff
from creche._callbacks import Callback, Callbacks
from creche._calls import Call
from creche._job import (
    CancelReason,
    DeadLetter,
    JobRecord,
    Origin,
    Progress,
    QueueStats,
    Retention,
    Status,
    WorkerRecord,
)
from creche._limits import StopReason
from creche._payload import JSONSerializer
from creche._queue import Queue, Stats
from creche._receipt import Receipt
from creche._supervisor import Health, Summary
from creche._tasks import AsyncTask, SyncTask, Task, Tasks
from creche._worker import Worker
from creche.errors import (
    CrecheError,
    Discard,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobTimeout,
    LeaseLost,
    MissingExtra,
    NoCurrentJob,
    NotCommitted,
    OptionInvalid,
    PayloadInvalid,
    QueueNotOpen,
    ResultInvalid,
    Retry,
    SchemaOutdated,
    Snooze,
    StorageUnavailable,
    TaskInvalid,
    TasksNotIncluded,
    TypeTaken,
    UnknownDSN,
    UnknownType,
    WaitTimeout,
)

__all__ = [
    "AsyncTask",
    "Call",
    "Callback",
    "Callbacks",
    "CancelReason",
    "CrecheError",
    "DeadLetter",
    "Discard",
    "ExponentialBackoff",
    "Health",
    "JSONSerializer",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
    "JobRecord",
    "JobTimeout",
    "LeaseLost",
    "MissingExtra",
    "NoCurrentJob",
    "NotCommitted",
    "OptionInvalid",
    "Origin",
    "PayloadInvalid",
    "Progress",
    "Queue",
    "QueueNotOpen",
    "QueueStats",
    "Receipt",
    "ResultInvalid",
    "Retention",
    "Retry",
    "SchemaOutdated",
    "Snooze",
    "Stats",
    "Status",
    "StopReason",
    "StorageUnavailable",
    "Summary",
    "SyncTask",
    "Task",
    "TaskInvalid",
    "Tasks",
    "TasksNotIncluded",
    "TypeTaken",
    "UnknownDSN",
    "UnknownType",
    "WaitTimeout",
    "Worker",
    "WorkerRecord",
    "current_job",
]
