"""Fixtures that tests of the command line share."""

from __future__ import annotations

import io
import sys

import pytest

from cli.kit import Done, Run
from creche.cli import cli


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call it in this process; `click.testing.CliRunner` parts stdout from stderr in newer versions only."""

    def call(*words: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words], prog_name="creche")
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return call
