"""Stale windows (RFC 5861): what is served after the ttl, what runs behind it, and what is never served again."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from datetime import timedelta

import pytest

from memo import MISSING, MemoryStore, OptionError, cache_aside, drivers
from memo.background import background
from memo.entry import Life
from memo.policy import Policy
from memo.stores.tables import Table

PATIENCE = 20.0
tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class Source:
    """What is cached: its answer changes with every call, and it can be made to fail or to wait."""

    def __init__(self):
        self.calls = 0
        self.error = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.seen = []

    def answer(self, x=None):
        self.calls += 1
        mine = self.calls
        self.seen.append((threading.current_thread().name, tenant.get()))
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return mine

    async def aanswer(self, x=None):
        self.calls += 1
        mine = self.calls
        self.seen.append(("task", tenant.get()))
        self.entered.release()
        while not self.gate.is_set():
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return mine


@pytest.fixture(autouse=True)
def _no_refresh_outlives_a_test():
    yield
    assert background.drain(PATIENCE)


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock, cleanup_interval=None)


class Side:
    """One face for a sync and an async function: calls, and waiting until the refreshes behind them are over."""

    def __init__(self, kind, source, store, options):
        self.kind = kind
        self.loop = asyncio.new_event_loop() if kind == "async" else None
        function = source.answer if kind == "sync" else source.aanswer
        if kind == "sync":

            def load(x):
                return function(x)

        else:

            async def load(x):
                return await function(x)

        self.fn = cache_aside(**{"store": store, "ttl": 10, **options})(load)

    def run(self, result):
        return result if self.loop is None else self.loop.run_until_complete(result)

    def __call__(self, x=7):
        return self.run(self.fn(x))

    def settle(self):
        if self.loop is None:
            assert background.drain(PATIENCE)
        else:

            async def idle():
                me = asyncio.current_task()
                while others := asyncio.all_tasks() - {me}:
                    await asyncio.wait(others)

            self.loop.run_until_complete(idle())


@pytest.fixture(params=["sync", "async"])
def side(request, source, store):
    made = []

    def make(**options):
        made.append(Side(request.param, source, store, options))
        return made[-1]

    yield make
    for each in made:
        each.settle()
        if each.loop is not None:
            each.loop.close()


def counted(side):
    stats = side.fn.stats()
    return stats.hits, stats.misses, stats.stale_hits, stats.refreshes


def test_a_stale_result_is_served_at_once_and_refreshed_behind(side, source, clock):
    f = side(stale_while_revalidate=5)
    assert f() == 1
    clock.advance(10)
    assert f() == 1
    f.settle()
    assert source.calls == 2
    assert f() == 2
    assert counted(f) == (2, 1, 1, 1)
    clock.advance(9.9)
    assert f() == 2
    assert source.calls == 2


@pytest.mark.parametrize(("after", "served"), [(9.9, 1), (10, 1), (14.9, 1), (15, 2), (60, 2)])
def test_the_window_ends_at_its_boundary(side, source, clock, after, served):
    f = side(stale_while_revalidate=5)
    f()
    clock.advance(after)
    assert f() == served


def test_no_more_than_one_refresh_of_a_key_at_a_time(side, source, clock):
    f = side(stale_while_revalidate=5)
    f()
    clock.advance(11)
    source.gate.clear()
    assert [f(), f(), f()] == [1, 1, 1]
    source.gate.set()
    f.settle()
    assert source.calls == 2
    assert counted(f) == (3, 1, 3, 1)


def test_a_caller_who_is_served_stale_while_another_loads_has_nothing_loaded_beside(source, store, clock):
    f = Side("sync", source, store, {"stale_while_revalidate": 5})
    assert f() == 1
    clock.advance(11)
    source.gate.clear()
    source.entered.acquire()
    other = threading.Thread(target=f.fn.refresh, args=(7,), daemon=True)
    other.start()
    assert source.entered.acquire(timeout=PATIENCE)
    assert f() == 1
    f.settle()
    assert source.calls == 2
    source.gate.set()
    other.join(PATIENCE)
    assert f() == 2
    assert source.calls == 2


def test_each_key_has_a_refresh_of_its_own(side, source, clock):
    f = side(stale_while_revalidate=5)
    assert [f(1), f(2)] == [1, 2]
    clock.advance(11)
    assert [f(1), f(2)] == [1, 2]
    f.settle()
    assert sorted([f(1), f(2)]) == [3, 4]


def test_a_refresh_that_fails_is_counted_and_stale_is_served_to_the_windows_end(side, source, clock, caplog):
    f = side(stale_while_revalidate=5)
    f()
    clock.advance(11)
    source.error = OSError("down")
    for _ in range(3):
        assert f() == 1
        f.settle()
    assert f.fn.stats().errors == {"refresh": 3}
    assert len(caplog.records) == 1
    clock.advance(4)
    with pytest.raises(OSError, match="down"):
        f()
    source.error = None
    assert f() == 6


def test_stale_is_no_value_for_the_store_and_the_helpers(side, source, store, clock):
    f = side(stale_while_revalidate=5, stale_if_error=8)
    f()
    key = f.fn.key_for(7)
    clock.advance(10)
    assert store.get(key) is None
    assert not store.exists(key)
    assert store.ttl(key) is None
    assert store.keys() == []
    assert f.run(f.fn.peek(7)) is MISSING
    assert f.run(f.fn.ttl_left(7)) is None
    assert store.cleanup() == 0
    assert f() == 1


def test_an_entry_is_swept_when_it_is_kept_no_more(side, store, clock):
    f = side(stale_while_revalidate=5, stale_if_error=8)
    f()
    clock.advance(17.9)
    assert (store.cleanup(), store.stats().size) == (0, 1)
    clock.advance(0.1)
    assert (store.cleanup(), store.stats().size) == (1, 0)


def test_an_old_result_is_returned_in_the_place_of_an_error(side, source, clock, caplog):
    f = side(stale_if_error=5)
    f()
    clock.advance(10)
    source.error = OSError("down")
    assert f() == 1
    assert counted(f) == (0, 2, 1, 0)
    assert f.fn.stats().errors == {"load": 1}
    source.error = None
    assert f() == 3
    clock.advance(10)
    source.error = OSError("down")
    clock.advance(5)
    with pytest.raises(OSError, match="down"):
        f()


def test_without_an_old_result_the_error_is_the_callers(side, source):
    f = side(stale_if_error=5)
    source.error = OSError("down")
    with pytest.raises(OSError, match="down"):
        f()
    assert counted(f) == (0, 1, 0, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_error_to_cover_up(source, store, clock, error):
    f = Side("sync", source, store, {"stale_if_error": 5})
    f()
    clock.advance(10)
    source.error = error()
    with pytest.raises(error):
        f()


def test_an_explicit_refresh_says_that_it_failed(side, source, clock):
    f = side(stale_if_error=5, stale_while_revalidate=5)
    f()
    clock.advance(10)
    source.error = OSError("down")
    with pytest.raises(OSError, match="down"):
        f.run(f.fn.refresh(7))
    assert f() == 1


def test_both_windows_follow_each_other(side, source, clock):
    f = side(stale_while_revalidate=2, stale_if_error=5)
    f()
    clock.advance(11)
    source.error = OSError("down")
    assert f() == 1  # served, and a refresh fails behind it
    f.settle()
    clock.advance(2)
    assert f() == 1  # loaded, and served in the place of the error
    assert counted(f) == (1, 2, 2, 1)


@pytest.mark.parametrize("how", ["invalidate", "invalidate_all", "tag", "clear", "delete", "pattern", "delete_many"])
def test_what_was_invalidated_is_not_served_stale(side, source, store, clock, how):
    f = side(stale_while_revalidate=5, stale_if_error=8, tags=("t",))
    f()
    clock.advance(11)
    key = f.fn.key_for(7)
    {
        "invalidate": lambda: f.run(f.fn.invalidate(7)),
        "invalidate_all": lambda: f.run(f.fn.invalidate_all()),
        "tag": lambda: store.invalidate_tags("t"),
        "clear": store.clear,
        "delete": lambda: store.delete(key),
        "pattern": lambda: store.delete_pattern("*"),
        "delete_many": lambda: store.delete_many([key]),
    }[how]()
    source.error = OSError("down")
    with pytest.raises(OSError, match="down"):
        f()
    source.error = None
    assert f() == 3


@pytest.mark.parametrize("how", ["invalidate", "tag", "clear"])
def test_refresh_finishing_after_an_invalidation_stores_nothing(source, store, clock, how):
    f = Side("sync", source, store, {"stale_while_revalidate": 5, "tags": ("t",)})
    f()
    clock.advance(11)
    source.gate.clear()
    source.entered.acquire()
    assert f() == 1
    assert source.entered.acquire(timeout=PATIENCE)
    {"invalidate": lambda: f.fn.invalidate(7), "tag": lambda: store.invalidate_tags("t"), "clear": store.clear}[how]()
    source.gate.set()
    f.settle()
    assert f.fn.peek(7) is MISSING
    assert f.fn.stats().refused_fills == 1
    assert f() == 3


async def test_refresh_finishing_after_an_invalidation_stores_nothing_async(source, store, clock):
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(source.aanswer)
    await f(7)
    clock.advance(11)
    source.gate.clear()
    assert await f(7) == 1
    while source.calls < 2:
        await asyncio.sleep(0)
    await f.invalidate(7)
    source.gate.set()
    while drivers._loads:
        await asyncio.sleep(0)
    assert await f.peek(7) is MISSING
    assert f.stats().refused_fills == 1


def test_refresh_finishing_after_a_newer_set_does_not_overwrite_it(source, store, clock):
    f = Side("sync", source, store, {"stale_while_revalidate": 5})
    f()
    clock.advance(11)
    source.gate.clear()
    source.entered.acquire()
    f()
    assert source.entered.acquire(timeout=PATIENCE)
    f.fn.set("newer", 7)
    source.gate.set()
    f.settle()
    assert f() == "newer"


def test_an_invalidation_during_a_failing_load_leaves_nothing_to_serve(side, source, clock):
    """1. the load begins   2. the key is invalidated   3. the function raises: the old result is not served."""
    f = side(stale_if_error=5)
    f()
    clock.advance(10)

    def invalidated(x):
        f.fn._self_memoized.space.remove(f.fn._self_memoized.place((7,), {}, False)[1])
        raise OSError("down")

    async def ainvalidated(x):
        invalidated(x)

    plan = f.fn._self_memoized.plan
    new = invalidated if f.loop is None else ainvalidated
    f.fn._self_memoized.plan = type(plan)(**{**vars(plan), "function": new})
    with pytest.raises(OSError, match="down"):
        f()


def test_followers_of_a_load_that_fails_are_served_the_old_result_too(source, store, clock):
    f = Side("sync", source, store, {"stale_if_error": 5})
    f()
    clock.advance(10)
    source.error = OSError("down")
    source.gate.clear()
    source.entered.acquire()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(f()), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert source.entered.acquire(timeout=PATIENCE)
    space = f.fn._self_memoized.space
    while sum(len(flight.wakers) for flight in list(space.flights.values())) < 2:
        threading.Event().wait(0.0005)
    source.gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [1, 1, 1]
    assert source.calls == 2
    assert f.fn.stats().stale_hits == 3


async def test_followers_of_a_load_that_fails_are_served_the_old_result_too_async(source, store, clock):
    f = cache_aside(store=store, ttl=10, stale_if_error=5)(source.aanswer)
    await f(7)
    clock.advance(10)
    source.error = OSError("down")
    assert await asyncio.gather(f(7), f(7), f(7)) == [1, 1, 1]
    assert source.calls == 2
    assert f.stats().stale_hits == 3


@pytest.mark.parametrize(("seconds", "stale_hits"), [(6, 0), (11, 1)], ids=["due early", "stale"])
def test_who_looks_again_after_a_wait_has_what_is_due_refreshed(store, clock, monkeypatch, seconds, stale_hits):
    """1. A loads   2. B waits for A   3. another sets the result, and it is due   4. A is interrupted   5. B looks."""
    monkeypatch.setattr(Policy, "life", lambda self, *_: Life(10.0, 4.0, 5.0, 5.0))
    results, entered, gate = iter([asyncio.CancelledError(), "refreshed"]), threading.Event(), threading.Event()
    answers = []

    @cache_aside(store=store, ttl=10, stale_while_revalidate=5, early_refresh=1)
    def f(x):
        entered.set()
        assert gate.wait(PATIENCE)
        result = next(results)
        if isinstance(result, BaseException):
            raise result
        return result

    def call():
        try:
            answers.append(f(7))
        except asyncio.CancelledError:
            answers.append("interrupted")

    leader = threading.Thread(target=call, daemon=True)
    leader.start()
    assert entered.wait(PATIENCE)
    follower = threading.Thread(target=call, daemon=True)
    follower.start()
    while f.stats().waits < 1:
        threading.Event().wait(0.0005)
    f.set("set meanwhile", 7)
    clock.advance(seconds)
    gate.set()
    for thread in leader, follower:
        thread.join(PATIENCE)
    assert sorted(answers) == ["interrupted", "set meanwhile"]
    assert background.drain(PATIENCE)
    assert f(7) == "refreshed"
    assert (f.stats().stale_hits, f.stats().refreshes) == (stale_hits, 1)


@pytest.mark.parametrize(("seconds", "stale_hits"), [(6, 0), (11, 1)], ids=["due early", "stale"])
async def test_who_looks_again_after_a_wait_has_what_is_due_refreshed_async(
    store, clock, monkeypatch, seconds, stale_hits
):
    monkeypatch.setattr(Policy, "life", lambda self, *_: Life(10.0, 4.0, 5.0, 5.0))
    results, gate = iter([asyncio.CancelledError(), "refreshed"]), asyncio.Event()

    @cache_aside(store=store, ttl=10, stale_while_revalidate=5, early_refresh=1)
    async def f(x):
        await gate.wait()
        result = next(results)
        if isinstance(result, BaseException):
            raise result
        return result

    calls = [asyncio.create_task(f(7)) for _ in range(2)]
    while f.stats().waits < 1:
        await asyncio.sleep(0)
    await f.set("set meanwhile", 7)
    clock.advance(seconds)
    gate.set()
    (interrupted, answer) = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(interrupted, asyncio.CancelledError)
    assert answer == "set meanwhile"
    await drivers.drain_async()
    assert await f(7) == "refreshed"
    assert (f.stats().stale_hits, f.stats().refreshes) == (stale_hits, 1)


def test_a_background_refresh_runs_in_an_empty_context(source, store, clock):
    f = Side("sync", source, store, {"stale_while_revalidate": 5})
    f()
    clock.advance(11)
    contextvars.copy_context().run(lambda: (tenant.set("one"), f()))
    f.settle()
    assert source.seen[1] == ("memo-refresh", "nobody")


async def test_a_background_refresh_runs_in_an_empty_context_async(source, store, clock):
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(source.aanswer)
    await f(7)
    clock.advance(11)
    tenant.set("one")
    assert await f(7) == 1
    while drivers._loads:
        await asyncio.sleep(0)
    assert source.seen[1] == ("task", "nobody")


async def test_a_caller_past_the_window_joins_the_refresh_that_is_under_way(source, store, clock):
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(source.aanswer)
    await f(7)
    clock.advance(14)
    source.gate.clear()
    assert await f(7) == 1
    while source.calls < 2:
        await asyncio.sleep(0)
    clock.advance(1)
    waiting = asyncio.create_task(f(7))
    while f.stats().waits < 1:
        await asyncio.sleep(0)
    source.gate.set()
    assert await waiting == 2
    assert source.calls == 2


async def test_the_callers_end_does_not_end_a_refresh(source, store, clock):
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(source.aanswer)
    await f(7)
    clock.advance(11)
    source.gate.clear()
    caller = asyncio.create_task(f(7))
    assert await caller == 1
    caller.cancel()
    source.gate.set()
    while drivers._loads:
        await asyncio.sleep(0)
    assert await f(7) == 2


def test_a_loop_that_ends_during_a_refresh_leaves_no_mark(source, store, clock):
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(source.aanswer)
    asyncio.run(f(7))
    clock.advance(11)
    source.gate.clear()
    asyncio.run(f(7))  # cancels the refresh at its end
    assert f.stats().errors == {}
    source.gate.set()

    async def again():
        assert await f(7) == 1
        while drivers._loads:
            await asyncio.sleep(0)
        return await f(7)

    assert asyncio.run(again()) == source.calls


def test_a_refresh_on_a_loop_that_was_closed_is_replaced(source, store, clock):
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(source.aanswer)
    asyncio.run(f(7))
    clock.advance(11)
    memoized = f._self_memoized
    loop = asyncio.new_event_loop()
    key = memoized.place((7,), {}, False)[1]

    async def make():
        return memoized._flight(memoized.space, key, (7,), {})

    memoized.space.flights[key] = dead = loop.run_until_complete(make())
    loop.close()
    assert dead.dead()

    async def again():
        assert await f(7) == 1
        while drivers._loads:
            await asyncio.sleep(0)

    asyncio.run(again())
    assert memoized.space.flights == {}
    assert source.calls == 2


async def test_too_many_refreshes_at_once_are_left_to_later_calls(source, store, clock, monkeypatch):
    monkeypatch.setattr(drivers, "LONGEST", 2)
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(source.aanswer)
    for x in range(4):
        await f(x)
    clock.advance(11)
    while drivers._loads:
        await asyncio.sleep(0)
    source.gate.clear()
    for x in range(4):
        await f(x)
    assert len(drivers._loads) == f.stats().refreshes == 2
    source.gate.set()
    while drivers._loads:
        await asyncio.sleep(0)


def test_loops_that_were_closed_during_their_refreshes_leave_room_for_others(store, clock, monkeypatch):
    monkeypatch.setattr(drivers, "LONGEST", 2)
    held = False

    @cache_aside(store=store, ttl=10, stale_while_revalidate=5)
    async def f(x):
        if held:
            await asyncio.Event().wait()
        return x

    async def all_of(*numbers):
        for x in numbers:
            await f(x)
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(all_of(1, 2, 3))
    clock.advance(11)
    held = True
    for x in 1, 2:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(all_of(x))
        loop.close()
    held = False
    asyncio.run(all_of(3))
    assert f.stats().refreshes == 3
    assert not drivers._renewals


def test_methods_have_windows_too(source, store, clock):
    class Users:
        @cache_aside(store=store, ttl=10, stale_while_revalidate=5)
        def get(self, x):
            return source.answer()

    users = Users()
    assert users.get(7) == 1
    clock.advance(11)
    assert users.get(7) == 1
    background.drain(PATIENCE)
    assert users.get(7) == 2


def test_a_result_that_is_kept_no_more_takes_the_old_one_with_it(side, clock):
    """A refresh whose result is None: the entry that it would have replaced is removed."""
    results = [1, None, 3]
    f = side(stale_while_revalidate=5)
    plan = f.fn._self_memoized.plan

    def load(x):
        return results.pop(0)

    async def aload(x):
        return results.pop(0)

    f.fn._self_memoized.plan = type(plan)(**{**vars(plan), "function": load if f.loop is None else aload})
    assert f() == 1
    clock.advance(11)
    assert f() == 1
    f.settle()
    assert f() == 3


def test_where_the_driver_reads_the_windows_are_the_same(side, source, clock, monkeypatch):
    """As over a store that blocks: the algorithm makes the first read."""
    monkeypatch.setattr(Table, "local", False)
    f = side(stale_while_revalidate=5, stale_if_error=8)
    assert [f([1]), f([1])] == [1, 1]
    clock.advance(11)
    assert f([1]) == 1
    f.settle()
    assert f([1]) == 2
    clock.advance(15)
    source.error = OSError("down")
    assert f([1]) == 2
    assert counted(f) == (3, 2, 2, 1)


def test_a_tag_that_cannot_be_made_costs_the_refresh_only(side, clock):
    class User:
        __cache_key__ = staticmethod(lambda: "u")
        name = "ann"

    f = side(stale_while_revalidate=5, tags=("{x.name}",))
    user = User()
    f(user)
    clock.advance(11)
    del User.name
    assert f(user) == 1
    assert f.fn.stats().errors == {"refresh": 1}


def test_a_new_ttl_moves_the_windows(side, store, source, clock):
    f = side(stale_while_revalidate=5)
    f()
    assert store.expire(f.fn.key_for(7), 20)
    clock.advance(24.9)
    assert f() == 1
    f.settle()
    assert store.expire(f.fn.key_for(7), None)
    clock.advance(1_000)
    assert f() == 2
    assert store.expire(f.fn.key_for(7), 3)
    clock.advance(3)
    assert f() == 3


def test_windows_survive_a_save_and_a_load(tmp_path, source, store, clock):
    def make(where):
        options = {"ttl": 10, "stale_while_revalidate": 5, "stale_if_error": 8, "namespace": "saved"}
        return cache_aside(store=where, **options)(lambda x: source.answer())

    f = make(store)
    f(7)
    clock.advance(4)
    store.save(tmp_path / "file")
    other = MemoryStore(clock=clock, cleanup_interval=None)
    g = make(other)
    other.load(tmp_path / "file")
    clock.advance(10.9)
    assert g(7) == 1
    background.drain(PATIENCE)
    assert g(7) == 2


def test_a_set_value_has_the_windows_of_the_options(side, clock):
    f = side(stale_while_revalidate=5)
    f.run(f.fn.set("set", 7))
    clock.advance(14.9)
    assert f() == "set"


def test_windows_are_durations_like_all_others(source, clock):
    f = cache_aside(store=MemoryStore(clock=clock), ttl=10, stale_if_error=timedelta(seconds=5))(source.answer)
    f()
    clock.advance(14)
    source.error = OSError()
    assert f() == 1


@pytest.mark.parametrize("option", ["stale_while_revalidate", "stale_if_error"])
@pytest.mark.parametrize("value", [-1, "5", None, True, False, float("nan"), float("inf")], ids=repr)
def test_a_window_that_is_no_duration_is_refused_at_decoration(option, value):
    with pytest.raises(OptionError, match=f"{option}="):
        cache_aside(ttl=10, **{option: value})(lambda x: x)


@pytest.mark.parametrize("option", ["jitter", "early_refresh", "stale_while_revalidate", "stale_if_error"])
def test_what_never_ends_has_no_window(option):
    with pytest.raises(OptionError, match="ttl=None"):
        cache_aside(ttl=None, **{option: 1})(lambda x: x)


@pytest.mark.parametrize("option", ["jitter", "early_refresh"])
@pytest.mark.parametrize("value", [-0.1, 1_001, "1", None, True, float("nan"), float("inf")], ids=repr)
def test_a_share_that_is_none_is_refused_at_decoration(option, value):
    with pytest.raises(OptionError, match=f"{option}="):
        cache_aside(ttl=10, **{option: value})(lambda x: x)


def test_a_store_whose_default_never_ends_has_no_windows(side, clock):
    """`ttl=DEFAULT` is only known at the call; then there is nothing to be stale."""
    f = side(stale_while_revalidate=5, ttl=lambda value: None)
    f()
    clock.advance(1_000_000)
    assert f() == 1


def test_the_stores_default_ttl_has_windows(source, clock):
    store = MemoryStore(default_ttl=10, clock=clock, cleanup_interval=None)
    f = cache_aside(store=store, stale_if_error=5)(source.answer)
    f()
    clock.advance(14)
    source.error = OSError()
    assert f() == 1


async def test_a_refresh_whose_task_cannot_be_made_leaves_no_flight(source, store, clock, monkeypatch):
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(source.aanswer)
    await f(7)
    clock.advance(11)
    while drivers._loads:
        await asyncio.sleep(0)

    def fail(load, name):
        raise RuntimeError("the loop is about to close")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_task", fail)
        assert await f(7) == 1
    assert f._self_memoized.space.flights == {}
    assert (f.stats().errors, f.stats().refreshes) == ({"refresh": 1}, 0)
    assert await f(7) == 1
    while drivers._loads:
        await asyncio.sleep(0)
    assert await f(7) == 2


def test_what_is_due_early_is_refreshed_where_the_driver_reads_too(side, clock, monkeypatch):
    monkeypatch.setattr(Table, "local", False)
    monkeypatch.setattr(Policy, "life", lambda self, *_: Life(10.0, 4.0))
    f = side(early_refresh=1)
    assert f([1]) == 1
    clock.advance(6)
    assert f([1]) == 1
    f.settle()
    assert f([1]) == 2
    assert counted(f) == (2, 1, 0, 1)
