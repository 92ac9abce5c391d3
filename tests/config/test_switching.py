"""`disabled` and `override`: process-wide, nested and overlapping, for every kind of function, and without a trace."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memo import MISSING, MemoryStore, NullStore, OptionError, cache_aside, configure, disabled, override, places
from memo.switching import Switch

SAFETY = 30


def shops() -> Any:
    """Return a new class with one of each kind of method, that nobody has called yet; every load makes a new object."""

    class Shop:
        @cache_aside
        def total(self, x: int) -> object:
            return object()

        @cache_aside
        async def atotal(self, x: int) -> object:
            return object()

        @cache_aside
        @classmethod
        def outer(cls, x: int) -> object:
            return object()

        @classmethod
        @cache_aside
        def inner(cls, x: int) -> object:
            return object()

        @cache_aside
        @staticmethod
        def static(x: int) -> object:
            return object()

        @cache_aside(key="keyed:{x}")
        def keyed(self, x: int) -> object:
            return object()

        @cache_aside(ttl=60, stale_while_revalidate=5)
        def windowed(self, x: int) -> object:
            return object()

        @cache_aside(ignore=("self",))
        def shared(self, x: int) -> object:
            return object()

    return Shop


class Named:
    """Its instances count by value, and its method has no parameter for them."""

    def __cache_key__(self) -> str:
        return "named"


KINDS = ("total", "atotal", "outer", "inner", "static", "keyed", "windowed", "shared")


def function() -> Any:
    return cache_aside(lambda x, y=0: object())


@pytest.fixture(params=["function", "async function", "unbound", "loose", *KINDS])
def call(request: pytest.FixtureRequest) -> Any:
    """One call of a kind of function, made each time by looking it up anew, as programs do."""
    kind = request.param
    shop = shops()()
    if kind == "function":
        fn = function()

        def look() -> Any:
            return fn

    elif kind == "async function":

        @cache_aside
        async def afn(x: int) -> object:
            return object()

        def look() -> Any:
            return afn

    elif kind == "unbound":

        def look() -> Any:
            return functools.partial(type(shop).total, shop)

    elif kind == "loose":

        class Loose(Named):
            @cache_aside
            def loose(*args: Any) -> object:
                return object()

        def look() -> Any:
            return Loose().loose

    elif kind in ("outer", "inner"):

        def look() -> Any:
            return getattr(type(shop), kind)

    else:

        def look() -> Any:
            return getattr(shop, kind)

    loop = asyncio.new_event_loop()

    def called(x: int = 1, held: Any = None) -> Any:
        result = (held or look())(x)
        return loop.run_until_complete(result) if inspect.iscoroutine(result) else result

    called.look = look  # type: ignore[attr-defined]
    yield called
    loop.close()


def memoized_of(thing: Any) -> Any:
    while isinstance(thing, functools.partial) and not hasattr(thing, "_memoized"):
        thing = thing.func
    return thing._self_memoized if hasattr(thing, "_self_memoized") else thing._memoized


def stats_of(thing: Any) -> tuple[int, int]:
    counted = memoized_of(thing).stats()
    return counted.hits, counted.misses


def code_of(thing: Any) -> tuple[Any, Any]:
    """What is installed for a function's calls and for those of bound methods that are made now."""
    wrapper = memoized_of(thing).wrapper()
    bound = thing.func if hasattr(thing, "_memoized") else None
    return type(wrapper).__call__, bound


# -- disabled ----------------------------------------------------------------------------------------------------------


def test_while_disabled_calls_go_straight_to_the_function(call: Any) -> None:
    kept = call()
    counted, looked = stats_of(call.look()), memoized_of(call.look()).placed().store.stats()
    with disabled():
        assert len({id(result) for result in [call(), call(), call(), kept]}) == 4
        assert stats_of(call.look()) == counted
    assert memoized_of(call.look()).placed().store.stats() == looked
    assert call() is kept
    assert stats_of(call.look()) == (counted[0] + 1, counted[1])


def test_functions_that_were_never_called_are_disabled_too(call: Any) -> None:
    with disabled():
        results = [call() for _ in range(3)]
        assert len({id(result) for result in results}) == 3
    assert call() is call()


