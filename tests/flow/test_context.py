"""Context variables: a load sees its own caller's, and what it sets stays where Python would leave it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import subprocess
import sys

import pytest

from memo import drivers, flight
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


FINALIZER = """
import contextvars, gc, itertools
from memo import MemoryStore, cache_aside

variables = [contextvars.ContextVar(f"v{number}", default=0) for number in range(40)]
for variable in variables:
    variable.set(1)
store = MemoryStore(cleanup_interval=None)
of_a_finalizer = cache_aside(store=store)(lambda x: x)
numbers = itertools.count()
depth = 0

class Dying:
    def __init__(self):
        self.cycle = self
    def __del__(self):
        global depth
        if depth == 0:
            depth = 1
            of_a_finalizer(next(numbers))
            depth = 0

@cache_aside(store=store)
def load(x):
    Dying()
    variables[x % 40].set(x)
    return x

for threshold in range(1, 40):
    gc.set_threshold(threshold)
    for x in range(200):
        Dying()
        load((threshold, x).__hash__())
        Dying()
gc.set_threshold(0)
assert next(numbers) > 1_000
print("fine")
"""


def test_a_finalizer_may_call_a_cached_function_while_a_context_variable_is_being_set():
    """Up to Python 3.11 the collector may run it in the middle of that; the interpreter crashed."""
    done = subprocess.run([sys.executable, "-c", FINALIZER], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr


def test_a_collection_runs_no_python_code_of_memo():
    """A Ctrl-C that arrived in it would be lost: Python prints what a callback raises, and goes on."""
    seen = []
    sys.setprofile(lambda frame, event, arg: seen.append((event, frame.f_code.co_filename)))
    try:
        gc.collect()
    finally:
        sys.setprofile(None)
    assert not [name for event, name in seen if event == "call" and f"{os.sep}memo{os.sep}" in name]
    assert not flight.collecting()


@pytest.mark.parametrize("mine", [True, False])
def test_a_load_in_the_thread_that_collects_is_outside_of_the_chain_of_loads(cached, monkeypatch, mine):
    seen = []
    f = cached(lambda x: seen.append(inside.get()))
    monkeypatch.setattr(flight, "phase", {flight.STARTED})
    monkeypatch.setattr(drivers, "phase", {flight.STARTED})
    monkeypatch.setitem(flight._phases, "start", own := object())
    monkeypatch.setattr(flight._here, "start", own if mine else object(), raising=False)
    f(7)
    assert (seen[0] is None) is mine
    assert inside.get() is None
