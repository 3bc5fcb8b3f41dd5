"""A deadline around every call to a storage: an answer, an error, or StorageUnavailable in time."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from creche._patience import answered_within
from creche.errors import StorageUnavailable

pytestmark = pytest.mark.anyio


async def test_what_is_not_answered_in_time_is_unavailable() -> None:
    late = pytest.raises(StorageUnavailable, match=r"no answer to a settle in 0.01 s")
    with late, answered_within(0.01, "a settle"):
        await anyio.sleep_forever()


async def test_an_adapter_that_times_out_by_itself_is_unavailable_too() -> None:
    with pytest.raises(StorageUnavailable) as caught, answered_within(10, "a settle"):
        raise TimeoutError("the driver's own")
    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_other_errors_and_answers_go_through() -> None:
    with answered_within(10, "a settle"):
        await anyio.lowlevel.checkpoint()
    with pytest.raises(ZeroDivisionError), answered_within(10, "a settle"):
        raise ZeroDivisionError


async def test_a_cancellation_from_outside_stays_one() -> None:
    with anyio.move_on_after(0.01) as outside, answered_within(10, "a settle"):
        await anyio.sleep_forever()
    assert outside.cancelled_caught
