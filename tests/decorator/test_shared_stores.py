"""A store of the user's own that other processes share: what it needs, what it is given, and what is refused there."""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

import pytest

from memo import MISSING, OptionError, StoreError, UnkeyableError, cache_aside
from memo.entry import Lease, Reading
from memo.stats import StoreStats
from memo.stores import Space, Store


class DictSpace(Space):
    """A decorated function's part of `DictStore`: the lease of a key is the object that stands there."""

    def __init__(self, store: DictStore) -> None:
        self.store = store
        self.flights = {}

    def _seen(self, key: Any) -> None:
        assert type(key) is str, "a shared store is given text only"
        self.store.threads.add(threading.get_ident())
        if self.store.broken:
            raise StoreError("down")

    def read(self, key: Any) -> Reading:
        self._seen(key)
        found = self.store.entries.get(key, MISSING)
        return Reading(MISSING, found) if isinstance(found, Lease) else Reading(found)

    def take(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading:
        reading = self.read(key)
        if renew or (reading.value is MISSING and reading.lease is None):
            self.store.entries[key] = lease = Lease()
            return Reading(MISSING, lease)
        return reading

    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        self._seen(key)
        if self.store.entries.get(key) is not lease:
            return False
        self.put(key, value, ttl, tags)
        return True

    def release(self, key: Any, lease: Any, remove: bool) -> None:
        self._seen(key)
        if self.store.entries.get(key) is lease:
            del self.store.entries[key]

    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        self._seen(key)
        self.store.entries[key] = value

    def remove(self, key: Any) -> bool:
        self._seen(key)
        return not isinstance(self.store.entries.pop(key, Lease()), Lease)

    def remove_all(self) -> None:
        self.store.entries.clear()

    def peek(self, key: Any) -> Any:
        return self.read(key).value

    def left(self, key: Any) -> float | None:
        return None if self.read(key).value is MISSING else float("inf")

    def of(self, instance: object) -> Space:
        raise self.store.keys_of.refuse_identity(instance)


class DictStore(Store):
    """Text keys in a dict that stands for a server; all that it adds to `Store` is the sync side."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.threads: set[int] = set()
        self.broken = False

    def attach(self, keys: Any, hits: Any, misses: Any, owner: object) -> Space:
        self.keys_of = keys
        return DictSpace(self)

    def get(self, key: str, default: Any = None) -> Any:
        return self.entries.get(key, default)

    def set(self, key: str, value: Any, ttl: Any = None) -> None:
        self.entries[key] = value

    def delete(self, key: str) -> bool:
        return self.entries.pop(key, MISSING) is not MISSING

    def exists(self, key: str) -> bool:
        return key in self.entries

    def increment(self, key: str, amount: float = 1) -> Any:
        self.entries[key] = self.entries.get(key, 0) + amount
        return self.entries[key]

    def keys(self, pattern: str = "*") -> list[str]:
        return list(self.entries)

    def delete_pattern(self, pattern: str) -> int:
        return 0

    def get_many(self, keys: Any) -> dict[str, Any]:
        return {key: self.entries[key] for key in keys if key in self.entries}

    def set_many(self, values: Any, ttl: Any = None) -> None:
        self.entries.update(values)

    def delete_many(self, keys: Any) -> int:
        return sum([self.delete(key) for key in keys])

    def ttl(self, key: str) -> float | None:
        return float("inf") if key in self.entries else None

    def expire(self, key: str, ttl: Any) -> bool:
        return key in self.entries

    def clear(self) -> None:
        self.entries.clear()

    def invalidate_tags(self, *tags: str) -> None:
        self.entries.clear()

    def stats(self) -> StoreStats:
        return StoreStats(0, 0, 0, 0, 0, 0, len(self.entries), None)


STORE = DictStore()


@pytest.fixture(autouse=True)
def _empty() -> None:
    STORE.__init__()  # type: ignore[misc]


@cache_aside(store=STORE)
def fn(a: Any, b: Any = 2) -> Any:
    return a, b


@cache_aside(store=STORE)
async def afn(a: Any, b: Any = 2) -> Any:
    return a, b


class Owner:
    @cache_aside(store=STORE)
    def m(self, x: int) -> int:
        return x

    @cache_aside(store=STORE, key="owner:{x}")
    def keyed(self, x: int) -> int:
        return x

    @cache_aside(store=STORE, ignore=("self",))
    def shared(self, x: int) -> int:
        return x

    @cache_aside(store=STORE)
    @classmethod
    def cm(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @cache_aside(store=STORE)
    async def am(self, x: int) -> int:
        return x


class Derived(Owner):
    pass


@dataclasses.dataclass(frozen=True)
class Point:
    x: int

    @cache_aside(store=STORE)
    def m(self, y: int) -> int:
        return self.x + y


def test_the_identity_is_the_text() -> None:
    assert fn(1) == fn(a=1, b=2) == (1, 2)
    assert fn([1]) == fn([1]) == ([1], 2)
    assert list(STORE.entries) == [f"{__name__}.fn(1,2)", f"{__name__}.fn([1],2)"]
    assert fn.key_for(1) == f"{__name__}.fn(1,2)"
    assert fn.peek(1) == (1, 2)
    assert fn.ttl_left(1) == float("inf")
    assert fn.invalidate(1)
    assert fn.peek(1) is MISSING
    fn.set("given", 1)
    assert fn(1) == "given"
    assert fn.refresh(1) == (1, 2)
    fn.invalidate_all()
    assert STORE.entries == {}


async def test_the_async_side_runs_in_worker_threads() -> None:
    assert await afn(1) == await afn(a=1, b=2) == (1, 2)
    assert await afn.peek(1) == (1, 2)
    assert await afn.ttl_left(1) == float("inf")
    assert await afn.refresh(1) == (1, 2)
    await afn.set("given", 1)
    assert await afn(1) == "given"
    assert await afn.invalidate(1)
    assert await afn.peek(1) is MISSING
    await afn.invalidate_all()
    assert STORE.threads
    assert threading.get_ident() not in STORE.threads


async def test_a_failed_load_gives_its_lease_back_awaited() -> None:
    @cache_aside(store=STORE, namespace="failing")
    async def failing(a: int) -> int:
        raise LookupError(a)

    with pytest.raises(LookupError):
        await failing(1)
    assert STORE.entries == {}


async def test_the_stores_own_async_side_is_derived() -> None:
    await STORE.aset("a", 1)
    assert await STORE.aget("a") == 1
    assert await STORE.aexists("a")
    assert await STORE.aincrement("n", 2) == 2
    assert sorted(await STORE.akeys()) == ["a", "n"]
    await STORE.aset_many({"b": 2})
    assert await STORE.aget_many(["a", "b"]) == {"a": 1, "b": 2}
    assert await STORE.attl("a") == float("inf")
    assert await STORE.aexpire("a", 5)
    assert await STORE.adelete("a")
    assert await STORE.adelete_many(["b", "x"]) == 1
    assert await STORE.adelete_pattern("*") == 0
    await STORE.ainvalidate_tags("tag")
    await STORE.aclear()
    assert (await STORE.astats()).size == 0
    await STORE.aclose()


def test_a_store_that_fails_is_not_the_callers_problem() -> None:
    STORE.broken = True
    assert fn(1) == fn(1) == (1, 2)
    assert fn.stats().errors == {"read": 2, "take": 2}
    with pytest.raises(StoreError):
        fn.invalidate(1)


async def test_a_store_that_fails_is_not_the_awaiting_callers_problem() -> None:
    STORE.broken = True
    assert await afn(1) == (1, 2)
    assert afn.stats().errors == {"read": 1, "take": 1}
    with pytest.raises(StoreError):
        await afn.invalidate(1)


# -- whose entries are these -------------------------------------------------------------------------------------------


def nameless() -> dict[str, Any]:
    captured = 1

    def closure(a: int) -> int:
        return a + captured

    @functools.wraps(closure)
    def wrapped(a: int) -> int:
        return closure(a)

    class Callable_:
        def __call__(self, a: int) -> int:
            return a

    return {
        "all lambdas have one name": lambda a: a,
        "it closes over variables": closure,
        "closes over variables": wrapped,
        "a functools.partial has the name of the function within": functools.partial(fn.__wrapped__, b=1),
        "an object has the name of its class": Callable_(),
    }


@pytest.mark.parametrize("why", nameless())
def test_what_its_name_does_not_tell_apart_is_refused_with_the_ways_out(why: str) -> None:
    function = nameless()[why]
    refused: Any = cache_aside(store=STORE)(function)
    for call in refused, refused.peek, refused.invalidate, refused.key_for:
        with pytest.raises(OptionError, match=rf"{why}.*: give it key= or namespace="):
            call(1)
    with pytest.raises(OptionError):
        refused.invalidate_all()
    with pytest.raises(OptionError):
        refused.store
    for options in {"namespace": "mine"}, {"key": "mine:{a}"}:
        accepted: Any = cache_aside(store=STORE, **options)(function)
        accepted(1)
        assert accepted.key_for(1).startswith("mine")
    in_memory: Any = cache_aside(function)
    in_memory(1)


def test_a_module_level_function_behind_a_decorator_has_its_name() -> None:
    def passing(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    named: Any = cache_aside(store=STORE)(passing(nothing_captured))
    assert named(1) == 1
    assert named.key_for(1) == f"{__name__}.nothing_captured(1)"


def nothing_captured(a: int) -> int:
    return a


def test_an_instance_that_counts_by_identity_is_refused_with_the_ways_out() -> None:
    owner = Owner()
    for call in owner.m, owner.m.peek, owner.m.invalidate, owner.m.key_for, functools.partial(Owner.m, owner):
        with pytest.raises(UnkeyableError) as caught:
            call(1)
        message = str(caught.value)
        assert message.startswith(f"{__name__}.Owner.m: {__name__}.Owner counts by identity")
        for way in ("__cache_key__()", "frozen dataclass", "key=", 'ignore=("self",)'):
            assert way in message
    assert owner.keyed(1) == owner.shared(1) == 1
    assert set(STORE.entries) == {"owner:1", f"{__name__}.Owner.shared(1)"}


async def test_an_async_method_likewise() -> None:
    with pytest.raises(UnkeyableError, match="counts by identity"):
        await Owner().am(1)


def test_value_classes_and_classes_go_by_their_text() -> None:
    assert Point(1).m(5) == Point(1).m(5) == 6
    assert Point.m.key_for(Point(1), 5) == f"{__name__}.Point.m({__name__}.Point(x=1),5)"
    assert (Owner.cm(1), Derived.cm(1)) == ("Owner 1", "Derived 1")
    assert Derived.cm.key_for(1) == f"{__name__}.Owner.cm({__name__}.Derived,1)"
    assert len(STORE.entries) == 3


def test_a_class_that_its_name_does_not_lead_to_is_refused() -> None:
    class Local(Owner):
        pass

    with pytest.raises(UnkeyableError, match=r"Owner\.cm: the argument 'cls'"):
        Local.cm(1)
