"""What is refused, when, and with which words: an error names the function, what was given and what is allowed."""

from __future__ import annotations

import decimal
import functools
import io
import itertools
import logging
import re
import socket
import threading
import traceback
from datetime import timedelta
from typing import Any

import pytest

from memo import MemoError, MemoryStore, OptionError, UnkeyableError, cache_aside


def fn(user_id: int, conn: Any = None) -> int:
    return user_id


HERE = f"{__name__}.fn"


def _id(value: Any) -> str:
    return re.sub(r" at 0x\w+", "", ascii(value))[:40]  # no address: names of tests are the same in every run


def test_the_errors_are_memos_and_pythons() -> None:
    with pytest.raises(OptionError) as caught:
        cache_aside(ttl=-1)(fn)
    assert isinstance(caught.value, MemoError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnkeyableError) as refused:
        cache_aside(fn)(object())  # type: ignore[arg-type]
    assert isinstance(refused.value, MemoError)
    assert isinstance(refused.value, TypeError)


# -- what cannot be decorated ------------------------------------------------------------------------------------------


def a_generator() -> Any:
    yield 1


async def an_async_generator() -> Any:
    yield 1


class Generating:
    def __call__(self) -> Any:
        yield 1


class AsyncGenerating:
    async def __call__(self) -> Any:
        yield 1


class Method:
    def generator(self) -> Any:
        yield 1


GENERATORS = [
    *(
        a_generator,
        an_async_generator,
        functools.partial(a_generator),
        functools.partial(functools.partial(a_generator)),
    ),
    functools.partial(Generating()),
    *(Generating(), AsyncGenerating(), Method().generator, staticmethod(a_generator), classmethod(Method.generator)),
]


@pytest.mark.parametrize("generator", GENERATORS, ids=_id)
def test_generators_are_refused_at_decoration(generator: Any) -> None:
    with pytest.raises(OptionError, match=r"generator.*only once.*return a list") as caught:
        cache_aside(generator)
    assert re.match(rf"^{__name__}\.\w+", str(caught.value))
    with pytest.raises(OptionError):
        cache_aside(ttl=5)(generator)


@pytest.mark.parametrize("thing", [60, "60", 1.5, timedelta(1), MemoryStore(), [fn], {}, True, property(fn)], ids=_id)
def test_what_cannot_be_called_is_refused_with_the_hint(thing: Any) -> None:
    with pytest.raises(OptionError, match=r"cache_aside decorates functions.*@cache_aside\(ttl=60\)"):
        cache_aside(thing)


@pytest.mark.parametrize("thing", [int, Method, type, OptionError, staticmethod(int)], ids=_id)
def test_classes_are_refused(thing: Any) -> None:
    with pytest.raises(OptionError, match="decorates functions and methods, not <class"):
        cache_aside(thing)


def test_a_partialmethod_is_refused() -> None:
    with pytest.raises(OptionError, match="decorates functions and methods"):
        cache_aside(functools.partialmethod(fn, 1))  # type: ignore[call-overload]


def test_a_function_without_a_signature_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^builtins\.max: its signature cannot be read.*wrap it in a def"):
        cache_aside(max)


def test_a_classmethod_without_a_parameter_for_the_class_is_refused() -> None:
    def nothing() -> None: ...

    with pytest.raises(OptionError, match="nothing: a classmethod has a first parameter"):
        cache_aside(classmethod(nothing))  # type: ignore[arg-type]


def test_unknown_options_are_pythons_errors() -> None:
    decorate: Any = cache_aside
    for wrong in (lambda: decorate(fn, 60), lambda: decorate(None, 60), lambda: decorate(tll=60)):
        with pytest.raises(TypeError):
            wrong()


# -- options out of range ----------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BAD_DURATIONS = [
    0,
    -1,
    0.0,
    -0.5,
    NAN,
    INF,
    -INF,
    True,
    False,
    "60",
    b"60",
    timedelta(0),
    timedelta(-1),
    10**400,
    1e12,
    [],
]
BAD: list[tuple[str, Any]] = [
    *(("ttl", value) for value in [*BAD_DURATIONS, decimal.Decimal(1)]),
    *(("wait_timeout", value) for value in [*BAD_DURATIONS, len]),
    *(("key", value) for value in (1, b"user", ["user"], True, 1.5, object())),
    *(
        ("key", value)
        for value in ("", "{nope}", "{}", "{0}", "{user_id", "user_id}", "{user_id!r}", "{user_id:{conn}}")
    ),
    *(("key", value) for value in ("{user_id}{conn}", "{user_id}1{conn}", "{user_id.}", "{user_id[}", "{user_id.a b}")),
    *(("ignore", value) for value in ("conn", None, 5, True, ("nope",), ("conn", "nope"), [1], b"conn", {"nope": 1})),
    *(("namespace", value) for value in ("", "a b", "a(", 5, b"a", True, "a*", "a\n")),
    *(("version", value) for value in ("", "a b", "(", object(), "1@2", (1, 2), "*")),
    *(
        ("tags", value)
        for value in ("users", None, 5, {"users"}, [""], [1], ("{nope}",), ("{user_id",), ("{}",), (None,))
    ),
    *(("cache_none", value) for value in (None, 1, 0, "yes", [])),
    *(("cache_if", value) for value in (1, "x", True, [], False)),
    *(("single_flight", value) for value in (True, False, "Fleet", "Process", "", 1)),
    *(
        ("store", value)
        for value in (
            None,
            5,
            True,
            MemoryStore,
            object(),
            [],
            "a b",
            "file:///no/folder/x",
            "file://x",
            "my-store",
            "7",
        )
    ),
    *(
        ("store", value)
        for value in ("memory://x", "memory:///x", "memory://?x=1", "memory://?max_size=0", "null://?a=1")
    ),
    *(("store", value) for value in ("memory://?max_size=x", "memory://?max_size=1.5", "memory://?default_ttl=0")),
    *(("store", value) for value in ("memory://?default_ttl=nan", "memory://?cleanup_interval=-1", "memory://#x")),
    *(("store", value) for value in ("memory:?max_size=5", "null:", "http://[x", "://", "memory://?max_size=", "\x00")),
]


