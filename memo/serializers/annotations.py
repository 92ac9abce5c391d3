"""From a function's return annotation to what msgspec decodes; this module decodes no payload and warns of nothing.

msgspec knows builtin types, dataclasses, attrs classes and its own Structs. What is added here: pydantic models, by
their own methods, so that pydantic itself is never imported; and unions that msgspec refuses, such as that of two
dataclasses, of which the member wins that would write the same again. Whether that was right is not for here to say.
"""

from __future__ import annotations

import collections.abc
import contextlib
import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Final, Union

import msgspec

__all__ = ["decoder_for", "encode_hook", "resolve_return_type", "return_annotation"]

_WHATEVER: Final = (Any, object, dict, list, typing.Dict, typing.List, inspect.Signature.empty)  # noqa: UP006
_AWAITABLE: Final = (collections.abc.Awaitable, collections.abc.Coroutine)


def resolve_return_type(function: Any, many: bool = False) -> Any:
    """Return the annotation of what a function returns, with all names resolved; Any if there is none.

    Of an `async def` it is what is awaited. What the function wraps is followed for the names, and so are partials,
    bound methods, classmethods and staticmethods.

    Args:
        function: what is decorated.
        many: what it returns are mappings, and the annotation of one value in them is asked for.

    Raises:
        Exception: a name in it means nothing where the function was defined, or it is a Mapping of nothing known.

    >>> def get_user(user_id: int) -> "dict[str, int]": ...
    >>> resolve_return_type(get_user)
    dict[str, int]
    """
    if isinstance(function, type):
        return function
    function = _written(function)
    innermost = inspect.unwrap(function)
    carrier = types.SimpleNamespace(__annotations__={"return": return_annotation(function)})
    namespace = getattr(innermost, "__globals__", {})
    resolved = typing.get_type_hints(carrier, namespace, _names(innermost), include_extras=True)["return"]
    if typing.get_origin(resolved) in _AWAITABLE:
        resolved = typing.get_args(resolved)[-1]
    if not many or resolved in _WHATEVER:
        return resolved
    parts = typing.get_args(_bare(resolved))
    return parts[1] if len(parts) == 2 else Any


def _bare(annotation: Any) -> Any:
    """Return what an annotation is of: without a name of its own, without Annotated, without None beside it."""
    if isinstance(annotation, typing.NewType):
        return _bare(annotation.__supertype__)
    if type(annotation).__name__ == "TypeAliasType":
        return _bare(annotation.__value__)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _bare(parts[0])
    if origin in (Union, types.UnionType):
        members = [part for part in parts if part is not type(None)]
        return _bare(members[0]) if len(members) == 1 else Any
    return annotation


def return_annotation(function: Any) -> Any:
    """Return the annotation as it is written, which may be text; Any if there is none."""
    return getattr(_written(function), "__annotations__", {}).get("return", Any)


