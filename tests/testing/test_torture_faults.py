"""What a torture breaks at once: in its second half two things, but never two of one place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from creche.testing.torture._conductor import Conductor, _Broken
from creche.testing.torture._faults import KINDS, Kind
from creche.testing.torture._plan import Plan
from creche.testing.torture._stage import Fault


def nothing() -> Fault:
    yield 0.0


def may_break(folder: Path, kind: Kind, *going: Kind) -> bool:
    conductor = Conductor(Plan(every=1.0), folder, print)
    conductor._going = [_Broken(number, each, nothing()) for number, each in enumerate(going)]
    return conductor._may_break(kind, now=100.0, last=0.0, halfway=True)


def test_two_things_break_at_once_but_not_of_one_place(tmp_path: Path) -> None:
    for kind in KINDS.values():
        for other in KINDS.values():
            assert may_break(tmp_path, kind, other) is (kind.place != other.place)


def test_three_things_never_do(tmp_path: Path) -> None:
    one, two, three, *_ = KINDS.values()
    assert not may_break(tmp_path, three, one, two)


def test_whatever_happens_to_a_server_itself_has_one_place() -> None:
    shared = {place: count for place, count in Counter(kind.place for kind in KINDS.values()).items() if count > 1}
    assert shared == {"the server": 4}
