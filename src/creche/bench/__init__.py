"""The measuring core: drains, dispatches, latencies, idle workers, memory; for `benchmarks/` and for people's own
databases. It judges nothing, and changes nothing but what its own queue leaves behind.
"""

from creche.bench._children import ChildFailed
from creche.bench._facts import Facts, gather
from creche.bench._figures import Report, Row, compared, gathered, number, quantile, ratio, read, table, write
from creche.bench._measure import (
    CRECHE,
    Contestant,
    Idleness,
    JobsMissing,
    Latency,
    Work,
    dispatched,
    drained,
    idle,
    latency,
    memory,
)
from creche.bench._meters import Meter, Reading, meter
from creche.bench._orders import CHUNK, QUEUE, Answer, Order

__all__ = [
    "CHUNK",
    "CRECHE",
    "QUEUE",
    "Answer",
    "ChildFailed",
    "Contestant",
    "Facts",
    "Idleness",
    "JobsMissing",
    "Latency",
    "Meter",
    "Order",
    "Reading",
    "Report",
    "Row",
    "Work",
    "compared",
    "dispatched",
    "drained",
    "gather",
    "gathered",
    "idle",
    "latency",
    "memory",
    "meter",
    "number",
    "quantile",
    "ratio",
    "read",
    "table",
    "write",
]
