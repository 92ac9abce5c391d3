"""Read by type checkers, never run: what mypy --strict and pyright see of a decorated function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

from typing_extensions import assert_type

from memo import (
    MISSING,
    MemoryStore,
    NullStore,
    aclose,
    cache_aside,
    cache_aside_many,
    close,
    configure,
    disabled,
    invalidates,
    override,
)

T = TypeVar("T")


@cache_aside
def bare(x: int, y: str = "a") -> float:
    return float(x)


@cache_aside(ttl=60, key="user:{x}", tags=("users",), store=MemoryStore(), wait_timeout=timedelta(seconds=1))
def options(x: int, *, flag: bool = False) -> list[str]:
    return [str(x)]


@cache_aside(ttl=lambda user: user["ttl"], cache_if=bool)
async def coroutine(x: int) -> dict[str, int]:
    return {"x": x}


@cache_aside
def generic(items: Sequence[T]) -> T:
    return items[0]


assert_type(bare(1, y="b"), float)
assert_type(bare.invalidate(1), bool)
assert_type(bare.invalidate_all(), None)
assert_type(bare.refresh(1, y="b"), float)
assert_type(bare.key_for(1), str)
assert_type(bare.ttl_left(1), float | None)
assert_type(bare.set(1.5, 1), None)
assert_type(bare.stats().hit_ratio, float)
bare("1")  # error
bare(1, z=2)  # error
bare.invalidate("1")  # error
bare.set("text", 1)  # error
peeked = bare.peek(1)
if peeked is not MISSING:
    assert_type(peeked, float)

assert_type(options(1, flag=True), list[str])
options(1, True)  # error
assert_type(options.store.keys(), list[str])

assert_type(generic([1, 2]), int)
assert_type(generic(["a"]), str)


async def use() -> None:
    assert_type(await coroutine(1), dict[str, int])
    assert_type(await coroutine.invalidate(1), bool)
    assert_type(await coroutine.invalidate_all(), None)
    assert_type(await coroutine.refresh(1), dict[str, int])
    assert_type(await coroutine.ttl_left(1), float | None)
    assert_type(await coroutine.set({"x": 1}, 1), None)
    found = await coroutine.peek(1)
    if found is not MISSING:
        assert_type(found, dict[str, int])
    await coroutine.set("text", 1)  # error
    await coroutine("1")  # error


class Base:
    @cache_aside(ttl=5)
    def method(self, x: int) -> str:
        return str(x)

    @cache_aside
    async def amethod(self, x: int) -> str:
        return str(x)

    @cache_aside
    @classmethod
    def outer(cls, x: int) -> str:
        return cls.__name__

    @classmethod
    @cache_aside
    def inner(cls, x: int) -> str:
        return cls.__name__

    @cache_aside
    @staticmethod
    def static_outer(x: int) -> str:
        return str(x)

    @staticmethod
    @cache_aside
    def static_inner(x: int) -> str:
        return str(x)


class Child(Base):
    def other(self) -> str:
        return super().method(1)


base = Base()
assert_type(base.method(1), str)
assert_type(Base.method(base, 1), str)  # error: mypy
assert_type(base.method.invalidate(1), bool)
assert_type(base.method.key_for(x=1), str)
assert_type(Child().method(1), str)
base.method("1")  # error
base.method.invalidate("1")  # error
assert_type(Base.outer(1), str)
assert_type(base.outer(1), str)
assert_type(Child.outer.invalidate(1), bool)
assert_type(Base.inner(1), str)
assert_type(Base.static_outer(1), str)  # error: mypy
assert_type(Base.static_inner(1), str)  # error: mypy
assert_type(Base.static_inner.invalidate(1), bool)  # error: mypy
assert_type(base.static_inner(1), str)  # error: mypy
assert_type(base.static_outer.invalidate(1), bool)  # error: mypy


async def use_methods() -> None:
    assert_type(await base.amethod(1), str)
    assert_type(await base.amethod.invalidate(1), bool)


cache_aside(60)  # error
cache_aside(ttl="60")  # error
cache_aside(no_such_option=1)  # error


# Functions of many ids.


@cache_aside_many
def many(ids: Sequence[int], lang: str = "en") -> dict[int, str]:
    return {each: str(each) for each in ids}


@cache_aside_many(ttl=60)
async def amany(ids: Iterable[int], *, lang: str) -> Mapping[int, str]:
    return {each: str(each) for each in ids}


@cache_aside_many(ids="ids")
def many_of(tenant: str, ids: list[int]) -> dict[int, str]:
    return {}


assert_type(many([1], lang="no"), dict[int, str])
assert_type(many.invalidate(1, "no"), bool)
assert_type(many.invalidate_many([1]), int)
assert_type(many.refresh([1]), dict[int, str])
assert_type(many.key_for(1), str)
assert_type(many.ttl_left(1), float | None)
assert_type(many.set("a", 1), None)
many(1)  # error
many.invalidate("1")  # error
many.set(1, 1)  # error
many.invalidate(1, 2)  # error
peeked_id = many.peek(1)
if peeked_id is not MISSING:
    assert_type(peeked_id, str)
assert_type(many_of("a", [1]), dict[int, str])
many_of(1, [1])  # error
many_of.invalidate("a", 7)


async def use_many() -> None:
    assert_type(await amany([1], lang="no"), Mapping[int, str])
    assert_type(await amany.invalidate(1, lang="no"), bool)
    assert_type(await amany.invalidate_many([1], lang="no"), int)
    assert_type(await amany.refresh([1], lang="no"), Mapping[int, str])
    assert_type(await amany.set("a", 1, lang="no"), None)
    assert_type(amany.key_for(1, lang="no"), str)
    await amany.invalidate("1", lang="no")  # error


class Shop:
    @cache_aside_many(ttl=5)
    def method(self, ids: Sequence[int]) -> dict[int, str]:
        return {}


shop = Shop()
assert_type(shop.method([1]), dict[int, str])
assert_type(shop.method.invalidate(1), bool)
shop.method.invalidate("1")  # error
cache_aside_many(60)  # error


configure()
configure("memory://", {"a": MemoryStore(), "b": "memory://"}, "app:", timedelta(minutes=1))
assert_type(configure(default=NullStore(), stores={"a": "null://"}, prefix="app:", ttl=1.5), None)
configure(default=["memory://"])  # error
configure(ttl="60")  # error
configure(stores=["memory://"])  # error

with disabled(), override("a"), override(MemoryStore()):
    assert_type(bare(1), float)
override(1)  # error


@disabled
def off(x: int) -> str:
    return str(x)


@disabled()
async def aoff(x: int) -> str:
    return str(x)


@override(MemoryStore())
def other(x: int) -> str:
    return str(x)


assert_type(off(1), str)
assert_type(other(x=1), str)
off("1")  # error
other("1")  # error


async def use_switched() -> None:
    assert_type(await aoff(1), str)
    assert_type(await aclose(), None)


assert_type(close(), None)


# Writers.


@invalidates(bare, call=lambda x: (x,))
def writer(x: int) -> str:
    return str(x)


@invalidates(tags=("t:{x}",))
async def awriter(x: int) -> str:
    return str(x)


class Writers:
    @invalidates(many, call=lambda self, x: ([x],))
    def method(self, x: int) -> str:
        return str(x)


async def use_writers() -> None:
    assert_type(await awriter(1), str)


assert_type(writer(1), str)
assert_type(Writers().method(1), str)
writer("1")  # error
Writers().method("1")  # error
invalidates(bare, call=7)  # error
