"""Tags: which entries bear which, and that invalidating one drops those and no others."""

from __future__ import annotations

import asyncio
import sys
import types
from typing import Any

import pytest

from memo import MISSING, MemoryStore, UnkeyableError, cache_aside


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_an_invalidated_tag_takes_all_that_bear_it(store: MemoryStore) -> None:
    @cache_aside(store=store, tags=("users", "user:{user_id}"))
    def user(user_id: int) -> int:
        return user_id

    @cache_aside(store=store, tags=["orders", "user:{owner}"])
    def orders(owner: int, page: int = 1) -> tuple[int, int]:
        return owner, page

    for number in (1, 2):
        user(number)
        orders(number)
        orders(number, 2)
    store.invalidate_tags("user:1")
    assert user.peek(1) is MISSING
    assert orders.peek(1) is MISSING
    assert orders.peek(1, 2) is MISSING
    assert len(store) == 3
    store.invalidate_tags("users", "nobody")
    assert user.peek(2) is MISSING
    assert orders.peek(2) == (2, 1)
    store.invalidate_tags("orders")
    assert len(store) == 0
    assert user(1) == 1


def test_a_tags_values_are_matched_whole_and_as_they_are(store: MemoryStore) -> None:
    """No value can reach further than its own tag: there is nothing like a pattern."""

    @cache_aside(store=store, tags=("name:{name}",))
    def fn(name: Any) -> Any:
        return name

    names = ["*", "a", "ab", "a:b", "", "[a]", "{a}", "é", "a%20b", "a b"]
    for name in names:
        fn(name)
    for number, name in enumerate(names):
        store.invalidate_tags(f"name:{name}")
        assert fn.peek(name) is MISSING
        assert len(store) == len(names) - number - 1


def test_templates_of_tags_see_attributes_keys_formats_and_defaults(store: MemoryStore) -> None:
    @cache_aside(store=store, key="{user.id}", tags=("team:{user.team}", "row:{row[id]}", "{price:.1f}", "{{x}}"))
    def fn(user: Any, row: Any, price: float = 2.25) -> int:
        return 1

    user = types.SimpleNamespace(id=1, team="red")
    for tag in ("team:red", "row:5", "2.2", "{x}"):
        fn(user, {"id": 5})
        assert len(store) == 1
        store.invalidate_tags(tag)
        assert len(store) == 0


def test_a_tag_that_two_templates_render_alike_is_one(store: MemoryStore) -> None:
    @cache_aside(store=store, tags=("{a}", "{b}"))
    def fn(a: str, b: str) -> str:
        return a

    fn("x", "x")
    store.invalidate_tags("x")
    assert len(store) == 0


def test_tags_on_methods(store: MemoryStore) -> None:
    class Owner:
        def __init__(self, name: str) -> None:
            self.name = name

        @cache_aside(store=store, tags=("owner:{self.name}", "all"))
        def m(self, x: int) -> int:
            return x

        @cache_aside(store=store, tags=("class:{cls.__name__}",))
        @classmethod
        def cm(cls, x: int) -> int:
            return x

    a, b = Owner("a"), Owner("b")
    a.m(1)
    b.m(1)
    Owner.cm(1)
    store.invalidate_tags("owner:a")
    assert a.m.peek(1) is MISSING
    assert b.m.peek(1) == 1
    store.invalidate_tags("all")
    assert b.m.peek(1) is MISSING
    store.invalidate_tags("class:Owner")
    assert len(store) == 0


def test_what_is_set_or_refreshed_bears_the_tags_too(store: MemoryStore) -> None:
    @cache_aside(store=store, tags=("x:{x}",))
    def fn(x: int) -> int:
        return x

    fn.set("given", 1)
    fn.refresh(2)
    store.invalidate_tags("x:1")
    assert fn.peek(1) is MISSING
    assert fn.peek(2) == 2
    store.invalidate_tags("x:2")
    assert len(store) == 0


def test_calls_that_share_a_key_each_bring_their_tags(store: MemoryStore) -> None:
    """What is stored bears the tags of the call that loaded it."""

    @cache_aside(store=store, ignore=("viewer",), tags=("viewer:{viewer}",))
    def fn(page: int, viewer: str) -> str:
        return viewer

    assert fn(1, "ann") == fn(1, "bob") == "ann"
    store.invalidate_tags("viewer:bob")
    assert fn(1, "bob") == "ann"
    store.invalidate_tags("viewer:ann")
    assert fn(1, "bob") == "bob"