def test_functions_that_are_decorated_meanwhile_are_disabled_too() -> None:
    with disabled():
        fn = function()
        assert fn(1) is not fn(1)
    assert fn(1) is fn(1)


def test_bound_methods_of_before_and_meanwhile_do_what_holds_when_they_are_called(call: Any) -> None:
    before = call.look()
    first = call(held=before)
    called = call.look()
    kept = call(held=called)
    with disabled():
        meanwhile = call.look()
        call(held=meanwhile)
        later = call.look()
        for held in before, called, meanwhile, later:
            assert call(held=held) is not call(held=held)
            assert call(held=held) is not kept
    assert first is kept
    for held in before, called, meanwhile, later:
        assert call(held=held) is kept


def test_what_runs_is_the_function_itself_with_the_arguments_as_they_were_given() -> None:
    class Odd:
        """Two of these never share a key, and asking for one is an error."""

        @property
        def __cache_key__(self) -> Any:
            raise RuntimeError("its key was asked for")

    fn: Any = cache_aside(lambda *args, **kwargs: (args, kwargs))
    odd = Odd()
    with disabled():
        assert fn(odd, [1], a=odd) == ((odd, [1]), {"a": odd})
        fn(1)
        assert type(fn).__call__ is fn.__wrapped__
        shop = shops()()
        assert shop.total(odd) is not shop.total(x=odd)
        assert type(type(shop).total).__call__ is type(shop).total.__wrapped__
    with pytest.raises(RuntimeError):
        fn(odd)


def test_while_disabled_no_load_is_shared() -> None:
    entered = threading.Barrier(4)

    @cache_aside
    def together(x: int) -> object:
        entered.wait(SAFETY)  # all are inside at once
        return object()

    results: list[object] = []
    with disabled():
        threads = [threading.Thread(target=lambda: results.append(together(1)), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SAFETY)
    assert len(set(map(id, results))) == 4


def test_recursion_is_the_functions_own() -> None:
    @cache_aside
    def down(x: int, again: bool = True) -> int:
        return down(x, False) if again else x

    with disabled():
        assert down(5) == 5


def test_an_error_is_the_functions_own() -> None:
    error = LookupError("no")

    @cache_aside
    def failing(x: int) -> None:
        raise error

    with disabled(), pytest.raises(LookupError) as caught:
        failing(1)
    assert caught.value is error
    assert failing.stats().misses == 0


def test_helpers_act_on_the_store_while_disabled() -> None:
    store = MemoryStore()
    fn: Any = cache_aside(store=store, tags=("t",))(lambda x: object())
    one, two, three = fn(1), fn(2), fn(3)
    with disabled():
        assert fn.peek(1) is one
        assert fn.store is store
        assert fn.invalidate(1)
        fn.set("given", 2)
        assert fn.ttl_left(3) == float("inf")
        four = fn.refresh(4)
        assert fn(2) != "given"
    assert fn.peek(1) is MISSING
    assert (fn(2), fn(3), fn(4)) == ("given", three, four)
    with disabled():
        store.invalidate_tags("t")
    assert fn(3) is not three
    assert two is not fn(2)


def test_a_helper_that_comes_first_while_disabled_switches_nothing_on() -> None:
    fn = function()
    with disabled():
        assert fn.peek(1) is MISSING
        assert fn(1) is not fn(1)
        fn.set("given", 1)
        assert fn(1) != "given"
    assert fn(1) == "given"
    shop = shops()()
    kept = shop.total(1)
    held = shop.total
    assert held(1) is kept
    with disabled():
        assert held.peek(1) is kept
        assert held(1) is not kept


async def test_async_helpers_act_on_the_store_while_disabled() -> None:
    @cache_aside
    async def afn(x: int) -> object:
        return object()

    kept = await afn(1)
    with disabled():
        assert await afn(1) is not kept
        assert await afn.peek(1) is kept
        assert await afn.invalidate(1)
    assert await afn(1) is not kept


def test_a_load_that_is_under_way_ends_in_its_store_and_is_shared_no_more() -> None:
    begun, go = threading.Event(), threading.Event()

    @cache_aside
    def slow(x: int) -> object:
        if not begun.is_set():
            begun.set()
            assert go.wait(SAFETY)
        return object()

    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(slow(1)), daemon=True)
    thread.start()
    assert begun.wait(SAFETY)
    with disabled():
        assert slow(1) is not None  # does not wait
        go.set()
        thread.join(SAFETY)
        assert slow.peek(1) is results[0]
    assert slow(1) is results[0]