def _written(function: Any) -> Any:
    """Return what has the annotations of a call of `function`."""
    while isinstance(function, (functools.partial, classmethod, staticmethod, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if inspect.isroutine(function) or hasattr(function, "__wrapped__"):
        return function
    return type(function).__call__


def _names(function: Any) -> dict[str, Any]:
    """Return the names that an annotation may use beside the module's: of its class, its closure and its type."""
    names: dict[str, Any] = {}
    place: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "").split(".")[:-1]:
        place = getattr(place, part, None)
        names.update(vars(place) if isinstance(place, type) else {})
    code = getattr(function, "__code__", None)
    for name, cell in zip(code.co_freevars if code else (), getattr(function, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # it is not assigned yet
            names[name] = cell.cell_contents
    return {**names, **{each.__name__: each for each in getattr(function, "__type_params__", ())}}


def decoder_for(annotation: Any, codec: Any) -> Callable[[Any], Any] | None:
    """Return what decodes payloads to an annotation; None: it says nothing.

    Args:
        annotation: with all names resolved.
        codec: msgspec.json or msgspec.msgpack.

    Raises:
        Exception: there is something in the annotation that cannot be decoded.
    """
    if annotation in _WHATEVER or isinstance(annotation, typing.TypeVar):
        return None
    return _decoder(annotation, codec)


def _decoder(annotation: Any, codec: Any) -> Callable[[Any], Any]:
    annotation = _prepared(annotation, codec)
    decoder = codec.Decoder(annotation, dec_hook=functools.partial(_decode_hook, codec))
    _check(msgspec.inspect.type_info(annotation), set())
    decode: Callable[[Any], Any] = decoder.decode
    return decode


def encode_hook(value: Any) -> Any:
    """Return what is written of a value that msgspec does not know: a pydantic model's own plain form."""
    if _is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True, warnings=False)
    if type(value).__module__ == "pydantic_core._pydantic_core":  # a URL in a model, when two are compared
        return str(value)
    raise NotImplementedError  # how msgspec is told that a hook does not know a type


def _decode_hook(codec: Any, kind: Any, plain: Any) -> Any:
    """Return what msgspec has decoded to plain values as what the annotation says."""
    if isinstance(kind, _Choice):
        return _chosen(kind, codec, plain)
    if kind is object:
        return plain
    return kind.model_validate_json(msgspec.json.encode(plain))  # as JSON, or a strict model would refuse its own dates


def _chosen(kind: _Choice, codec: Any, plain: Any) -> Any:
    """Return what the first member decodes that would write the same again, else the first that decodes it at all."""
    data, found = codec.encode(plain), []
    for decode in kind.decoders:
        with contextlib.suppress(Exception):  # a pydantic validator may raise anything
            value = decode(data)
            if codec.encode(value, enc_hook=encode_hook) == data:
                return value
            found.append(value)
    return found[0]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate_json")


class _Choice(type):
    """The type of a type that stands for a union: whatever a member was decoded to counts as an instance of it."""

    decoders: tuple[Callable[[Any], Any], ...]

    def __instancecheck__(cls, instance: object) -> bool:
        return True


def _prepared(annotation: Any, codec: Any) -> Any:
    """Return an annotation that msgspec takes, or the same one where there is nothing to do."""
    if isinstance(annotation, typing.TypeVar):
        return Any
    if isinstance(annotation, typing.NewType):
        return _prepared(annotation.__supertype__, codec)
    if type(annotation).__name__ == "TypeAliasType":  # that of typing, or of typing_extensions
        return _prepared(annotation.__value__, codec)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if not parts:
        return annotation
    if origin is typing.Literal:
        return _literal(annotation, parts, codec)
    if origin is typing.Annotated:
        return annotation.copy_with((_prepared(parts[0], codec),))
    made = tuple(part if part is ... else _prepared(part, codec) for part in parts)
    if origin in (Union, types.UnionType):
        return _union(made, codec)
    if origin is collections.abc.Iterable:  # which msgspec does not know, but for the list that most of these are
        return types.GenericAlias(list, made)
    if all(one is two for one, two in zip(parts, made, strict=True)):
        return annotation
    return annotation.copy_with(made) if hasattr(annotation, "copy_with") else types.GenericAlias(origin, made)


def _literal(annotation: Any, parts: tuple[Any, ...], codec: Any) -> Any:
    """Return a Literal that msgspec takes: of members of an Enum the Enum, since what is read is compared."""
    enums = dict.fromkeys(type(part) for part in parts if isinstance(part, enum.Enum))
    if not enums:
        return annotation
    others = tuple(part for part in parts if not isinstance(part, enum.Enum))
    return _union((*enums, typing.Literal[others]) if others else tuple(enums), codec)


def _union(members: tuple[Any, ...], codec: Any) -> Any:
    union: Any = Union[members]  # noqa: UP007 - members are a tuple
    try:
        codec.Decoder(union, dec_hook=_decode_hook)
    except TypeError:
        choice = _Choice("Choice", (), {})
        choice.decoders = tuple(_decoder(member, codec) for member in members if member is not type(None))
        return Union[choice, None] if type(None) in members else choice  # noqa: UP007
    return union


def _check(info: Any, seen: set[int]) -> None:
    """Raise TypeError if there is a type that neither msgspec nor this module can decode."""
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        if not (info.cls is object or isinstance(info.cls, _Choice) or _is_model(info.cls)):
            raise TypeError(f"{info.cls!r} cannot be decoded")
    elif isinstance(info, (tuple, list)):
        for each in info:
            _check(each, seen)
    elif isinstance(info, (msgspec.inspect.Type, msgspec.inspect.Field)):
        for name in info.__struct_fields__:
            _check(getattr(info, name), seen)