def test_tags_of_a_replaced_or_removed_entry_are_forgotten(store: MemoryStore) -> None:
    @cache_aside(store=store, key="{key}", tags=("tag:{tag}",))
    def fn(key: int, tag: int) -> int:
        return tag

    for tag in range(50):
        fn.refresh(1, tag)
    store.invalidate_tags("tag:0")
    assert fn.peek(1, 49) == 49
    assert len(store._shelf.tags) == 1
    fn.invalidate(1, 0)
    assert store._shelf.tags == {}
    for key in range(5):
        fn(key, key)
    fn.invalidate_all()
    assert store._shelf.tags == {}


def test_an_invalidation_costs_only_what_it_drops() -> None:
    """Counted in functions called, in Python and in C, not in seconds."""

    def cost(size: int) -> int:
        store = MemoryStore(cleanup_interval=None)

        @cache_aside(store=store, tags=("x:{x}",))
        def fn(x: int) -> int:
            return x

        for x in range(size):
            fn(x)
        events: list[str] = []
        sys.setprofile(lambda frame, event, arg: events.append(event))
        try:
            store.invalidate_tags("x:7", "x:8", "nobody")
        finally:
            sys.setprofile(None)
        assert len(store) == size - 2
        return len(events)

    assert cost(10) == cost(2_000)


@pytest.mark.parametrize("tag", ["all", "x:1"])
def test_a_tag_that_is_invalidated_during_a_load_keeps_its_result_out(store: MemoryStore, tag: str) -> None:
    @cache_aside(store=store, tags=("all", "x:{x}"))
    def fn(x: int) -> str:
        if not during:
            during.append(True)
            store.invalidate_tags(tag)
            return "stale"
        return "fresh"

    during: list[bool] = []
    assert fn(1) == "stale"
    assert fn.peek(1) is MISSING
    assert fn.stats().refused_fills == 1
    assert fn(1) == "fresh"


def test_another_tag_during_a_load_does_no_harm(store: MemoryStore) -> None:
    @cache_aside(store=store, tags=("x:{x}",))
    def fn(x: int) -> int:
        store.invalidate_tags("x:2", "other")
        return x

    assert fn(1) == fn.peek(1) == 1
    assert store._shelf.tags.keys() == {"x:1"}


async def test_a_tag_that_is_invalidated_during_an_awaited_load(store: MemoryStore) -> None:
    @cache_aside(store=store, ignore=("who",), tags=("who:{who}",))
    async def fn(x: int, who: str) -> str:
        begun[who].set()
        await gates[who].wait()
        return who

    begun = {"ann": asyncio.Event(), "bob": asyncio.Event()}
    gates = {"ann": asyncio.Event(), "bob": asyncio.Event()}
    first = asyncio.create_task(fn(1, "ann"))
    await asyncio.wait_for(begun["ann"].wait(), 10)
    await store.ainvalidate_tags("who:ann")
    later = asyncio.create_task(fn(1, "bob"))
    await asyncio.wait_for(begun["bob"].wait(), 10)
    gates["bob"].set()
    assert await asyncio.wait_for(later, 10) == "bob"
    gates["ann"].set()
    assert await asyncio.wait_for(first, 10) == "ann"
    assert await fn.peek(1, "bob") == "bob"


async def test_a_waiters_load_has_the_tags_of_its_leader(store: MemoryStore) -> None:
    @cache_aside(store=store, ignore=("who",), tags=("who:{who}",))
    async def fn(x: int, who: str) -> str:
        await gate.wait()
        return who

    gate = asyncio.Event()
    tasks = [asyncio.create_task(fn(1, who)) for who in ("ann", "bob")]
    while fn.stats().waits < 1:
        await asyncio.sleep(0)
    gate.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 10) == ["ann", "ann"]
    store.invalidate_tags("who:ann")
    assert await fn.peek(1, "ann") is MISSING


def test_a_failed_load_leaves_no_tag_behind(store: MemoryStore) -> None:
    @cache_aside(store=store, tags=("x:{x}",))
    def fn(x: int) -> int:
        raise LookupError

    with pytest.raises(LookupError):
        fn(1)
    assert store._shelf.tags == {}


def test_a_tags_value_without_a_text_of_its_own_is_refused(store: MemoryStore) -> None:
    @cache_aside(store=store, ignore=("x",), tags=("x:{x}",))
    def fn(x: object) -> int:
        raise AssertionError("called")

    for call in (fn, fn.refresh, lambda x: fn.set(1, x)):
        with pytest.raises(UnkeyableError, match=r"fn: tags: \{x\}"):
            call(object())
    assert store._shelf.tags == {}
    assert fn.peek(object()) is MISSING


def test_an_error_of_an_attribute_in_a_tag_is_raised_before_the_call(store: MemoryStore) -> None:
    @cache_aside(store=store, key="{x}", tags=("{x.missing}",))
    def fn(x: int) -> int:
        raise AssertionError("called")

    with pytest.raises(AttributeError, match="missing"):
        fn(1)