def test_what_is_invalidated_while_disabled_is_not_filled_by_a_load_of_before() -> None:
    begun, go = threading.Event(), threading.Event()

    @cache_aside
    def slow(x: int) -> object:
        begun.set()
        assert go.wait(SAFETY)
        return object()

    thread = threading.Thread(target=slow, args=(1,), daemon=True)
    thread.start()
    assert begun.wait(SAFETY)
    with disabled():
        slow.invalidate(1)
        go.set()
        thread.join(SAFETY)
    assert slow.peek(1) is MISSING


# -- override ----------------------------------------------------------------------------------------------------------


def test_while_overridden_every_function_uses_that_store(call: Any) -> None:
    kept = call()
    held = call.look()
    own = memoized_of(held).placed().store
    store = MemoryStore()
    before = own.stats()
    with override(store):
        other = call()
        assert other is not kept
        assert call() is other
        assert call(held=held) is other
        assert memoized_of(held).placed().store is store
        assert (store.stats().hits, store.stats().misses) == (2, 1)
        assert own.stats() == before
    assert call() is call(held=held) is kept
    assert (store.stats().hits, store.stats().misses) == (2, 1)
    assert own.stats().hits == before.hits + 2
    with override(store):
        assert call() is call(held=held) is other
        assert (store.stats().hits, store.stats().misses) == (4, 1)


@pytest.mark.parametrize("kind", ["object", "name", "url"])
@pytest.mark.parametrize("own", ["default", "memory://?max_size=5", MemoryStore()], ids=["name", "url", "object"])
def test_the_store_is_an_object_a_name_or_a_url(kind: str, own: Any) -> None:
    store = MemoryStore(max_size=7)
    configure(stores={"other": store})
    fn = cache_aside(store=own)(lambda x: object())
    kept = fn(1)
    with override({"object": store, "name": "other", "url": "memory://?max_size=7"}[kind]):
        assert fn(1) is fn(1) is not kept
        assert fn.store.max_size == 7
        assert (fn.store is store) == (kind != "url")
    assert fn(1) is kept


def test_helpers_act_on_the_overriding_store_alone() -> None:
    fn = function()
    kept = fn(1)
    with override(MemoryStore()):
        assert fn.peek(1) is MISSING
        fn.set("given", 1)
        assert fn(1) == "given"
        fn.invalidate_all()
    assert fn(1) is kept


def test_what_is_no_store_is_refused_at_once_and_a_name_that_stands_for_none_by_the_call() -> None:
    for store in (None, 5, "etcd://host", "a b", ["memory://"], function()):
        with pytest.raises(OptionError, match=r"^override\(\): store="):
            override(store)
    fn = function()
    with override("other"), pytest.raises(OptionError, match=r"<lambda>: store='other': no store of that name"):
        fn(1)
    assert fn(1) is fn(1)


def test_a_function_that_a_shared_store_could_not_tell_apart_is_refused_there_alone() -> None:
    class Shared(NullStore):
        shared = True

    fn = function()
    with override(Shared()), pytest.raises(OptionError, match="all lambdas have one name"):
        fn(1)
    assert fn(1) is fn(1)


def test_overrides_are_nested() -> None:
    fn = function()
    one, two = MemoryStore(), MemoryStore()
    kept = fn(1)
    with override(one):
        first = fn(1)
        with override(two):
            second = fn(1)
            with override(one):
                assert fn(1) is first
            assert fn(1) is second
        assert fn(1) is first
    assert fn(1) is kept
    assert len({id(each) for each in (kept, first, second)}) == 3


def test_the_last_one_entered_wins() -> None:
    fn, store = function(), MemoryStore()
    kept = fn(1)
    with disabled():
        with override(store):
            other = fn(1)
            assert fn(1) is other is not kept  # caching is on again
            with disabled():
                assert fn(1) is not other
                assert fn.peek(1) is other  # helpers stay with that store
            assert fn(1) is other
        assert fn(1) is not fn(1)
        assert fn.peek(1) is kept
        with disabled():
            assert fn(1) is not kept
        assert fn(1) is not kept
    assert fn(1) is kept


