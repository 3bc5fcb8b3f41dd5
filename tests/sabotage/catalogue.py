"""All defects that are planted."""

from __future__ import annotations

from typing import Final

from sabotage.dispatch import DISPATCH
from sabotage.drivers import DRIVERS
from sabotage.engine import ENGINE
from sabotage.leases import LEASES

DEFECTS: Final = [*LEASES, *DISPATCH, *ENGINE, *DRIVERS]
