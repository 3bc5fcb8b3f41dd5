"""What a process has open, and a place where nobody listens."""

from __future__ import annotations

import socket
from pathlib import Path


def open_files() -> set[str]:
    """The descriptors of this process."""
    return {file.name for file in Path("/proc/self/fd").iterdir()}


def closed_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