def test_they_may_be_left_in_any_order() -> None:
    fn = function()
    kept = fn(1)
    stores = [MemoryStore(), MemoryStore()]
    switches = {"a": lambda: override(stores[0]), "b": lambda: override(stores[1]), "off": disabled}
    for left in itertools.permutations(switches):
        entered = {name: make() for name, make in switches.items()}
        for switch in entered.values():
            switch.__enter__()
        remaining = list(entered)
        for name in left:
            entered[name].__exit__(None, None, None)
            remaining.remove(name)
            if remaining and remaining[-1] == "off":
                assert fn(1) is not fn(1)
            else:
                assert fn(1) is fn(1)
                assert fn.store is {"a": stores[0], "b": stores[1]}.get(remaining[-1] if remaining else "", fn.store)
        assert fn(1) is kept


def test_reconfiguration_while_overridden() -> None:
    mine, fixed_store = MemoryStore(), MemoryStore()
    configure(default="memory://?max_size=5", stores={"other": "memory://?max_size=6"})
    fn, fixed = function(), cache_aside(store=fixed_store)(lambda x: object())
    kept, stays = fn(1), fixed(1)
    with override("other"):
        other = fn(1), fixed(1)
        assert fn.store.max_size == fixed.store.max_size == 6
        configure(default=mine, stores={"other": "memory://?max_size=7"})
        assert fn.store.max_size == fixed.store.max_size == 7
        assert fn(1) is not other[0]
        assert fixed(1) is not other[1]
    assert fn(1) is not kept
    assert fn.store is mine
    assert fixed(1) is stays


def test_reconfiguration_while_disabled() -> None:
    mine = MemoryStore()
    fn = function()
    kept = fn(1)
    with disabled():
        fn.peek(1)
        configure(default=mine)
        assert fn(1) is not fn(1)
        assert fn.store is mine
    assert fn(1) is not kept
    assert len(mine) == 1


# -- as decorators -----------------------------------------------------------------------------------------------------


def test_they_decorate_functions() -> None:
    fn, store = function(), MemoryStore()
    kept = fn(1)

    @disabled()
    def off(x: int, *, y: int = 1) -> Any:
        """Its own text."""
        return fn(x)

    @disabled
    def bare(x: int) -> Any:
        return fn(x)

    @override(store)
    def other(x: int, depth: int = 0) -> Any:
        return other(x, depth - 1) if depth else fn(x)

    assert off(1) is not kept
    assert bare(1) is not kept
    assert other(1) is other(1, 3) is not kept
    assert fn(1) is kept
    assert (off.__name__, off.__doc__, str(inspect.signature(off))) == (
        "off",
        "Its own text.",
        "(x: 'int', *, y: 'int' = 1) -> 'Any'",
    )
    with pytest.raises(ZeroDivisionError):
        disabled(lambda: 1 / 0)()
    assert fn(1) is kept


async def test_they_decorate_async_functions_for_as_long_as_they_run() -> None:
    fn, go = function(), asyncio.Event()
    kept = fn(1)

    @disabled()
    async def off() -> Any:
        before = fn(1)
        await go.wait()
        return before, fn(1)

    assert inspect.iscoroutinefunction(off)
    coroutine = off()
    assert fn(1) is kept  # it does not run yet
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    assert fn(1) is not kept  # in the whole process
    go.set()
    before, after = await task
    assert before is not kept
    assert after is not kept
    assert fn(1) is kept

    cancelled = asyncio.ensure_future(disabled(asyncio.Event().wait)())
    hanging = asyncio.ensure_future(override(MemoryStore())(asyncio.sleep)(SAFETY))
    await asyncio.sleep(0)
    assert fn(1) is not kept
    for each in cancelled, hanging:
        each.cancel()
    await asyncio.gather(cancelled, hanging, return_exceptions=True)
    assert fn(1) is kept


