"""Whether a result is kept, and for how long; and what is refused at decoration."""

from __future__ import annotations

import asyncio
import math
import re
import warnings
from datetime import timedelta

import pytest

from memo import DEFAULT, MISSING, MemoryStore, OptionError, cache_aside
from memo.clock import MAX_SECONDS, SYSTEM, WallClock, checked_clock, seconds
from memo.entry import ABSENT, UNREAD, Reading
from memo.policy import NotKept, Policy


@pytest.fixture
def timed(clock):
    store = MemoryStore(clock=clock, default_ttl=30, cleanup_interval=None)
    return lambda function, **options: cache_aside(store=store, **options)(function)


@pytest.mark.parametrize(
    ("ttl", "left"),
    [
        (10, 10.0),
        (0.5, 0.5),
        (timedelta(minutes=1), 60.0),
        (None, math.inf),
        (DEFAULT, 30.0),
        (lambda value: value, 7.0),
        (lambda value: timedelta(seconds=value), 7.0),
        (lambda value: None, math.inf),
        (lambda value: DEFAULT, 30.0),
    ],
    ids=["int", "float", "timedelta", "None", "DEFAULT", "callable", "to timedelta", "to None", "to DEFAULT"],
)
def test_a_ttl_is_what_the_option_says(timed, ttl, left):
    f = timed(lambda x: x, ttl=ttl)
    assert f(7) == 7
    assert f.ttl_left(7) == left
    f.set(7, 8)
    assert f.ttl_left(8) == left


def test_an_entry_is_gone_at_its_ttl_itself(timed, clock):
    calls = []
    f = timed(lambda x: calls.append(x) or len(calls), ttl=10)
    assert f(7) == 1
    clock.advance(9.9)
    assert f(7) == 1
    clock.advance(0.1)
    assert f(7) == 2


@pytest.mark.parametrize("length", [0, -1, 0.0, -math.inf, timedelta(0), timedelta(seconds=-1)])
def test_a_ttl_that_comes_out_as_nothing_keeps_nothing(timed, length, look):
    f = timed(lambda x: x, ttl=lambda value: length)
    assert f(7) == 7
    assert f.peek(7) is MISSING
    assert f.stats().uncached_by == {"ttl": 1}
    assert f.stats().errors == {}
    look(f).clean()


@pytest.mark.parametrize("length", ["10", b"", True, False, math.nan, math.inf, MAX_SECONDS * 2, [], 1j], ids=repr)
def test_a_ttl_that_comes_out_as_nonsense_keeps_nothing_and_is_counted(timed, length, look, caplog):
    f = timed(lambda x: x, ttl=lambda value: length)
    assert f(7) == 7
    assert f.peek(7) is MISSING
    assert (f.stats().uncached, f.stats().errors) == (1, {"policy": 1})
    assert len(caplog.records) == 1
    look(f).clean()


def test_none_is_not_kept_unless_it_is_asked_for(timed):
    f, g = timed(lambda x: None), timed(lambda x: None, cache_none=True)
    for function in (f, g):
        assert function(7) is None
    assert f.peek(7) is MISSING
    assert g.peek(7) is None


@pytest.mark.parametrize("value", ["", 0, False, [], {}])
def test_what_is_false_is_kept(timed, value):
    f = timed(lambda x: value)
    f(7)
    assert f.peek(7) == value


def test_cache_if_decides_by_the_truth_of_what_it_returns(timed):
    f = timed(lambda x: x, cache_if=lambda value: [1] * value)
    f(0), f(1)
    assert f.peek(0) is MISSING
    assert f.peek(1) == 1


def test_cache_if_and_ttl_are_not_asked_about_what_is_not_kept_anyway():
    policy = Policy(pytest.fail, False, pytest.fail, "f")
    assert policy.judge(None) == NotKept("none")
    policy = Policy(pytest.fail, True, lambda value: False, "f")
    assert policy.judge(None) == NotKept("cache_if")


def test_cache_if_is_asked_about_none_where_none_is_kept():
    policy = Policy(None, True, lambda value: value is None, "f")
    assert policy.judge(None) is None
    assert policy.judge(1) == NotKept("cache_if")


@pytest.mark.parametrize("option", ["ttl", "cache_if"])
def test_a_callable_that_raises_after_the_load_costs_the_entry_only(timed, look, caplog, option):
    calls = []

    def fail(value):
        raise LookupError(value)

    f = timed(lambda x: calls.append(x) or "value", **{option: fail})
    assert [f(7), f(7)] == ["value"] * 2
    assert calls == [7, 7]
    assert (f.stats().uncached_by, f.stats().errors, f.stats().loads) == ({"error": 2}, {"policy": 2}, 2)
    assert len(caplog.records) == 1
    look(f).clean()


def test_a_truth_that_raises_costs_the_entry_only(timed):
    class Moody:
        def __bool__(self):
            raise RuntimeError

    f = timed(lambda x: x, cache_if=lambda value: Moody())
    assert f(7) == 7
    assert f.stats().errors == {"policy": 1}


@pytest.mark.parametrize("option", ["ttl", "cache_if"])
async def test_a_callable_that_raises_after_the_load_costs_the_entry_only_async(timed, look, option):
    async def load(x):
        return "value"

    def fail(value):
        raise LookupError(value)

    f = timed(load, **{option: fail})
    assert await asyncio.gather(f(7), f(7)) == ["value"] * 2
    assert (f.stats().uncached, f.stats().errors, f.stats().loads) == (1, {"policy": 1}, 1)
    look(f).clean()


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
def test_a_callable_that_is_interrupted_leaves_no_flight(timed, look, fatal):
    def stop(value):
        raise fatal

    f = timed(lambda x: x, ttl=stop)
    with pytest.raises(fatal):
        f(7)
    look(f).clean(leases=False)
    with pytest.raises(fatal):
        f(7)


