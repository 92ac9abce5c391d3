"""From a function to what its results are read as: at the first payload, through all that it may be wrapped in."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import enum
import functools
import gc
import inspect
import logging
import subprocess
import sys
import types
import typing
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Generic, NewType, Optional, TypeVar

import msgspec
import pytest
import typing_extensions

from memo.serializers import JSONSerializer
from memo.serializers.annotations import decoder_for, resolve_return_type

from .kinds import Box, Failure, Model, Plain, Point, T, User, bound

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


def plain() -> list[User]: ...  # type: ignore[empty-body]


async def awaited() -> list[User]: ...  # type: ignore[empty-body]


def quoted() -> list[User]: ...  # type: ignore[empty-body]


def told_later() -> list[Later]: ...  # type: ignore[empty-body]


def unknown_parameter(unknown: Unknown) -> list[User]: ...  # type: ignore[empty-body]


def returns_awaitable() -> Awaitable[list[User]]: ...  # type: ignore[empty-body]


def returns_coroutine() -> Coroutine[Any, Any, list[User]]: ...  # type: ignore[empty-body]


def none() -> None: ...


def anything(): ...  # type: ignore[no-untyped-def]


@functools.wraps(plain)
def wrapper(*args: Any) -> Any: ...


class Later:
    pass


class Holder:
    class Inner:
        def own(self) -> Inner: ...  # type: ignore[empty-body]  # noqa: F821

    def method(self) -> list[User]: ...  # type: ignore[empty-body]

    def inner(self) -> list[Inner]: ...  # type: ignore[empty-body]

    @classmethod
    def made(cls) -> list[User]: ...  # type: ignore[empty-body]

    @staticmethod
    def static() -> list[User]: ...  # type: ignore[empty-body]


class Callee:
    returns: int  # an annotation that is not of the call

    def __call__(self) -> list[User]: ...  # type: ignore[empty-body]


def in_a_closure() -> Callable[[], Any]:
    @dataclasses.dataclass
    class Local:
        x: int

    def function() -> list[Local]:
        return [Local(1)]

    return function


def before_it_is_assigned() -> Callable[[], Any]:
    def function() -> list[User]:
        return [late]

    if not function:
        late = 1
    return function


@pytest.mark.parametrize(
    "function",
    [
        plain,
        awaited,
        unknown_parameter,
        returns_awaitable,
        returns_coroutine,
        wrapper,
        functools.partial(plain),
        functools.partial(functools.partial(wrapper), 1),
        functools.lru_cache(plain),
        Holder.method,
        Holder().method,
        Holder.made,
        vars(Holder)["made"],
        vars(Holder)["static"],
        Holder.static,
        Callee(),
        before_it_is_assigned(),
    ],
    ids=repr,
)
def test_the_annotation_is_found_through_whatever_wraps_the_function(function: Any) -> None:
    assert resolve_return_type(function) == list[User]


def test_names_are_found_where_the_function_was_written() -> None:
    assert resolve_return_type(told_later) == list[Later]
    assert resolve_return_type(Holder.inner) == list[Holder.Inner]
    assert resolve_return_type(Holder.Inner.own) is Holder.Inner
    (local,) = typing.get_args(resolve_return_type(in_a_closure()))
    assert local.__name__ == "Local"
    serializer = JSONSerializer().for_function(in_a_closure())
    assert [each.x for each in serializer.loads(b'[{"x": 2}]')] == [2]


def test_no_annotation_is_any() -> None:
    for function in (anything, len, print, lambda: 1, functools.partial(max)):
        assert resolve_return_type(function) in (Any, inspect.Signature.empty)
    assert resolve_return_type(none) is type(None)
    assert resolve_return_type(User) is User


def test_type_parameters_are_known_where_python_has_them() -> None:
    def function() -> list[P]: ...  # type: ignore[name-defined]  # noqa: F821

    function.__type_params__ = (TypeVar("P"),)
    assert decoder_for(resolve_return_type(function), msgspec.json) is not None


@pytest.mark.parametrize(
    "annotation",
    [
        dict[int, User],
        Mapping[int, User],
        Awaitable[dict[str, User]],
        Annotated[dict[int, User], "by id"],
        Awaitable[Annotated[dict[int, User], "by id"]],
        Optional[dict[int, User]],  # noqa: UP045
        dict[int, User] | None,
        NewType("Users", dict[int, User]),
        typing_extensions.TypeAliasType("Users", dict[int, User]),  # type: ignore[misc]
    ],
)
def test_of_a_function_of_many_ids_the_mappings_values_count(annotation: Any) -> None:
    serializer = bound("json", annotation, many=True)
    assert serializer.loads(b'{"id": 1}') == User(1)


@pytest.mark.parametrize("annotation", [..., Any, dict, Mapping, list[int], dict[int, User] | dict[str, User]])
def test_of_a_function_of_many_ids_a_mapping_of_nothing_known_is_no_annotation(annotation: Any) -> None:
    assert bound("json", annotation, many=True).loads(b'{"id": 1}') == {"id": 1}


def test_an_async_function_is_bound_to_what_is_awaited() -> None:
    async def function() -> User:
        return User(1)

    serializer = JSONSerializer().for_function(function)
    assert serializer.loads(serializer.dumps(asyncio.run(function()))) == User(1)


def unresolvable() -> Unknown: ...


class Cruel:
    def __class_getitem__(cls, item: Any) -> Any:
        raise ZeroDivisionError


Recursive = NewType("Recursive", "Recursive")  # type: ignore[misc]


UNDECODABLE: dict[str, tuple[Any, str]] = {
    "an unknown name": ("Unknown", "NameError"),
    "no name": ("1 +", "SyntaxError"),
    "an annotation that raises": ("Cruel[0]", "ZeroDivisionError"),
    "a class of no known kind": (Plain, "Plain"),
    "a class of no known kind inside": (dict[str, list[Plain | None]], "Plain"),
    "a class of no known kind in a field": (dataclasses.make_dataclass("Data", [("x", Plain)]), "Plain"),
    "a deque": (collections.deque[int], "deque"),
    "a complex": (complex, "complex"),
    "an enum of mixed values": (enum.Enum("Mixed", {"A": 1, "B": "b"}), "Mixed"),
    "a union of unknown classes": (Plain | User, "Plain"),
    "Never": (typing.NoReturn, "NoReturn"),
}


@pytest.mark.parametrize(("annotation", "named"), UNDECODABLE.values(), ids=UNDECODABLE)
def test_what_cannot_be_resolved_or_decoded_counts_as_none_with_one_warning(
    annotation: Any, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    def function() -> None: ...

    function.__annotations__ = {"return": annotation}
    serializer = JSONSerializer().for_function(function)
    assert caplog.records == []  # it is looked at with the first payload
    for _ in range(3):
        assert serializer.loads(serializer.dumps({"a": [1]})) == {"a": [1]}
    (record,) = caplog.records
    assert record.name == "memo"
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert function.__qualname__ in message
    assert named in message
    assert len(message) < 700


def test_a_partial_too_has_a_name_in_the_warning(caplog: pytest.LogCaptureFixture) -> None:
    JSONSerializer().for_function(functools.partial(unresolvable)).dumps(1)
    assert "unresolvable: its return annotation 'Unknown' counts as none" in caplog.text


def test_what_can_be_decoded_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for annotation in [User, list[Model | None], User | Failure, object, list[object], Box[T], T, None]:
        bound("json", annotation).loads(b"null") if annotation in (object, T, None) else bound("json", annotation)
        decoder_for(annotation if annotation is not None else type(None), msgspec.json)
    assert caplog.records == []


def test_the_annotation_is_resolved_at_the_first_payload() -> None:
    module = types.ModuleType("being_written")
    exec("from __future__ import annotations\ndef get() -> list[Soon]: ...\n", vars(module))
    serializer = JSONSerializer().for_function(module.get)
    module.Soon = User  # type: ignore[attr-defined]
    assert serializer.loads(b'[{"id": 1}]') == [User(1)]


def test_a_bound_serializer_leaves_the_one_that_it_was_made_of_as_it_is() -> None:
    serializer = JSONSerializer(verify=False, max_size=1000)
    serializer.loads(b"1")  # decoding is settled
    typed = serializer.for_function(plain)
    assert typed.loads(b'[{"id": 1}]') == [User(1)]
    assert serializer.loads(b'[{"id": 1}]') == [{"id": 1}]
    assert (typed.verify, typed.max_size) == (False, 1000)
    assert typed.for_function(anything).loads(b"[]") == []


@pytest.mark.parametrize(
    ("annotation", "payload", "expected"),
    [
        (Annotated[Annotated[User, 1] | Failure, 2], b'{"reason":"x"}', Failure("x")),
        (list[NewType("Id", User | Failure)], b'[{"reason":"x"}]', [Failure("x")]),  # type: ignore[misc]
        (typing.List[typing.Union[User, Failure]], b'[{"reason":"x"}]', [Failure("x")]),  # noqa: UP006, UP007
        (tuple[User | Failure, ...], b'[{"reason":"x"}]', (Failure("x"),)),
        (Box[User | Failure], b'{"content":{"reason":"x"}}', Box(Failure("x"))),
        (dict[str, User | Failure] | None, b"null", None),
        (Point | Failure | None, b"null", None),
    ],
    ids=str,
)
def test_unions_that_msgspec_refuses_are_decoded_anywhere(annotation: Any, payload: bytes, expected: Any) -> None:
    assert bound("json", annotation).loads(payload) == expected


def test_a_type_alias_is_what_it_stands_for() -> None:
    alias = typing_extensions.TypeAliasType("Users", list[User])
    assert bound("json", alias).loads(b'[{"id": 1}]') == [User(1)]


def test_a_function_is_not_kept_alive_by_more_than_its_serializer() -> None:
    def function() -> list[User]: ...  # type: ignore[empty-body]

    serializer = JSONSerializer().for_function(function)
    serializer.dumps([User(1)])
    alive = weakref.ref(function)
    del function, serializer
    gc.collect()
    assert alive() is None


def test_libraries_of_models_are_imported_by_their_users_only() -> None:
    program = (
        "import sys, memo\nfrom memo.serializers import *\n"
        "def f() -> list[int]: ...\n"
        "for name in NAMES: s = checked_serializer(name).for_function(f); s.loads(s.dumps([1]))\n"
        "print({'pydantic', 'attr', 'attrs'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


class Generic_(Generic[T]):
    pass


def test_a_generic_class_of_no_known_kind_counts_as_none(caplog: pytest.LogCaptureFixture) -> None:
    assert bound("json", Generic_[int]).loads(b"[1]") == [1]
    assert "Generic_" in caplog.text
