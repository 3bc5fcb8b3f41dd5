"""creche: a persistent job queue on the database you already have, run by structured concurrency."""

from creche._attempt import Job, current_job
from creche._backoff import ExponentialBackoff
from creche._callbacks import Callback, Callbacks
from creche._calls import Call
from creche._job import Origin, Progress, Retention, Status
from creche._payload import JSONSerializer
from creche._queue import Queue
from creche._receipt import Receipt
from creche._tasks import AsyncTask, SyncTask, Task, Tasks
from creche._worker import Worker
from creche.errors import (
    CrecheError,
    Discard,
    JobCancelled,
    JobFailed,
    JobNotFound,
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
    "CrecheError",
    "Discard",
    "ExponentialBackoff",
    "JSONSerializer",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
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
    "Receipt",
    "ResultInvalid",
    "Retention",
    "Retry",
    "SchemaOutdated",
    "Snooze",
    "Status",
    "StorageUnavailable",
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
    "current_job",
]
