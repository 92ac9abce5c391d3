"""Time to live: for each entry, over at the boundary itself."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from memo import DEFAULT, MISSING, MemoryStore, OptionError, cache_aside
from memo.clock import MAX_SECONDS
from memo.entry import Entry
from memo.testing.plain import BAD_DURATIONS, GOOD_DURATIONS


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock, cleanup_interval=None)


def test_ttl_10_is_there_at_9_9_and_gone_at_10(store, clock):
    clock.now = 0.0
    store.set("a", 1, ttl=10)
    clock.now = 9.9
    assert store.get("a") == 1
    assert store.exists("a")
    clock.now = math.nextafter(10, 0)
    assert store.get("a") == 1
    clock.now = 10.0
    assert store.get("a") is None
    assert not store.exists("a")


@pytest.mark.parametrize("read", ["get", "exists"])
def test_the_read_that_meets_an_expired_entry_removes_it(store, clock, read):
    store.set("a", 1, ttl=1)
    clock.advance(1)
    assert len(store) == 1
    assert not getattr(store, read)("a")
    assert len(store) == 0
    assert store.stats().expirations == 1


def test_reads_that_only_look_remove_nothing(store, clock):
    store.set("a", 1, ttl=1)
    clock.advance(1)
    assert store.ttl("a") is None
    assert store.keys() == []
    assert not store.expire("a", 10)
    assert len(store) == 1


def test_every_entry_has_its_own_ttl(store, clock):
    for ttl in 3, 1, 2:
        store.set(str(ttl), ttl, ttl)
    store.set("ever", 0, None)
    for there in ["2", "3", "ever"], ["3", "ever"], ["ever"]:
        clock.advance(1)
        assert sorted(store.keys()) == there


@pytest.mark.parametrize(("ttl", "left"), [(60, 60), (0.5, 0.5), (timedelta(minutes=2), 120), (None, math.inf)])
def test_a_ttl_is_seconds_a_timedelta_or_none(store, ttl, left):
    store.set("a", 1, ttl)
    assert store.ttl("a") == left


@pytest.mark.parametrize(("default_ttl", "left"), [(60, 60), (timedelta(minutes=2), 120), (None, math.inf)])
def test_default_is_the_stores_default_ttl(clock, default_ttl, left):
    store = MemoryStore(default_ttl=default_ttl, clock=clock)
    store.set("a", 1)
    store.set("b", 1, DEFAULT)
    store.set_many({"c": 1})
    store.set("d", 1, 7)
    store.expire("d", DEFAULT)
    store.increment("e")
    load = cache_aside(store=store)(lambda: "value")
    load()
    assert [store.ttl(key) for key in "abcde"] == [left] * 5
    assert load.ttl_left() == left


def test_an_explicit_none_never_expires_whatever_the_default(clock):
    store = MemoryStore(default_ttl=1, clock=clock)
    store.set("a", 1, None)
    store.set("b", 1)
    store.expire("b", None)
    clock.advance(MAX_SECONDS)
    assert sorted(store.keys()) == ["a", "b"]


def test_ttl_tells_absent_from_never(store, clock):
    store.set("a", 1)
    store.set("b", 1, 10)
    clock.advance(4)
    assert store.ttl("a") == math.inf
    assert store.ttl("b") == 6
    assert store.ttl("c") is None
    clock.advance(6)
    assert store.ttl("b") is None


def test_expire_counts_from_now(store, clock):
    store.set("a", 1, 10)
    clock.advance(9)
    assert store.expire("a", 10) is True
    clock.advance(9)
    assert store.get("a") == 1
    assert store.expire("a", 0.5) is True
    clock.advance(0.5)
    assert store.get("a") is None
    assert store.expire("a", 10) is False


def test_a_decorated_functions_entry_expires_and_is_loaded_again(store, clock):
    loads = []
    load = cache_aside(store=store, ttl=10)(lambda x: loads.append(x) or len(loads))
    assert load(1) == 1
    clock.advance(9.875)
    assert load(1) == 1
    clock.advance(0.125)
    assert load.peek(1) is MISSING
    assert load(1) == 2


SETTERS = {
    "set": lambda store, ttl: store.set("a", "new", ttl),
    "set_many": lambda store, ttl: store.set_many({"a": "new"}, ttl),
    "expire": lambda store, ttl: store.expire("a", ttl),
    "default_ttl": lambda store, ttl: MemoryStore(default_ttl=ttl),
    "cleanup_interval": lambda store, ttl: MemoryStore(cleanup_interval=ttl),
    "cache_aside(ttl)": lambda store, ttl: cache_aside(store=store, ttl=ttl)(lambda: 1),
    "cache_aside(wait_timeout)": lambda store, ttl: cache_aside(store=store, wait_timeout=ttl)(lambda: 1),
}


@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize("ttl", BAD_DURATIONS, ids=repr)
def test_what_is_no_duration_is_refused_and_changes_nothing(store, setter, ttl):
    store.set("a", "old", 5)
    with pytest.raises(OptionError) as caught:
        SETTERS[setter](store, ttl)
    assert repr(ttl) in str(caught.value)
    assert "allowed are" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert store.get("a") == "old"
    assert store.ttl("a") == 5


@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize("ttl", GOOD_DURATIONS, ids=repr)
def test_what_is_a_duration_is_taken(store, setter, ttl):
    store.set("a", "old")
    SETTERS[setter](store, ttl)


def test_there_are_enough_bad_durations():
    assert len(BAD_DURATIONS) >= 20


def test_an_infinite_duration_is_told_about_none():
    with pytest.raises(OptionError, match="None means that it never ends"):
        MemoryStore(default_ttl=math.inf)


def test_an_entry_without_windows_is_fresh_to_its_end_and_of_no_use_afterwards():
    entry = Entry(None, "key", "value", 5.0)
    assert (entry.due, entry.fresh_until, entry.stale_until, entry.kept_until) == (5.0, 5.0, 5.0, 5.0)
    entry.move(7.0)
    assert (entry.due, entry.fresh_until, entry.stale_until, entry.kept_until) == (7.0, 7.0, 7.0, 7.0)