async def test_calls_of_a_decorated_function_that_overlap_have_each_a_switch_of_its_own() -> None:
    fn, mine, others = function(), MemoryStore(), MemoryStore()
    first, second = asyncio.Event(), asyncio.Event()

    @override(mine)
    async def within(event: asyncio.Event) -> None:
        await event.wait()

    tasks = [asyncio.ensure_future(within(first))]
    await asyncio.sleep(0)
    with override(others):
        tasks.append(asyncio.ensure_future(within(second)))
        await asyncio.sleep(0)
        assert fn.store is mine
        first.set()
        await tasks[0]
        assert fn.store is mine  # the second call's, which came last
        second.set()
        await tasks[1]
        assert fn.store is others


def test_what_cannot_be_decorated_says_what_to_do() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def agenerator() -> Any:
        yield 1

    for bad in generator, agenerator:
        with pytest.raises(
            OptionError, match="cannot decorate a generator function: use it in a with statement inside"
        ):
            disabled(bad)
    for bad in Named, 5, "x":
        with pytest.raises(OptionError, match=r"this decorates functions, not .*: use it in a with statement"):
            override(MemoryStore())(bad)  # type: ignore[type-var]


def test_one_object_may_be_entered_again() -> None:
    fn = function()
    kept = fn(1)
    switch = disabled()
    for _ in range(2):
        with switch:
            with switch:
                assert fn(1) is not kept
            assert fn(1) is not kept
        assert fn(1) is kept


# -- nothing stays behind ----------------------------------------------------------------------------------------------


def test_the_very_same_code_is_there_again_afterwards(call: Any) -> None:
    call()
    code = code_of(call.look())
    cells = {name: cell.cell_contents for name, cell in _cells(code)}
    for switch in disabled(), override(MemoryStore()), override(NullStore()), disabled():
        with switch:
            call()
            call.look()
        call()
        assert [a is b for a, b in zip(code_of(call.look()), code, strict=True)] == [True, True]
        assert {name: cell.cell_contents for name, cell in _cells(code)} == cells


def _cells(code: tuple[Any, Any]) -> list[tuple[str, Any]]:
    found = []
    for number, each in enumerate(code):
        if each is not None:
            cells = zip(each.__code__.co_freevars, each.__closure__, strict=True)
            found += [(f"{number}{name}", cell) for name, cell in cells]
    return found


def test_a_switch_that_changes_nothing_touches_no_function(monkeypatch: pytest.MonkeyPatch) -> None:
    fn = function()
    with disabled():
        fn(1)
        monkeypatch.setattr(places.Placed, "detach", lambda placed: 1 / 0)
        with disabled():
            fn(1)
        monkeypatch.undo()


def test_a_function_that_was_not_called_is_not_touched() -> None:
    fn = function()
    installed = []
    install = fn._self_memoized.install
    fn._self_memoized.install = lambda *code: (installed.append(code), install(*code))
    with disabled(), override(MemoryStore()):
        pass
    assert installed == []
    fn(1)
    for _ in range(2):
        with disabled(), override(MemoryStore()):
            pass
    assert len(installed) == 2  # its code, once, and that of the first call, once


def test_an_error_or_a_ctrl_c_leaves_nothing_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    fn = function()
    kept = fn(1)
    for error in ValueError, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit:
        with pytest.raises(error), disabled(), override(MemoryStore()):
            raise error
        assert fn(1) is kept