@pytest.mark.parametrize(("option", "value"), BAD, ids=_id)
def test_an_option_out_of_range_is_refused_at_decoration(option: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        cache_aside(**{option: value})(fn)
    message = str(caught.value)
    assert message.startswith(f"{HERE}: ")
    assert option in message or (option == "store" and re.search("max_size|default_ttl|cleanup", message))
    assert len(message) > len(HERE) + len(option) + 10
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("option", ["ttl", "cache_if", "key"])
def test_a_coroutine_function_is_no_option(option: str) -> None:
    async def coroutine(result: Any) -> Any:
        return result

    with pytest.raises(OptionError, match=rf"{HERE}: {option}=.*plain function"):
        cache_aside(**{option: coroutine})(fn)


def test_options_that_contradict_each_other() -> None:
    for key in ("user:{user_id}", lambda user_id, conn: "k"):
        with pytest.raises(OptionError, match=f"{HERE}: .*ignore="):
            cache_aside(key=key, ignore=("conn",))(fn)
    with pytest.raises(OptionError, match=f"{HERE}: key='user:{{conn}}' uses .*conn.*ignore="):
        cache_aside(key="user:{conn}", ignore=("conn",))(fn)


def test_an_unknown_template_name_is_told_with_the_near_one() -> None:
    with pytest.raises(OptionError, match=rf"{HERE}: key='user:{{usr_id}}': .*did you mean {{user_id}}"):
        cache_aside(key="user:{usr_id}")(fn)
    with pytest.raises(OptionError, match=rf"{HERE}: tags='user:{{usr_id}}': .*did you mean {{user_id}}"):
        cache_aside(tags=("user:{usr_id}",))(fn)


def test_a_template_whose_values_could_run_together_is_told_what_to_do() -> None:
    with pytest.raises(OptionError, match=r"separator such as ':' between \{user_id\} and \{conn\}"):
        cache_aside(key="{user_id}{conn}")(fn)


def test_a_refused_decoration_leaves_the_function_alone() -> None:
    with pytest.raises(OptionError):
        cache_aside(ttl=0)(fn)
    assert not hasattr(fn, "invalidate")
    assert fn(1) == 1


def test_a_bad_value_from_a_ttl_callable_is_no_error_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    for value in (NAN, "60", True, [], 1e12):
        decorated: Any = cache_aside(ttl=lambda result, value=value: value)(lambda a: a)
        assert decorated(1) == 1
        assert decorated(1) == 1
        assert decorated.stats().hits == 0
        assert decorated.stats().errors == {"policy": 2}
        with pytest.raises(OptionError, match="the result of ttl"):
            decorated.set(5, 1)


# -- secrets -----------------------------------------------------------------------------------------------------------

PASSWORD = "hunter2"
SECRET_URLS: list[Any] = [
    *("etcd://:hunter2@host/0", "redis://user:hunter2@host:99999999/0", "rediss://user:hunter2@[::1]:x/0"),
    *(
        "memory://user:hunter2@host",
        "memory://hunter2",
        "null://user:hunter2@x",
        "memory:///hunter2",
        "memory://#hunter2",
    ),
    *("memory://?password=hunter2", "null://?password=hunter2", "redis://[:hunter2@x", "redis:hunter2", "://hunter2"),
    *(
        "redis://u:hunter2\u2100@h",
        "user:hunter2@host",
        "host/hunter2",
        "?hunter2",
        b"redis://:hunter2@host",
        "postgres://hunter2",
    ),
    *(
        ["redis://:hunter2@host"],
        ("redis://:hunter2@host",),
        {"url": "redis://:hunter2@host"},
        "memory://:hunter2@?max_size=5",
    ),
    *(
        "memory://u:hunter2@h?max_size=x",
        "memory://?max_size=5&password=hunter2",
        "ETCD://:hunter2@h",
        " etcd://:hunter2@h",
    ),
]


@pytest.mark.parametrize("url", SECRET_URLS, ids=_id)
def test_a_password_in_a_refused_url_is_never_shown(url: Any) -> None:
    with pytest.raises(OptionError) as caught:
        cache_aside(store=url)(fn)
    shown = "".join(traceback.format_exception(caught.value))
    # What pytest's own parametrisation put into this source line is not memo's doing; the error's texts are.
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(caught.value)
    assert PASSWORD not in shown


# -- arguments that cannot be part of a key ----------------------------------------------------------------------------


class Session:
    pass


class Printing:
    def __repr__(self) -> str:
        return "hunter2"


class Equal:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def cyclic() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


UNKEYABLE: dict[str, Any] = {
    "instance": Session,
    "object": object,
    "instance with a repr": Printing,
    "instance with an eq": Equal,
    "lambda": lambda: lambda: 1,
    "local function": lambda: functools.partial(print, end="").func.__class__ and (lambda x: x).__get__(1),
    "generator": a_generator,
    "iterator": lambda: iter([1]),
    "file": io.StringIO,
    "lock": threading.Lock,
    "re-entrant lock": threading.RLock,
    "event": threading.Event,
    "thread": threading.Thread,
    "logger": lambda: logging.LoggerAdapter(logging.getLogger("x"), {}),
    "map": lambda: map(len, []),
    "count": itertools.count,
    "memoryview": lambda: memoryview(b"x"),
    "cyclic list": cyclic,
    "list of instances": lambda: [1, [Session()]],
    "key of a dict": lambda: {Session(): 1},
    "value of a dict": lambda: {"a": {"b": Session()}},
    "partial of a lambda": lambda: functools.partial(lambda: 1),
    "frame": lambda: __import__("sys")._getframe(),
    "code": lambda: fn.__code__,
    "local class": lambda: type("Local", (), {}),
    "property": lambda: property(fn),
}


@pytest.mark.parametrize("kind", UNKEYABLE)
def test_an_argument_that_cannot_be_told_apart_is_refused_with_paste_ready_advice(kind: str) -> None:
    calls = []

    @cache_aside
    def load(user_id: int, conn: Any, *rest: Any, option: Any = None, **more: Any) -> int:
        calls.append(user_id)
        return user_id

    value = UNKEYABLE[kind]()
    forms: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("conn", (1, value), {}),
        ("conn", (1,), {"conn": value}),
        ("rest", (1, 2, value), {}),
        ("option", (1, 2), {"option": value}),
        ("other", (1, 2), {"other": value}),
    ]
    for name, args, kwargs in forms:
        for helper in (load, load.peek, load.invalidate, load.refresh, load.key_for, load.ttl_left):
            with pytest.raises(UnkeyableError) as caught:
                helper(*args, **kwargs)
            message = str(caught.value)
            assert f"{__name__}." in message
            assert f"load: the argument {name!r} cannot be part of a key: " in message
            assert f'ignore=("{name}",)' in message
            assert "key=" in message
            assert "hunter2" not in message
            assert caught.value.__suppress_context__
        with pytest.raises(UnkeyableError):
            load.set("value", *args, **kwargs)
    assert calls == []


