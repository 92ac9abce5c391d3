"""From a call to its key: what a key depends on, what it does not, and how its two spellings translate."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memo import MISSING, MemoryStore, OptionError, UnkeyableError, cache_aside
from memo.keys import CallKeys, Shape, describe, is_plain


def calls_of(**options: Any) -> Any:
    """A cached function of anything that counts its calls, and returns what it was called with."""

    @cache_aside(namespace="ns", **options)
    def fn(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return args, kwargs

    calls: list[Any] = []
    fn.calls = calls
    return fn


# -- equal calls, through real calls -----------------------------------------------------------------------------------

# fmt: off
DISTINCT: tuple[Any, ...] = (
    0.0, -0.0, float("nan"), 1, True, 1.0, "1", b"1", 0, False, None, "None", "", b"", (), [], {}, set(), frozenset(),
    "nan", 1.5, (1,), [1], {1}, {1: 1}, (1.0,), (True,), "(1,)", complex(1), "é", "e\u0301", "\ud800", "<default>",
)
# fmt: on


def test_arguments_of_other_types_or_values_never_share() -> None:
    fn = calls_of()
    for value in DISTINCT:
        fn(value)
    assert len(fn.calls) == len(DISTINCT)
    for value in DISTINCT:
        (given,), _ = fn(value)
        assert type(given) is type(value)
        assert repr(given) == repr(value)
    assert len(fn.calls) == len(DISTINCT)
    assert len({fn.key_for(value) for value in DISTINCT}) == len(DISTINCT)


def test_all_nans_are_one_argument() -> None:
    fn = calls_of()
    fn(float("nan"))
    fn(float("nan"))
    fn(float("inf") - float("inf"))
    assert len(fn.calls) == 1


def test_equal_containers_are_one_argument_however_they_were_made() -> None:
    fn = calls_of()
    fn({"a": [1, {2, 3}]}, b={"x": 1, "y": 2})
    fn({"a": [1, {3, 2}]}, b={"y": 2, "x": 1})
    assert len(fn.calls) == 1


def test_the_order_of_keyword_arguments_does_not_count() -> None:
    fn = calls_of()
    fn(b=1, a=2)
    fn(a=2, b=1)
    assert len(fn.calls) == 1
    assert fn.key_for(b=1, a=2) == "ns(a=2,b=1)"


def test_a_keyword_that_is_no_identifier_cannot_pass_for_others() -> None:
    fn = calls_of()
    forms: list[dict[str, Any]] = [
        {"a": 1, "b": 2},
        {"a=1,b": 2},
        {"a": "1,b=2"},
        {"é": 1},
        {"'é'": 1},
        {"": 1},
        {"x y": 1},
    ]
    for form in forms:
        fn(**form)
    assert len(fn.calls) == len(forms)
    assert len({fn.key_for(**form) for form in forms}) == len(forms)


scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats()


@given(st.lists(st.recursive(scalars, st.lists, max_leaves=4)))
def test_two_calls_share_exactly_if_they_are_equal_and_of_equal_types(values: list[Any]) -> None:
    fn = calls_of()
    for value in values:
        fn(value)
    assert len(fn.calls) == len({f"{type(value)}{value!r}" for value in values})


def test_the_key_is_taken_before_the_call() -> None:
    calls = []

    @cache_aside
    def append(items: list[int]) -> int:
        calls.append(list(items))
        items.append(0)
        return len(items)

    assert append([1]) == 2
    assert append([1]) == 2
    assert calls == [[1]]
    assert append.peek([1, 0]) is MISSING
    assert append([1, 0]) == 3


class Hostile:
    """Equal to everything, with the hash of 1, and of every class."""

    def __init__(self, lie: type = int) -> None:
        self.lie = lie

    def __hash__(self) -> int:
        return hash(1)

    def __eq__(self, other: object) -> bool:
        return True

    @property
    def __class__(self) -> Any:
        return self.lie

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class Exploding:
    def __hash__(self) -> int:
        raise ZeroDivisionError("hashed")

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("compared")

    def __repr__(self) -> str:
        raise ZeroDivisionError("printed")

    def __str__(self) -> str:
        raise ZeroDivisionError("printed")

    def __bool__(self) -> bool:
        raise ZeroDivisionError("asked")


class HostileInt(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(1)


@pytest.mark.parametrize(
    "hostile",
    [Hostile(int), Hostile(str), Hostile(type(None)), Exploding(), HostileInt(1)],
    ids=lambda v: type(v).__name__,
)
def test_a_hostile_argument_is_refused_and_never_hits(hostile: Any) -> None:
    fn = calls_of()
    fn(1)
    for call in fn, fn.peek, fn.invalidate, fn.key_for, fn.refresh:
        with pytest.raises(UnkeyableError, match="'args'"):
            call(hostile)
        with pytest.raises(UnkeyableError):
            call(a=hostile)
        with pytest.raises(UnkeyableError):
            call([hostile])
    assert fn.peek(1) is not MISSING
    assert len(fn.calls) == 1


def test_a_hostile_argument_with_a_key_of_its_own_is_told_apart() -> None:
    class Keyed(Exploding):
        def __cache_key__(self) -> Any:
            return 1

    fn = calls_of()
    fn(1)
    fn(Keyed())
    fn(Keyed())
    assert len(fn.calls) == 2


def test_what_a_cache_key_raises_is_raised_and_the_function_is_not_called() -> None:
    class Broken:
        def __cache_key__(self) -> Any:
            raise LookupError("broken")

    fn = calls_of()
    for call in fn, fn.peek, fn.invalidate, fn.key_for, fn.refresh:
        with pytest.raises(LookupError, match="broken"):
            call(Broken())
    assert fn.calls == []


# -- defaults ----------------------------------------------------------------------------------------------------------

_MISSING = object()


def test_an_omitted_default_and_the_same_value_are_one_call() -> None:
    calls = []

    @cache_aside
    def fn(a: int, b: Any = 2, *, c: Any = (3,)) -> int:
        calls.append((a, b, c))
        return a

    for args, kwargs in [((1,), {}), ((1, 2), {}), ((), {"b": 2, "a": 1}), ((1,), {"c": (3,)}), ((1, 2), {"c": (3,)})]:
        fn(*args, **kwargs)
    assert calls == [(1, 2, (3,))]


def test_a_private_sentinel_counts_as_the_default_and_nothing_else_does() -> None:
    calls = []

    @cache_aside(namespace="ns")
    def fn(a: int, x: Any = _MISSING, *, y: Any = _MISSING) -> int:
        calls.append((x, y))
        return a

    fn(1)
    fn(1, _MISSING)
    fn(1, x=_MISSING, y=_MISSING)
    assert len(calls) == 1
    assert fn.key_for(1) == "ns(1,<default>,y=<default>)"
    fn(1, "<default>")
    assert len(calls) == 2
    for other in object(), [_MISSING], (_MISSING,):
        with pytest.raises(UnkeyableError, match="'x'"):
            fn(1, other)
    with pytest.raises(UnkeyableError, match="'a'"):
        fn(_MISSING)


def test_a_sentinel_among_extra_arguments_is_no_default() -> None:
    @cache_aside
    def fn(x: Any = _MISSING, *args: Any, **kwargs: Any) -> int:
        return 1

    with pytest.raises(UnkeyableError, match="'args'"):
        fn(1, _MISSING)
    with pytest.raises(UnkeyableError, match="'y'"):
        fn(1, y=_MISSING)


# -- ignore, namespace, version ----------------------------------------------------------------------------------------


def test_ignored_parameters_do_not_count_and_reach_the_function() -> None:
    calls = []

    @cache_aside(ignore=("conn", "extra"), namespace="ns")
    def fn(conn: Any, a: int, *, extra: Any = None) -> int:
        calls.append(conn)
        return a

    one, two = object(), object()
    assert fn(one, 1) == fn(two, 1) == fn(a=1, conn=[], extra={}) == 1
    assert calls == [one]
    assert fn.key_for(None, 1) == "ns(1)"
    assert fn.invalidate(a=1, conn=object())


@pytest.mark.parametrize("ignore", [("conn",), ["conn"], {"conn"}, frozenset({"conn"}), iter(("conn",)), {"conn": 1}])
def test_ignore_is_any_iterable_of_names(ignore: Any) -> None:
    @cache_aside(ignore=ignore, namespace="ns")
    def fn(conn: Any, a: int) -> int:
        return a

    assert fn.key_for(object(), 1) == "ns(1)"


def test_namespace_stands_for_module_and_name() -> None:
    def fn(a: int) -> int:
        return a

    assert cache_aside(fn).key_for(1) == f"{__name__}.{fn.__qualname__}(1)"
    assert cache_aside(namespace="app")(fn).key_for(1) == "app(1)"
    assert cache_aside(namespace="app", version=2)(fn).key_for(1) == "app@2(1)"
    assert cache_aside(version="v2")(fn).key_for(1) == f"{__name__}.{fn.__qualname__}@v2(1)"
    assert cache_aside(key="user:{a}")(fn).key_for(1) == "user:1"
    assert cache_aside(key="user:{a}", namespace="app", version=2)(fn).key_for(1) == "app:user:1@2"
    assert cache_aside(key=lambda a: f"k{a}", namespace="app", version=2)(fn).key_for(1) == "app:k1@2"


@pytest.mark.parametrize(
    "text", ["", " ", "a b", "a(b", "a)", "a[", "a{", "a*", "a?", "a'", 'a"', "a@1", "a,", "a=", "a\n"]
)
def test_a_namespace_or_version_that_could_pass_for_something_else_is_refused(text: str) -> None:
    for options in {"namespace": text and f"a{text}b"}, {"version": text}:
        with pytest.raises(OptionError, match=f"{describe(describe)}: {next(iter(options))}="):
            cache_aside(**options)(describe)


# -- key= --------------------------------------------------------------------------------------------------------------


def test_a_key_callable_gets_the_arguments_as_the_function_does() -> None:
    seen = []

    def key(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        return f"k{args[0]}"

    @cache_aside(key=key)
    def fn(a: int, b: int = 2, *args: int, c: int, d: int = 4, **more: int) -> int:
        return a + b

    assert fn(a=1, c=3, e=5) == 3
    assert seen == [((1, 2), {"c": 3, "d": 4, "e": 5})]
    assert fn(1, 100, c=0) == 3
    assert fn.store.get("k1") == 3


def test_what_a_key_callable_raises_is_raised_and_the_function_is_not_called() -> None:
    def key(a: Any) -> str:
        raise LookupError(a)

    calls: list[Any] = []
    fn: Any = cache_aside(key=key)(lambda a: calls.append(a))
    for call in fn, fn.peek, fn.invalidate, fn.key_for, fn.refresh, fn.ttl_left, functools.partial(fn.set, "value"):
        with pytest.raises(LookupError, match="7"):
            call(7)
    assert calls == []


@pytest.mark.parametrize("made", [None, 1, b"k", ("k",), ["k"]])
def test_a_key_that_is_no_text_is_refused(made: Any) -> None:
    fn: Any = cache_aside(key=lambda a: made)(lambda a: a)
    with pytest.raises(UnkeyableError, match="a key is a str") as caught:
        fn(1)
    assert "<lambda>" in str(caught.value)


def test_calls_whose_keys_render_alike_share() -> None:
    calls = []

    @cache_aside(key="user:{user_id}")
    def fn(user_id: Any, other: Any = None) -> Any:
        calls.append(user_id)
        return user_id

    assert fn(7) == fn("7") == fn(7, other=object()) == 7
    assert calls == [7]
    assert fn.store.get("user:7") == 7


def test_a_template_sees_every_kind_of_parameter() -> None:
    @cache_aside(key="{a}:{b}:{args}:{c}:{more[x]}:{user.name}")
    def fn(a: Any, /, b: Any, *args: Any, c: Any = 3, user: Any, **more: Any) -> int:
        return 1

    user = types.SimpleNamespace(name="ann:1")
    assert fn.key_for(1, 2, 9, x="X", user=user) == "1:2:%289%2C%29:3:X:ann%3A1"


def test_a_template_refuses_what_has_no_text_of_its_own_and_names_function_and_field() -> None:
    fn: Any = cache_aside(key="k:{a}")(lambda a: a)
    with pytest.raises(UnkeyableError, match=r"<lambda>: \{a\}"):
        fn(object())


def test_templates_cannot_be_made_to_collide_or_to_match_patterns() -> None:
    fn: Any = cache_aside(key="{a}:{b}")(lambda a, b: (a, b))
    assert fn("x:y", "z") == ("x:y", "z")
    assert fn("x", "y:z") == ("x", "y:z")
    assert fn("*", "[a]?") == ("*", "[a]?")
    assert fn.store.delete_pattern(fn.key_for("*", "[a]?")) == 1
    assert len(fn.store.keys()) == 2


# -- long keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("letter", "longest"), [("k", 194), ("é", 97)])
def test_two_hundred_bytes_are_written_out_and_one_more_is_a_digest(letter: str, longest: int) -> None:
    fn = calls_of()
    assert len(fn.key_for(letter * longest).encode()) == 200
    for argument in letter * longest + "k", [letter * longest]:
        key = fn.key_for(argument)
        assert key.startswith("ns(#")
        assert len(key) == len("ns(#)") + 40


def test_long_calls_differ_by_their_digests() -> None:
    fn = calls_of()
    forms = [
        (("k" * 300,), {}),
        (("k" * 299 + "l",), {}),
        ((b"k" * 300,), {}),
        ((), {"a": "k" * 300}),
        ((["k" * 300],), {}),
    ]
    for args, kwargs in forms:
        fn(*args, **kwargs)
    assert len(fn.calls) == len(forms)
    assert len({fn.key_for(*args, **kwargs) for args, kwargs in forms}) == len(forms)


@pytest.mark.parametrize("argument", ["k" * 300, 10**400, b"k" * 300, "é" * 150, ["k" * 300]])
def test_an_entry_under_a_digest_goes_by_its_key_too(argument: Any) -> None:
    """The raw key of a long scalar cannot be read out of its digest."""
    fn = calls_of(store=MemoryStore(), ttl=60)
    fn("other" * 100)
    fn(argument)
    key, store = fn.key_for(argument), fn.store
    assert store.keys().count(key) == 1
    assert store.get(key) == fn.peek(argument)
    assert store.exists(key)
    assert store.ttl(key) == pytest.approx(60, abs=1)
    assert store.expire(key, 30)
    assert store.delete(key)
    assert fn.peek(argument) is MISSING
    assert not store.delete(key)
    assert fn.peek("other" * 100) is not MISSING


def test_a_delete_by_digest_keeps_a_load_from_before_out() -> None:
    store = MemoryStore()

    @cache_aside(store=store, namespace="ns")
    def fn(text: str) -> int:
        if not seen:
            seen.append(store.delete(fn.key_for(text)))
        return len(seen)

    seen: list[bool] = []
    assert fn("k" * 300) == 1
    assert seen == [False]
    assert fn.peek("k" * 300) is MISSING


# -- the two spellings -------------------------------------------------------------------------------------------------

SHAPES = [
    Shape("ns", ()),
    Shape("ns", ("",)),
    Shape("ns", ("", "")),
    Shape("ns", ("", "*")),
    Shape("ns", ("*", "k")),
    Shape("ns", ("", "k", "l")),
    Shape("ns", ("", "*", "k")),
]
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.binary(max_size=8), st.floats(allow_nan=False).filter(bool)
)
anything = st.one_of(plain, st.sampled_from([0.0, -0.0]))


@st.composite
def raw_keys(draw: Any) -> tuple[Shape, tuple[Any, ...]]:
    shape = draw(st.sampled_from(SHAPES))
    raw: list[Any] = []
    for part in shape.parts:
        if part == "*":
            values = tuple(draw(st.lists(plain, max_size=3)))
            raw += [tuple(map(type, values)), values]
        else:
            value = draw(plain)
            raw += [type(value), value]
    return shape, raw[1] if len(raw) == 2 and raw[0] is int else tuple(raw)


@given(raw_keys())
def test_a_raw_key_comes_back_from_its_text(case: Any) -> None:
    shape, raw = case
    text = shape.text(raw)
    if text.startswith("ns(#"):
        assert shape.key(text) == text
    else:
        back = shape.key(text)
        assert back == raw
        assert type(back) is type(raw)
        if type(raw) is tuple:
            assert [type(part) for part in back] == [type(part) for part in raw]


# fmt: off
PIECES = [
    "ns", "(", ")", ",", "=", "k", "l", "1", "-1", "0.0", "-0.0", "1.0", "inf", "nan", "'a'", "b'a'", "None", "True",
    "[", "]", "*", "#", "-", "'", "\\", "...", "1j", "{", "}", "(1,)", "k=1", "not ", "x", "1e5", "0x10", "<default>",
    "<a.B #1>", "+", "~", "-'a'", "-None", "'a''b'", "f''", "lambda:0", "await ", "'\\N{DASH}'", "1_0", "u'a'",
]
# fmt: on
pieces = st.sampled_from([*PIECES, " ", "\n", "\x00", "\ud800"])


@given(st.sampled_from(SHAPES), st.lists(pieces, max_size=8).map("".join))
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_a_text_never_parses_into_a_key_of_another_call(shape: Shape, inner: str) -> None:
    """Whatever text: either the raw key that is written so, or the text itself; never an error."""
    for text in (f"ns({inner})", inner, f"ns({inner}", f"other({inner})"):
        key = shape.key(text)
        if key is not text:
            assert shape.text(key) == text
            scalars = [value for place, part in enumerate(shape.parts) for value in _values(part, key[2 * place + 1])]
            assert all(map(is_plain, scalars)), "only what a call could have stored raw"


def _values(part: str, value: Any) -> tuple[Any, ...]:
    return value if part == "*" else (value,)


@given(st.sampled_from(SHAPES), anything)
def test_values_that_are_not_plain_stay_text(shape: Shape, value: Any) -> None:
    if len(shape.parts) and not is_plain(value):
        for text in f"ns({value!r})", f"ns({value!r},k=1)", f"ns(k={value!r})", f"ns({value!r},{value!r})":
            assert shape.key(text) is text


ODD_TEXTS = [
    *("ns(-'a')", "ns(-None)", "ns(" + "-" * 100_000 + "1)", "ns(" + "(" * 10_000, "ns(1" + "9" * 5_000 + ")"),
    *("ns", "", "ns(", "ns(\x00)", "ns('\ud800", "ns(*[1])", "ns(**{})", "ns(1)(2)", "ns(x:=1)", "ns(1 for x in y)"),
    *("ns)(", "ns(1,k=2,k=3)", "ns(#)", "ns(#00)", "ns(1)+f(2)"),
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text[:12]))
def test_a_store_can_be_asked_for_any_text(text: str) -> None:
    store = MemoryStore()
    fn = cache_aside(store=store, namespace="ns")(describe)
    fn(len)
    assert store.get(text) is None
    assert not store.exists(text)
    assert not store.delete(text)


def test_the_text_of_a_text_is_itself() -> None:
    assert Shape("ns", ("",)).text("ns([1])") == "ns([1])"


def test_the_text_of_an_instances_call() -> None:
    assert Shape("ns", ("", "k")).text((int, 1, int, 2), "<a.B #1>") == "ns(<a.B #1>,1,k=2)"


# -- names -------------------------------------------------------------------------------------------------------------


class Callable_:
    def __call__(self, a: int) -> int:
        return a


def test_describe_names_what_was_written() -> None:
    assert describe(describe) == "memo.keys.calls.describe"
    assert describe(functools.partial(functools.partial(describe))) == "memo.keys.calls.describe"
    assert describe(Callable_()) == f"{__name__}.Callable_"
    assert describe(Callable_.__call__) == f"{__name__}.Callable_.__call__"
    nowhere = types.FunctionType(describe.__code__, {})
    nowhere.__module__ = None  # type: ignore[assignment]
    assert describe(nowhere) == "describe"


def test_a_function_without_a_signature_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^builtins\.max: its signature cannot be read"):
        CallKeys(max, key=None, ignore=(), namespace=None, version=None, name="builtins.max")


# -- the same in every process -----------------------------------------------------------------------------------------

_SCRIPT = """
import dataclasses, datetime, enum, json, pathlib, sys, types, uuid
from memo import cache_aside
sys.modules["app"] = types.ModuleType("app")
exec(compile('''
import dataclasses, enum
from memo import cache_aside
class Colour(enum.Enum):
    RED = 1
@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: object
    @cache_aside
    def moved(self, by): return by
_MISSING = object()
@cache_aside
def fn(a, b=_MISSING, *args, k=None, **more): return a
@cache_aside(key="user:{a}:{b}")
def user(a, b): return a
@cache_aside(version=3)
async def co(a): return a
''', "app", "exec"), vars(sys.modules["app"]))
import app
names = {"alpha", "beta", "gamma", "delta", "epsilon"}
print(json.dumps([
    app.fn.key_for(names),
    app.fn.key_for(frozenset(names), {name: {name} for name in names}),
    app.fn.key_for(app.Colour.RED, app.Point(1, names), k=app.Colour, zeta=1, **{name: 1 for name in names}),
    app.fn.key_for(uuid.UUID(int=1), pathlib.PurePosixPath("/x"), datetime.date(2020, 1, 1), 1.5, b"x", k=len),
    app.fn.key_for({"long" * 20: names, "more" * 20: [names] * 3}),
    app.user.key_for("a:b", 1.5),
    app.co.key_for(1),
    app.Point.moved.key_for(app.Point(1, 2), 5),
    app.Point(1, 2).moved.key_for(5),
]))
"""


def test_keys_are_the_same_in_every_process_and_for_every_hash_seed() -> None:
    outputs = set()
    for seed in ("0", "1", "20", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_SCRIPT)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    keys = json.loads(outputs.pop())
    assert keys[0] == "app.fn({'alpha','beta','delta','epsilon','gamma'},<default>,k=None)"
    assert keys[2].startswith("app.fn(app.Colour.RED,app.Point(x=1,y={'alpha','beta',")
    assert keys[4].startswith("app.fn(#")
    assert keys[5] == "user:a%3Ab:1.5"
    assert keys[6] == "app.co@3(1)"
    assert keys[7] == keys[8] == "app.Point.moved(app.Point(x=1,y=2),5)"


@pytest.mark.parametrize("argument", [r"'\d'", r"'\\\d'", r"b'\q'", "'\\"])
def test_a_text_with_an_escape_that_no_key_has_is_a_text_and_no_warning(argument: str) -> None:
    text = f"ns({argument})"
    assert Shape("ns", ("",)).key(text) == text


@pytest.mark.parametrize("value", ["\\", "\\d", "a\\\\b", "\x00\n\t'\"", "\ud800", b"\\d\xff"])
def test_a_text_whose_value_has_a_backslash_leads_back(value: Any) -> None:
    shape = Shape("ns", ("",))
    assert shape.key(shape.text((type(value), value))) == (type(value), value)