@pytest.fixture(params=["detach", "install", "_elsewhere"])
def interrupt(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Return what lets a Ctrl-C come once, at one of three moments in which a function is taken from its store."""

    def interrupt(fn: Any) -> None:
        memoized = fn._self_memoized
        kind = type(memoized)

        def interrupted(self: Any) -> Any:
            memoized.__class__ = kind
            raise KeyboardInterrupt

        memoized.__class__ = type("Interrupted", (kind,), {request.param: property(interrupted)})

    return interrupt


@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_ctrl_c_while_it_is_entered_is_made_good(when: int, interrupt: Callable[[Any], None]) -> None:
    """Half of the functions would be switched, and nobody would switch them back."""
    functions = [function() for _ in range(4)]
    kept = [fn(1) for fn in functions]
    switch = override(MemoryStore())
    interrupt(functions[when])
    with pytest.raises(KeyboardInterrupt):
        switch.__enter__()
    assert (places._layers, switch._entered) == ([], [])
    hits = [fn.stats().hits for fn in functions]
    assert [fn(1) for fn in functions] == kept
    assert [fn.stats().hits for fn in functions] == [each + 1 for each in hits]
    assert functions[0].store.stats().hits == sum(fn.stats().hits for fn in functions)


@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_ctrl_c_while_it_is_left_is_made_good(when: int, interrupt: Callable[[Any], None]) -> None:
    functions = [function() for _ in range(4)]
    kept = [fn(1) for fn in functions]
    store = MemoryStore()
    with override(store):
        others = [fn(1) for fn in functions]
        switch = disabled()
        switch.__enter__()
        assert [fn.peek(1) for fn in functions] == others
        assert not {fn(1) for fn in functions} & {*others}
        interrupt(functions[when])
        with pytest.raises(KeyboardInterrupt):
            switch.__exit__(None, None, None)
        assert [fn(1) for fn in functions] == others
        assert store.stats().hits == 4
    assert [fn(1) for fn in functions] == kept


# -- threads, tasks, forks ---------------------------------------------------------------------------------------------


def test_switches_that_overlap_in_threads_leave_everything_as_it_was() -> None:
    """Eight threads switch and call at random; a call is answered by the function or by one of the stores."""
    stores = [MemoryStore() for _ in range(3)]
    functions = [function() for _ in range(3)]
    shop = shops()()
    held = shop.total
    kept = [fn(1) for fn in functions] + [held(1)]
    code = [type(fn).__call__ for fn in functions]
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        start.wait(SAFETY)
        try:
            for _ in range(60):
                with disabled() if dice.random() < 0.5 else override(dice.choice(stores)):
                    for fn in functions:
                        assert type(fn(1)) is object
                        assert type(held(dice.randrange(3))) is object
                    dice.choice(functions).peek(1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY)
    assert failures == []
    assert places._layers == []
    assert [fn(1) for fn in functions] + [held(1)] == kept
    assert [type(fn).__call__ for fn in functions] == code
    for store, fn in zip(stores, functions, strict=True):
        with override(store):
            assert fn(1) is fn(1)


def test_a_thread_that_calls_sees_the_switch_of_another_from_the_moment_it_is_entered() -> None:
    fn, shop = function(), shops()()
    held = shop.total
    kept, held_kept = fn(1), held(1)
    ask, answer = threading.Semaphore(0), threading.Semaphore(0)
    seen: list[tuple[object, object]] = []

    def caller() -> None:
        for _ in range(40):
            assert ask.acquire(timeout=SAFETY)
            seen.append((fn(1), held(1)))
            answer.release()

    thread = threading.Thread(target=caller, daemon=True)
    thread.start()

    def asked() -> tuple[object, object]:
        ask.release()
        assert answer.acquire(timeout=SAFETY)
        return seen[-1]

    store = MemoryStore()
    with override(store):
        mine = fn(1), held(1)
    for _ in range(10):
        assert asked() == (kept, held_kept)
        with disabled():
            assert not {*asked()} & {kept, held_kept, *mine}
        with override(store):
            assert asked() == mine
        assert asked() == (kept, held_kept)
    thread.join(SAFETY)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_takes_along_what_holds_and_goes_its_own_way() -> None:
    fn = function()
    kept = fn(1)
    with disabled():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                off = fn(1) is not fn(1)
                places.leave(places._layers[0])
                status = 0 if off and fn(1) is kept else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert fn(1) is not kept
    assert fn(1) is kept


async def test_tasks_share_what_is_switched() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    @cache_aside
    async def afn(x: int) -> object:
        await asyncio.sleep(0)
        return object()

    kept = await afn(1)

    async def switching() -> None:
        with disabled():
            entered.set()
            await leave.wait()

    task = asyncio.ensure_future(switching())
    await entered.wait()
    results = await asyncio.gather(*[afn(1) for _ in range(5)])
    assert len({id(each) for each in [*results, kept]}) == 6
    leave.set()
    await task
    assert await afn(1) is kept


def test_a_switch_may_be_made_by_hand() -> None:
    assert isinstance(disabled(), Switch)
    assert isinstance(override("memory://"), Switch)
