"""Finds the application: `module:name` to its queue or its worker. It starts neither."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import click

from creche import Queue, Task, Worker
from creche.cli._problems import Misuse, Problem, Trouble
from creche.errors import CrecheError
from creche.storage import mask

T = TypeVar("T")

APP = "CRECHE_APP"
_HERE = Path(__file__).parent
_WANTED = "a Queue, a Worker, or a function that returns one"


def load(target: str) -> Queue | Worker:
    """Return the queue or the worker that `module:name` names, from the working folder or `sys.path`.

    Raises:
        Misuse: there is no such thing.
        Trouble: the module fails when it is imported, or the function when it is called.
    """
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise Misuse(f"{target!r}: write TARGET as module:name, such as app:queue")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise Misuse(f"{target!r} names a file: write the module, {dotted}:{name}")
    module = _import(module_name)
    try:
        found = attrgetter(name)(module)
    except AttributeError:
        raise Misuse(f"{target!r}: the module has no {name!r}{_what_it_has(module)}") from None
    if isinstance(found, Task):
        raise Misuse(f"{target!r} is a task: name its queue{_what_it_has(module)}")
    if not isinstance(found, Queue | Worker) and callable(found) and not inspect.iscoroutinefunction(found):
        found = _guarded(target, found)
    if not isinstance(found, Queue | Worker):
        kind = "an async function" if inspect.iscoroutinefunction(found) else f"of type {type(found).__name__}"
        raise Misuse(f"{target!r} is {kind}; it must be {_WANTED}")
    return found


def load_queue(target: str) -> Queue:
    """Return the queue that `module:name` names; a worker's queue, if it names a worker."""
    found = load(target)
    return found.queue if isinstance(found, Worker) else found


def _import(name: str) -> ModuleType:
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if folder not in sys.path:
        sys.path.insert(0, folder)

    def load_module() -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and imports something that is not
            where = "in the working folder or on sys.path"
            raise Misuse(f"{name!r}: there is no module {error.name!r} {where}") from None

    return _guarded(name, load_module)


def _guarded(what: str, call: Callable[[], T]) -> T:
    """Call the application's code. Its settings may be wrong: one line; it may have a bug: its traceback, not ours."""
    try:
        return call()
    except Problem:
        raise
    except CrecheError as error:
        raise Trouble(f"{what}: {error}") from error
    except Exception as error:
        _show(error)
        raise Trouble(f"{what} failed: {type(error).__name__}: {error}") from error


def _show(error: Exception) -> None:
    lines = traceback.format_exception(type(error), error, _without_ours(error.__traceback__))
    click.echo(mask("".join(lines)), err=True, nl=False)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not (Path(file).parent == _HERE or file.startswith("<frozen importlib") or "importlib" in Path(file).parts):
            return trace
        trace = trace.tb_next
    return None


def _what_it_has(module: ModuleType) -> str:
    has: list[str] = []
    members: dict[str, Any] = vars(module)
    for name, member in members.items():
        if isinstance(member, Queue | Worker):
            has.append(f"{name} (a {type(member).__name__})")
    return f"; it has {', '.join(has)}" if has else ""
