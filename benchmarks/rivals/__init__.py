"""creche beside what a user could pick instead, and beside the bare statements: interleaved, on one server."""

from benchmarks.rivals._command import rivals
from benchmarks.rivals._contestants import BARE

__all__ = ["BARE", "rivals"]
