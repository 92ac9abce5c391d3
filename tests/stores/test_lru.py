"""Eviction: exactly the least recently used entry, reads and writes alike, and only when there is no room."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memo import MISSING, MemoryStore, OptionError, cache_aside


def functions(store):
    return [cache_aside(store=store, namespace=name)(lambda x: ("value", x)) for name in ("f", "g")]


@pytest.mark.parametrize("max_size", range(1, 9))
def test_at_max_size_nothing_is_lost_and_one_more_evicts_one(max_size):
    store = MemoryStore(max_size=max_size)
    for number in range(max_size):
        store.set(str(number), number)
    assert len(store) == max_size
    assert store.stats().evictions == 0
    for number in range(max_size):
        assert store.get(str(number)) == number
    store.set("one more", None)
    assert len(store) == max_size
    assert store.stats().evictions == 1
    assert not store.exists("0")
    assert all(store.exists(str(number)) for number in range(1, max_size))


@pytest.mark.parametrize("max_size", range(1, 9))
@given(script=st.lists(st.tuples(st.sampled_from(["get", "set", "call", "delete"]), st.integers(0, 11)), max_size=60))
def test_any_script_of_reads_and_writes_leaves_what_an_exact_lru_does(max_size, script):
    store = MemoryStore(max_size=max_size, cleanup_interval=None)
    f, g = functions(store)
    model: OrderedDict[str, object] = OrderedDict()
    evictions = 0
    for action, number in script:
        function = (f, g)[number % 2]
        key = function.key_for(number) if action == "call" else str(number)
        if action == "delete":
            assert store.delete(key) is (model.pop(key, MISSING) is not MISSING)
            continue
        if action == "get":
            assert store.get(key, MISSING) == model.get(key, MISSING)
            if key in model:
                model.move_to_end(key)
            continue
        value = ("value", number)
        if action == "set":
            store.set(key, value)
        else:
            assert function(number) == value
        if key not in model and len(model) == max_size:
            model.popitem(last=False)
            evictions += 1
        model[key] = value
        model.move_to_end(key)
    assert [entry.space.text_of(entry.key) for entry in store._shelf.order] == list(model)
    assert store.stats().evictions == evictions


USES = {
    "get": lambda store: store.get("old"),
    "get_many": lambda store: store.get_many(["old"]),
    "set": lambda store: store.set("old", 2),
    "set_many": lambda store: store.set_many({"old": 2}),
    "increment": lambda store: store.increment("old"),
    "expire": lambda store: store.expire("old", None),
}
LOOKS = {
    "exists": lambda store: store.exists("old"),
    "ttl": lambda store: store.ttl("old"),
    "keys": lambda store: store.keys(),
    "stats": lambda store: store.stats(),
    "cleanup": lambda store: store.cleanup(),
    "absent": lambda store: store.get("absent"),
}


@pytest.mark.parametrize("use", USES)
def test_a_use_makes_an_entry_the_most_recent_one(use):
    store = MemoryStore(max_size=2)
    store.set("old", 1)
    store.set("new", 1)
    USES[use](store)
    store.set("next", 1)
    assert sorted(store.keys()) == ["next", "old"]


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_does_not(look):
    store = MemoryStore(max_size=2)
    store.set("old", 1)
    store.set("new", 1)
    LOOKS[look](store)
    store.set("next", 1)
    assert sorted(store.keys()) == ["new", "next"]


def test_functions_and_plain_keys_share_one_order():
    store = MemoryStore(max_size=3)
    f, g = functions(store)
    f(1)
    store.set("plain", 1)
    g(1)
    f(1)
    store.set("another", 1)
    assert sorted(store.keys()) == ["another", "f(1)", "g(1)"]
    f(2)
    assert sorted(store.keys()) == ["another", "f(1)", "f(2)"]
    assert g.peek(1) is MISSING
    assert store.stats().evictions == 2


def test_a_hit_counts_as_a_use_and_a_peek_does_not():
    store = MemoryStore(max_size=2)
    f, _ = functions(store)
    f(1)
    f(2)
    f.peek(1)
    f(3)
    assert f.peek(1) is MISSING
    f(2)
    f(4)
    assert f.peek(3) is MISSING
    assert f.peek(2) == ("value", 2)


def test_an_expired_entry_is_evicted_in_its_turn_like_any_other(clock):
    store = MemoryStore(max_size=2, clock=clock)
    store.set("a", 1)
    store.set("b", 1, 1)
    clock.advance(1)
    store.set("c", 1)
    assert not store.exists("a")
    assert store.stats().evictions == 1


def test_a_replaced_value_takes_no_more_room():
    store = MemoryStore(max_size=2)
    store.set("a", 1)
    store.set("b", 1)
    store.set("b", 2)
    store.increment("b")
    assert sorted(store.keys()) == ["a", "b"]
    assert store.stats().evictions == 0


def test_none_is_no_limit():
    store = MemoryStore(max_size=None)
    store.set_many({str(number): number for number in range(20_000)})
    assert len(store) == 20_000
    assert store.stats().max_size is None
    assert store.stats().evictions == 0


def test_the_default_is_ten_thousand():
    store = MemoryStore()
    store.set_many({str(number): number for number in range(10_010)})
    assert len(store) == store.stats().max_size == store.max_size == 10_000
    assert not store.exists("9")
    assert store.exists("10")


@pytest.mark.parametrize("max_size", [0, -1, True, False, 1.0, "10", float("inf"), [1]])
def test_a_max_size_that_is_no_count_is_refused(max_size):
    with pytest.raises(OptionError, match="max_size"):
        MemoryStore(max_size=max_size)


def test_the_repr_shows_the_sizes():
    store = MemoryStore(max_size=5, default_ttl=60)
    store.set("password", "secret")
    assert repr(store) == "MemoryStore(max_size=5, default_ttl=60.0, size=1)"


def test_a_result_that_is_not_stored_evicts_nothing():
    store = MemoryStore(max_size=1)
    load = cache_aside(store=store, namespace="load", tags=("t",), cache_none=True)(
        lambda x: store.invalidate_tags("t")
    )
    store.set("a", 1)
    load(1)
    assert load.stats().refused_fills == 1
    assert store.keys() == ["a"]
    assert store.stats().evictions == 0
