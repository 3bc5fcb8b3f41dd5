"""What can be done here: `nox` checks everything, `nox -l` lists sessions, `nox -s tests-3.12 -- -k lease` runs one.

Sessions that run the tests install creche as a wheel: an editable install would hide what is missing from it.
"""

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests", "example"]
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
DEEP = ["-n", "2", "tests/storage/test_machines.py", "tests/model", "tests/simulation", "tests/fuzz"]
IN_PROCESSES = ["-n", "3", "--dist", "worksteal"]  # the whole suite waits for most of its time


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and who may import whom."""
    session.install("-e", ".[all]", "--group", "lint", "--group", "test")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Both type checkers, strict."""
    session.install("-e", ".[all]", "--group", "dev")
    session.run("mypy")
    session.run("pyright", "--pythonpath", f"{session.bin}/python")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole suite, on each Python from 3.11 that is installed."""
    session.install(".[all]", "--group", "test", "--group", "types")
    session.run("pytest", *(session.posargs or IN_PROCESSES))


@nox.session(python=PYTHONS[0], venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The suite on the oldest releases that pyproject.toml admits."""
    session.install("--resolution=lowest-direct", ".[all]", "--group", "test")
    session.run("pytest", *(session.posargs or IN_PROCESSES))


@nox.session
def sabotage(session: nox.Session) -> None:
    """Plants known defects, one at a time: a test has to fail for each. `-- 'look-then-*'` plants some of them."""
    session.install(".[all]", "--group", "test")
    session.run("python", "-m", "sabotage", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def simulate(session: nox.Session) -> None:
    """Hours of simulation: `nox -s simulate -- --hours 100000 --processes 2`; another time, another `--first`."""
    session.install(".[trio]", "--group", "test")
    session.run("python", "-m", "simulation", *(session.posargs or ["--hours", "1000"]), env={"PYTHONPATH": "tests"})


@nox.session
def torture(session: nox.Session) -> None:
    """Kills, freezes, cuts off, and counts what must not happen: `nox -s torture -- --minutes 10 --engine mariadb`."""
    session.install(".[all]", "--group", "test")
    session.run("python", "-m", "creche.testing.torture", *session.posargs)


@nox.session
def ha(session: nox.Session) -> None:
    """Clusters whose servers are killed, frozen and cut off under load; docs/reliability.md has more of it."""
    session.install(".[all]", "--group", "test")
    session.run("pytest", "tests/ha", *session.posargs)


@nox.session
def deep(session: nox.Session) -> None:
    """What gets better by being tried for hours: state machines, model, simulation, edges."""
    session.install(".[all]", "--group", "test")
    session.run("pytest", *(session.posargs or DEEP), env={"CRECHE_HYPOTHESIS_PROFILE": "deep"})


@nox.session
def example(session: nox.Session) -> None:
    """The main example, on the embedded SQLite that one gets by default."""
    session.install(".[all]")
    session.run("python", "examples/library_index.py")
