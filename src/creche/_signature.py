"""A handler's parameters: how arguments become a checked payload, and a payload arguments again. It calls nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Final

import msgspec

from creche._attempt import Job
from creche._payload import Refused, refusal, to_plain
from creche.abc import Serializer
from creche.errors import PayloadInvalid, TaskInvalid


class Signature:
    """A handler's parameters: how arguments become a payload, and a payload arguments.

    Args:
        function: the handler.
        type: its job type, for messages.
    """

    def __init__(self, function: Callable[..., Any], type: str) -> None:
        self._type = type
        try:
            signature = inspect.signature(function, eval_str=True)
        except (NameError, TypeError, ValueError) as error:
            raise TaskInvalid(f"{function!r}: its signature can't be read: {error}") from error
        parameters = list(signature.parameters.values())
        self.takes_job: Final = bool(parameters) and parameters[0].annotation is Job
        if self.takes_job:
            del parameters[0]
        for parameter in parameters:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
                raise TaskInvalid(f"{function!r}: *{parameter.name}: a payload needs a name for each argument")
        self.returns: Final = Any if signature.return_annotation is signature.empty else signature.return_annotation
        self._signature = inspect.Signature(parameters)
        self._positional = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY]
        self._named = [each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY]
        try:
            self.arguments: Final = msgspec.defstruct(
                "Arguments", [_field(each) for each in parameters], kw_only=True, forbid_unknown_fields=True
            )
            msgspec.json.Decoder(self.arguments)
        except (NameError, TypeError, ValueError) as error:
            raise TaskInvalid(f"{function!r}: its annotations can't be a payload: {error}") from error

    def bind(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Return the checked arguments of a call, or raise PayloadInvalid."""
        try:
            bound = self._signature.bind(*arguments, **named)
        except TypeError as error:
            raise PayloadInvalid(str(error), type=self._type) from None
        return self.check(dict(bound.arguments))

    def check(self, payload: object) -> Any:
        """Return a payload as checked arguments, defaults filled in, or raise PayloadInvalid."""
        try:
            return msgspec.convert(to_plain(payload), self.arguments)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self._type) from None
        except msgspec.ValidationError as error:
            misfit = refusal(error)
            raise PayloadInvalid(misfit.reason, path=misfit.path, type=self._type) from None

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


def _field(parameter: inspect.Parameter) -> tuple[str, Any] | tuple[str, Any, Any]:
    annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
    if parameter.default is parameter.empty:
        return parameter.name, annotation
    default = parameter.default
    return parameter.name, annotation, msgspec.field(default_factory=lambda: deepcopy(default))
