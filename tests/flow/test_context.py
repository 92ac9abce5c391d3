"""Context variables: a load sees its own caller's, and what it sets stays where Python would leave it."""

from __future__ import annotations

import asyncio
import contextvars

from memo.flight import inside

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def test_a_load_sees_its_callers_context(cached):
    f = cached(lambda x: tenant.get())
    context = contextvars.copy_context()
    context.run(tenant.set, "one")
    assert context.run(f, 7) == "one"
    assert f(7) == "one"
    assert f(8) == "nobody"


def test_two_tenants_whose_key_says_so_never_meet(cached):
    f = cached(lambda who, x: (who, tenant.get()), key="{who}:{x}")
    for who in ("one", "two"):
        context = contextvars.copy_context()
        context.run(tenant.set, who)
        assert context.run(f, who, 7) == (who, who)
    assert f("one", 7) == ("one", "one")


def test_what_a_load_sets_its_caller_sees(cached):
    """As if it had called the function itself."""

    def load(x):
        tenant.set("set by the load")
        return x

    f = cached(load)
    context = contextvars.copy_context()
    context.run(f, 7)
    assert context[tenant] == "set by the load"


def test_a_load_is_inside_its_flight_and_its_caller_is_not(cached):
    seen = []
    g = cached(lambda x: seen.append(inside.get()) or 0)
    f = cached(lambda x: seen.append(inside.get()) or g(x))
    f(7)
    outer, inner = seen
    assert inner.parent is outer
    assert outer.parent is None
    assert inside.get() is None


async def test_a_task_of_a_load_sees_its_callers_context(cached):
    async def load(x):
        return tenant.get()

    f = cached(load)

    async def ask(who):
        tenant.set(who)
        return await f(who)

    assert await asyncio.gather(*[asyncio.create_task(ask(who)) for who in ("one", "two")]) == ["one", "two"]


async def test_an_async_load_runs_in_a_task_of_its_own(cached):
    seen = []

    async def load(x):
        seen.append(asyncio.current_task())
        tenant.set("set by the load")
        return x

    f = cached(load)
    before = tenant.get()
    assert await f(7) == 7
    assert seen[0] is not asyncio.current_task()
    assert seen[0].get_name().startswith("memo load: ")
    assert tenant.get() == before
    assert inside.get() is None


async def test_an_async_load_without_single_flight_runs_in_its_callers_task(cached):
    async def load(x):
        return asyncio.current_task()

    f = cached(load, single_flight=None)
    assert await f(7) is asyncio.current_task()
    assert inside.get() is None
