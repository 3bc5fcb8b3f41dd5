"""A handler's parameters: how arguments become a checked payload, and a payload arguments again. It calls nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Final, Never, NoReturn, Optional, cast

import attrs
import msgspec
from msgspec.inspect import CustomType, DataclassType, Field, Type, type_info

from creche._attempt import Job
from creche._payload import JSONSerializer, Refused, is_simple, refusal, to_plain
from creche.abc import Serializer
from creche.errors import PayloadInvalid, TaskInvalid

_POSITIONAL: Final = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
_PLAIN: Final = (dict, list, str, int, float, bool, type(None))  # what JSON decodes to by itself


class Signature:
    """A handler's parameters: how arguments become a payload, and a payload arguments.

    Args:
        function: the handler.
        type: its job type, for messages.
        serializer: what its arguments will pass through; None if that isn't known yet.
    """

    def __init__(self, function: Callable[..., Any], type: str, serializer: Serializer | None = None) -> None:
        self._type = type
        try:
            signature = inspect.signature(function, eval_str=True)
        except Exception as error:  # an annotation is code: it may raise anything
            raise TaskInvalid(f"{function!r}: its signature can't be read: {error}") from error
        parameters = list(signature.parameters.values())
        first = parameters[0] if parameters else None
        self.takes_job: Final = first is not None and first.annotation is Job and first.kind in _POSITIONAL
        if self.takes_job:
            del parameters[0]
        for parameter in parameters:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
                raise TaskInvalid(f"{function!r}: *{parameter.name}: a payload needs a name for each argument")
        self.returns: Final = _returns(signature)
        self._signature = inspect.Signature(parameters)
        self._in_order = [each.name for each in parameters if each.kind in _POSITIONAL]
        self._required = {each.name for each in parameters if each.default is each.empty}
        self._positional = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY]
        self._named = [each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY]
        self._by_name = frozenset(self._named)
        try:
            self.arguments: Final = msgspec.defstruct(
                "Arguments", [_field(each) for each in parameters], kw_only=True, forbid_unknown_fields=True
            )
            msgspec.json.Decoder(self.arguments)
            accepted = [(each, type_info(_annotation(each))) for each in parameters]
        except Exception as error:
            raise TaskInvalid(f"{function!r}: its annotations can't be a payload: {error}") from error
        try:
            msgspec.json.Decoder(self.returns)
            answered = type_info(self.returns)
        except Exception as error:
            raise TaskInvalid(f"{function!r}: what it returns can't be read back from JSON: {error}") from error
        for parameter, info in accepted:
            if reason := _misfit(info, serializer) or _misfit_default(parameter, info, serializer):
                raise TaskInvalid(f"{function!r}: {parameter.name}: {reason}")
        if reason := _private(answered, serializer):
            raise TaskInvalid(f"{function!r}: what it returns: {reason}")

    def bind(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Return the checked arguments of a call, or raise PayloadInvalid."""
        given = dict(zip(self._in_order, arguments, strict=False))
        once = len(given) == len(arguments) and given.keys().isdisjoint(named)
        if once and self._by_name.issuperset(named):
            given.update(named)
            if self._required <= given.keys():
                return self.check(given)
        return self.bind_as_python(arguments, named)

    def bind_as_python(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Do the same as Python does it: slowly, and it knows what to say about arguments that don't fit."""
        try:
            bound = self._signature.bind(*arguments, **named)
        except TypeError as error:
            raise PayloadInvalid(str(error), type=self._type) from None
        return self.check(dict(bound.arguments))

    def check(self, payload: Any) -> Any:
        """Return a payload as checked arguments, defaults filled in, or raise PayloadInvalid."""
        try:
            plain = payload if payload.__class__ is dict and is_simple(payload) else to_plain(payload)
            return msgspec.convert(plain, self.arguments, str_keys=True)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self._type) from None
        except msgspec.ValidationError as error:
            misfit = refusal(error)
            raise PayloadInvalid(misfit.reason, path=misfit.path, type=self._type) from None

    def plain(self, arguments: Any) -> Any:
        """Return checked arguments as plain values by their names, or raise PayloadInvalid."""
        named = msgspec.structs.asdict(arguments)
        if is_simple(named):
            return named
        try:
            return to_plain(arguments)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self._type) from None

    @property
    def takes_no_result(self) -> bool:
        """Whether a callback can do without a result: its first parameter takes None, or there is none."""
        first = next(iter(msgspec.structs.fields(self.arguments)), None)
        try:
            return first is None or msgspec.convert(None, first.type) is None
        except msgspec.ValidationError:
            return False

    def around_result(self, given: Mapping[str, object], *, nullable: bool) -> tuple[dict[str, Any], str | None]:
        """Return the checked arguments of a callback, and the parameter that is left for the result: the first one that
        is not given; None if all are.

        Args:
            given: by name.
            nullable: whether there may be no result, so that the parameter gets None.

        Raises:
            PayloadInvalid: they don't fit, or others are left that have no default.
        """
        parameters = {each.encode_name: each for each in msgspec.structs.fields(self.arguments)}
        left = [name for name in parameters if name not in given]
        hole = left.pop(0) if left else None
        for name in given:
            if name not in parameters:
                raise PayloadInvalid("no such parameter", path=f"$.{name}", type=self._type)
        for name in left:
            if parameters[name].required:
                reason = "nothing is given for it: a callback gets the result, the rest is for `arguments` or defaults"
                raise PayloadInvalid(reason, path=f"$.{name}", type=self._type)
        if hole is not None and nullable:
            reason = "it must take None as well: there is no result where the job failed, or was cancelled"
            self._fits(None, parameters[hole].type, hole, reason)
        return {name: self._fits(value, parameters[name].type, name) for name, value in given.items()}, hole

    def _fits(self, value: object, annotation: Any, name: str, reason: str = "") -> Any:
        try:
            return msgspec.convert(to_plain(value), annotation, str_keys=True)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=f"$.{name}{refused.path[1:]}", type=self._type) from None
        except msgspec.ValidationError as error:
            misfit = refusal(error)
            raise PayloadInvalid(reason or misfit.reason, path=f"$.{name}{misfit.path[1:]}", type=self._type) from None

    def decode(self, payload: bytes, serializer: Serializer) -> tuple[list[Any], dict[str, Any]]:
        """Return a stored payload as positional and named arguments, or raise PayloadInvalid."""
        try:
            arguments = serializer.decode(payload, self.arguments)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self._type) from None
        return (
            [getattr(arguments, name) for name in self._positional],
            {name: getattr(arguments, name) for name in self._named},
        )