def test_a_refresh_whose_result_is_not_kept_removes_what_it_would_have_replaced(timed):
    answers = ["old", None]
    f = timed(lambda x: answers.pop(0))
    f(7)
    assert f.refresh(7) is None
    assert f.peek(7) is MISSING


def test_a_refresh_whose_result_is_not_kept_spares_what_was_written_meanwhile(timed):
    f = timed(lambda x: f.set("newer", x))
    f.set("old", 7)
    assert f.refresh(7) is None
    assert f.peek(7) == "newer"


def test_set_refuses_what_the_options_do_not_keep(timed):
    f = timed(lambda x: x, cache_if=lambda value: value > 0)
    for value in (None, -1):
        with pytest.raises(OptionError, match="not kept"):
            f.set(value, 7)
    f.set(1, 7)
    assert f(7) == 1


def plain(x):
    return x


async def coroutine(x):
    return x


class AsyncCallable:
    async def __call__(self, x):
        return x


BAD = [
    ("ttl", 0),
    ("ttl", -1),
    ("ttl", True),
    ("ttl", False),
    ("ttl", "60"),
    ("ttl", b"60"),
    ("ttl", math.nan),
    ("ttl", math.inf),
    ("ttl", 10**400),
    ("ttl", MAX_SECONDS + 1),
    ("ttl", timedelta(0)),
    ("ttl", timedelta(seconds=-1)),
    ("ttl", [60]),
    ("ttl", coroutine),
    ("cache_none", 1),
    ("cache_none", None),
    ("cache_none", "yes"),
    ("cache_if", True),
    ("cache_if", "x"),
    ("cache_if", coroutine),
    ("single_flight", True),
    ("single_flight", False),
    ("single_flight", "thread"),
    ("single_flight", 1),
    ("wait_timeout", 0),
    ("wait_timeout", -1),
    ("wait_timeout", True),
    ("wait_timeout", "1"),
    ("wait_timeout", math.nan),
    ("wait_timeout", math.inf),
    ("wait_timeout", timedelta(0)),
    ("tags", "users"),
    ("tags", ("",)),
    ("tags", (1,)),
    ("tags", None),
    ("tags", ("user:{nobody}",)),
    ("store", None),
    ("store", 7),
    ("store", "etcd://localhost"),
    ("store", "no where"),
    ("key", 7),
    ("key", "{nobody}"),
    ("ignore", ("nobody",)),
    ("namespace", 7),
    ("version", []),
]


@pytest.mark.parametrize(("option", "value"), BAD, ids=[f"{option}={value!r:.30}" for option, value in BAD])
def test_an_option_that_is_out_of_range_is_an_error_at_decoration_that_names_the_function(option, value):
    with pytest.raises(OptionError, match=re.escape("test_policy.plain")) as caught:
        cache_aside(**{option: value})(plain)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert option in str(caught.value)


@pytest.mark.parametrize("length", [1, 0.001, timedelta(milliseconds=1), MAX_SECONDS])
def test_durations_that_are_allowed(length):
    expected = length.total_seconds() if isinstance(length, timedelta) else length
    assert seconds(length, "ttl") == expected
    assert type(seconds(length, "ttl")) is float
    assert cache_aside(wait_timeout=length)(plain)._self_memoized.plan.wait_timeout == expected


def test_a_duration_without_an_end_is_told_how_to_say_so():
    with pytest.raises(OptionError, match="None means"):
        seconds(math.inf, "ttl")
    with pytest.raises(OptionError) as caught:
        seconds(-1, "ttl")
    assert "None means" not in str(caught.value)


def test_a_clock_is_checked():
    assert checked_clock(SYSTEM) is SYSTEM
    wall = checked_clock(WallClock())
    assert abs(wall.monotonic() - wall.time()) < 60
    for clock in (None, 7, type("Half", (), {"monotonic": lambda self: 0})()):
        with pytest.raises(OptionError, match="clock"):
            checked_clock(clock)


def test_sentinels_print_and_test_as_what_they_stand_for():
    assert repr(MISSING) == "MISSING"
    assert repr(DEFAULT) == "DEFAULT"
    assert not MISSING
    assert DEFAULT
    assert repr(Reading(7, "lease")) == "Reading(value=int, lease='lease')"
    assert ABSENT.lease != UNREAD.lease


def generator():
    yield 1


async def agenerator():
    yield 1


@pytest.mark.parametrize(
    ("make", "kind"),
    [(lambda: coroutine(1), "coroutine"), (generator, "generator"), (agenerator, "async_generator")],
    ids=["coroutine", "generator", "async generator"],
)
@pytest.mark.parametrize("helper", ["__call__", "refresh"])
def test_a_result_that_can_be_used_only_once_is_an_error(timed, look, make, kind, helper):
    """The second caller would find it used up; and no warning of a coroutine that was never awaited comes with it."""
    f = timed(lambda x: make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=f"returned a {kind}.*only once"):
            getattr(f, helper)(7)
    assert f.peek(7) is MISSING
    look(f).clean()


async def test_a_result_that_can_be_used_only_once_is_an_error_async(timed, look):
    async def load(x):
        return generator()

    f = timed(load)
    with pytest.raises(TypeError, match="only once"):
        await f(7)
    look(f).clean()