def test_a_socket_is_refused_too() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(UnkeyableError, match=r'ignore=\("conn",\)'):
        cache_aside(fn)(1, one)


async def test_an_async_function_refuses_likewise_and_calls_nothing() -> None:
    @cache_aside
    async def load(conn: Any) -> int:
        raise AssertionError("called")

    for helper in (load, load.refresh):
        with pytest.raises(UnkeyableError, match=r'load: the argument \'conn\'.*ignore=\("conn",\)'):
            await helper(Session())
    for helper in (load.peek, load.invalidate, load.key_for, load.ttl_left):
        with pytest.raises(UnkeyableError):
            helper(Session())


def test_the_advice_works() -> None:
    load = cache_aside(ignore=("conn",))(fn)
    assert load(1, Session()) == load(1, Session()) == 1
    assert load.stats().hits == 1


def test_refused_calls_leave_nothing_behind() -> None:
    store = MemoryStore()
    load = cache_aside(store=store)(fn)
    for _ in range(100):
        with pytest.raises(UnkeyableError):
            load(Session())  # type: ignore[arg-type]
    assert len(store) == 0
    stats = load.stats()
    assert (stats.hits, stats.misses, stats.loads) == (0, 0, 0)


def test_a_tag_without_a_text_of_its_own_is_refused_before_the_call() -> None:
    calls = []

    @cache_aside(ignore=("conn",), tags=("conn:{conn}",))
    def load(conn: Any) -> int:
        calls.append(conn)
        return 1

    with pytest.raises(UnkeyableError, match=r"load: tags: \{conn\}"):
        load(Session())
    assert calls == []