# --- what a signature may hold ----------------------------------------------------------------------


def _returns(signature: inspect.Signature) -> Any:
    returns = signature.return_annotation
    return Any if any(returns is each for each in (signature.empty, NoReturn, Never)) else returns


def _annotation(parameter: inspect.Parameter) -> Any:
    if parameter.annotation is parameter.empty:
        return Any
    if parameter.default is None:
        return Optional[parameter.annotation]  # noqa: UP045 - `None | None` is no annotation
    return parameter.annotation


def _field(parameter: inspect.Parameter) -> tuple[str, Any] | tuple[str, Any, Any]:
    annotation = _annotation(parameter)
    if parameter.default is parameter.empty:
        return parameter.name, annotation
    default = _shaped(parameter.default, annotation)
    return parameter.name, annotation, msgspec.field(default_factory=lambda: deepcopy(default))


def _shaped(default: Any, annotation: Any) -> Any:
    """Return a default as an argument of that value would come out: for `x: float = 1`, that is 1.0.

    Or `f()` and `f(1)` would be two different pieces of work.
    """
    try:
        return default if annotation is Any else msgspec.convert(to_plain(default), annotation, str_keys=True)
    except (Refused, msgspec.ValidationError, TypeError):
        return default  # said elsewhere, or the business of a serializer of its own


def _misfit(info: Type, serializer: Serializer | None) -> str:
    """Return why arguments of this type can't be sent; an empty string if they can."""
    for cls in _custom(info):
        if cls is Job:
            return "a `Job` is no argument: put it first, as `job: Job`"
        if type(serializer) is JSONSerializer:
            return f"{cls!r} has no form in JSON: send a string or a dataclass, or use a serializer of your own"
    return _private(info, serializer)


def _private(info: Type, serializer: Serializer | None) -> str:
    if serializer is not None and type(serializer) is not JSONSerializer:
        return ""
    for each in _walk(info):
        if isinstance(each, DataclassType) and attrs.has(each.cls):
            names = [field.name for field in each.fields if field.name.startswith("_")]
            if names:
                return (
                    f"{each.cls!r} has private fields ({', '.join(names)}), which msgspec leaves out: make them public"
                )
    return ""


def _misfit_default(parameter: inspect.Parameter, info: Type, serializer: Serializer | None) -> str:
    if parameter.default is parameter.empty or (type(serializer) is not JSONSerializer and _custom(info)):
        return ""
    try:
        msgspec.convert(to_plain(parameter.default), _annotation(parameter), str_keys=True)
    except (Refused, msgspec.ValidationError) as error:
        return f"its default {parameter.default!r} doesn't fit its annotation: {error}"
    return ""


def _custom(info: Type) -> list[type]:
    """Return the classes that JSON has no form for, and that no plain value is an instance of."""
    return [each.cls for each in _walk(info) if isinstance(each, CustomType) and not _takes_plain(each.cls)]


def _takes_plain(cls: type) -> bool:
    try:
        return any(issubclass(plain, cls) for plain in _PLAIN)
    except TypeError:  # a protocol that can't be asked
        return False


def _walk(info: Type) -> Iterator[Type]:
    """Yield a type and whatever it is made of, each once: a type may hold itself."""
    seen: set[int] = set()
    waiting = [info]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        for name in each.__struct_fields__:
            part: object = getattr(each, name)
            for inner in cast("tuple[object, ...]", part) if isinstance(part, tuple) else (part,):
                if isinstance(inner, Field):
                    waiting.append(inner.type)
                elif isinstance(inner, Type):
                    waiting.append(inner)
