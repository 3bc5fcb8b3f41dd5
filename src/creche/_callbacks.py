"""What is to follow a job when it is over: callbacks, before they are recorded. It writes nothing and knows no queue.

A callback becomes a job of its own, written in the transaction that ends the job it follows: with attempts, back-off
and a dead letter of its own. So nothing that it does can touch that job, or another callback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, TypeAlias, cast, runtime_checkable

from attrs import evolve, field, frozen

from creche._job import CALLBACK_LIMIT, CHAIN_LIMIT, FollowUp, On
from creche.errors import OptionInvalid

When: TypeAlias = Literal["success", "failure", "always"]

_RULE: Final = "a sequence of callbacks, tasks, calls and job types, and of sequences of those: chains"
_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})


@runtime_checkable
class Followable(Protocol):
    """What can be a callback: a task, a task with options, a call."""

    def follow_up(self, on: On | None, arguments: Mapping[str, object]) -> FollowUp:
        """Return what to record, under a new id.

        Args:
            on: after which end; None leaves it to the task.
            arguments: values for parameters, by name; the first parameter that is left gets the job's result.
        """
        ...


def check_on(value: object) -> On | None:
    """Return the end that a callback is for, None if nobody says; or raise OptionInvalid."""
    try:
        return None if value is None else On(cast("str", value))
    except ValueError:
        raise OptionInvalid("on", value, f"one of {', '.join(On)}") from None


def _target(target: object) -> Followable | str:
    if not isinstance(target, str | Followable):
        raise OptionInvalid("callbacks", target, _RULE)
    return target


def _arguments(arguments: Any) -> Mapping[str, object]:
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in cast("Any", arguments)):
        raise OptionInvalid("arguments", cast("Any", arguments), "a mapping of parameters' names to values")
    return cast("Mapping[str, object]", arguments)


@frozen
class Callback:
    """What is to follow a job, where more has to be said than which task: `Callback(notify, on="failure")`.

    Args:
        target: a task or a registered callback, maybe with options (`notify.options(queue="mail")`), a call
            (`notify.call("done")`: it gets no result), or a job type whose handler is elsewhere.
        on: after which end: "success", "failure", or "always" (also one that was cancelled); None: as it was
            registered, "success" for a plain task.
        arguments: values for parameters of the target, by name. The first parameter that is left gets the job's result,
            None if it has none.
    """

    target: Followable | str = field(converter=_target)
    _on: When | None = field(alias="on", default=None, kw_only=True, validator=lambda _, __, value: check_on(value))
    arguments: Mapping[str, object] = field(converter=_arguments, default=_NOTHING, kw_only=True, repr=False)

    @property
    def on(self) -> On | None:
        """After which end it runs; None: as it was registered."""
        return check_on(self._on)


Link: TypeAlias = Followable | str | Callback
Callbacks: TypeAlias = Sequence[Link | Sequence[Link]]
Chain: TypeAlias = tuple[Callback, ...]


def check_callbacks(callbacks: object) -> tuple[Chain, ...]:
    """Return what `callbacks=` says, each as a chain, if only of one link; or raise OptionInvalid."""
    chains = tuple(_chain(each) for each in _sequence(callbacks))
    if len(chains) > CALLBACK_LIMIT:
        raise OptionInvalid("callbacks", f"{len(chains)} of them", f"at most {CALLBACK_LIMIT}")
    return chains


def _chain(value: object) -> Chain:
    if isinstance(value, str | Callback | Followable):
        return (_link(value),)
    chain = tuple(_link(each) for each in _sequence(value))
    if not 1 <= len(chain) <= CHAIN_LIMIT:
        raise OptionInvalid("callbacks", f"a chain of {len(chain)}", f"1 to {CHAIN_LIMIT} links")
    return chain


def _link(value: object) -> Callback:
    return value if isinstance(value, Callback) else Callback(cast("Any", value))


def _sequence(value: object) -> Sequence[object]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise OptionInvalid("callbacks", value, _RULE)
    return cast("Sequence[object]", value)


def record(chains: Iterable[Chain], follow_up: Callable[[Callback], FollowUp]) -> tuple[FollowUp, ...]:
    """Return callbacks as a job keeps them, under new ids that rise in the order given."""
    return tuple(_nest([follow_up(link) for link in chain]) for chain in chains)


def _nest(links: Sequence[FollowUp]) -> FollowUp:
    """Return the first link, with each of the others as the callback of the one before it."""
    *before, nested = links
    for link in reversed(before):
        nested = evolve(link, then=(nested,))
    return nested
