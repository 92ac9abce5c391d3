"""What tools see of a decorated function is the function."""

from __future__ import annotations

import asyncio
import copy
import doctest
import functools
import gc
import inspect
import pickle
import sys
import types
import typing
import unittest.mock
import weakref
from typing import Any

import pytest

from memo import cache_aside


def passing(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def plain(a: int, b: str = "x", *args: float, k: bool = False, **more: bytes) -> list[str]:
    """Say what it does.

    >>> plain(1)
    ['1']
    """
    return [str(a)]


@cache_aside
def cached(a: int, b: str = "x", *args: float, k: bool = False, **more: bytes) -> list[str]:
    """Say what it does.

    >>> cached(1)
    ['1']
    """
    return [str(a)]


@cache_aside(ttl=60)
async def acached(a: int, b: str = "x", *args: float, k: bool = False, **more: bytes) -> list[str]:
    """Say what it does."""
    return [str(a)]


@cache_aside
@passing
@cache_aside
def stacked(a: int, b: str = "x", *args: float, k: bool = False, **more: bytes) -> list[str]:
    """Say what it does."""
    return [str(a)]


class Owner:
    def plain(self, a: int, b: str = "x", *args: float, k: bool = False, **more: bytes) -> list[str]:
        """Say what it does."""
        return [str(a)]

    @cache_aside
    def method(self, a: int, b: str = "x", *args: float, k: bool = False, **more: bytes) -> list[str]:
        """Say what it does."""
        return [str(a)]

    @cache_aside
    async def amethod(self, a: int) -> list[str]:
        """Say what it does."""
        return [str(a)]

    @cache_aside
    @classmethod
    def cm(cls, a: int, b: str = "x", *args: float, k: bool = False, **more: bytes) -> list[str]:
        """Say what it does."""
        return [str(a)]

    @classmethod
    @cache_aside
    async def acm(cls, a: int) -> list[str]:
        """Say what it does."""
        return [str(a)]

    @cache_aside
    @staticmethod
    def sm(a: int, b: str = "x", *args: float, k: bool = False, **more: bytes) -> list[str]:
        """Say what it does."""
        return [str(a)]

    class Inner:
        @cache_aside
        def method(self) -> int:
            return 1


FUNCTIONS = {
    "function": cached,
    "async function": acached,
    "stacked": stacked,
    "method": Owner().method,
    "classmethod": Owner.cm,
    "classmethod of an instance": Owner().cm,
    "staticmethod": Owner.sm,
}


@pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_signature_is_the_functions(fn: Any) -> None:
    assert inspect.signature(fn) == inspect.signature(plain)
    assert str(inspect.signature(fn)) == str(inspect.signature(plain))


def test_a_method_seen_on_its_class_has_self() -> None:
    assert inspect.signature(Owner.method) == inspect.signature(Owner.plain)
    assert inspect.signature(Owner.acm).parameters.keys() == {"a"}


@pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS)
def test_annotations_docstring_and_defaults_are_the_functions(fn: Any) -> None:
    assert typing.get_type_hints(fn) == typing.get_type_hints(plain)
    assert fn.__annotations__ == plain.__annotations__
    assert inspect.getdoc(fn).startswith("Say what it does.")
    assert fn.__doc__.startswith("Say what it does.")
    assert fn.__module__ == __name__
    if fn is not stacked:
        assert fn.__defaults__ == ("x",)
        assert fn.__kwdefaults__ == {"k": False}


def test_names() -> None:
    assert (cached.__name__, cached.__qualname__) == ("cached", "cached")
    assert (stacked.__name__, stacked.__qualname__) == ("stacked", "stacked")
    for name in ("method", "amethod", "cm", "acm", "sm"):
        for fn in (getattr(Owner, name), getattr(Owner(), name)):
            assert (fn.__name__, fn.__qualname__) == (name, f"Owner.{name}")
    assert Owner.Inner().method.__qualname__ == "Owner.Inner.method"
    assert not hasattr(Owner().method, "no_such_name")


def test_the_source_is_found() -> None:
    assert inspect.getsource(cached).startswith("@cache_aside\ndef cached(")
    assert "def method(" in inspect.getsource(Owner().method)
    assert inspect.getsourcefile(cached) == inspect.getsourcefile(plain)


def test_what_it_wraps_is_the_function() -> None:
    assert cached.__wrapped__(1) == ["1"]
    assert inspect.unwrap(cached) is cached.__wrapped__
    owner = Owner()
    assert owner.method.__wrapped__(1) == ["1"]
    assert owner.method.__wrapped__.__self__ is owner
    assert Owner.cm.__wrapped__.__self__ is Owner


@pytest.mark.parametrize("called", [False, True])
def test_coroutine_functions_are_recognised(called: bool) -> None:
    """Before the first call and after it, when generated code has taken its place."""

    async def inner(a: int) -> int:
        return a

    class Local:
        @cache_aside
        async def method(self, a: int) -> int:
            return a

        @cache_aside
        @classmethod
        async def cm(cls, a: int) -> int:
            return a

        @cache_aside
        @staticmethod
        async def sm(a: int) -> int:
            return a

    one, two, three = cache_aside(inner), cache_aside(functools.partial(inner)), cache_aside(passing(inner))
    local = Local()
    awaitable = [one, two, three, local.method, Local.cm, local.cm, Local.sm]
    if called:
        for fn in awaitable:
            assert asyncio.run(fn(1)) == 1
    for fn in [one, two, local.method, Local.method, Local.cm, local.cm, Local.sm, functools.partial(one, 1)]:
        assert inspect.iscoroutinefunction(fn)
        if sys.version_info < (3, 14):  # deprecated there
            assert asyncio.iscoroutinefunction(fn)
    for fn in (local.method, Local.cm):
        assert inspect.iscoroutinefunction(fn.func)  # where Python 3.13 looks, a bound method being a partial too
    for fn in (cached, stacked, Owner().method, Owner.cm, Owner.sm):
        assert not inspect.iscoroutinefunction(fn)


def test_it_passes_for_what_it_stands_for() -> None:
    owner = Owner()
    assert isinstance(cached, types.FunctionType)
    assert inspect.isfunction(cached)
    assert inspect.isroutine(cached)
    assert inspect.isfunction(Owner.method)
    assert inspect.ismethod(owner.method)
    assert inspect.ismethod(Owner.cm)
    assert inspect.isfunction(Owner.sm)
    assert owner.method.__self__ is owner
    assert Owner.cm.__self__ is Owner
    assert owner.method.__func__.__wrapped__ is Owner.method.__wrapped__
    assert callable(cached)
    assert callable(owner.method)


# -- by reference ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_by_reference(protocol: int) -> None:
    for fn in (cached, acached, stacked, Owner.method, Owner.sm):
        assert pickle.loads(pickle.dumps(fn, protocol)) is fn
    owner = Owner()
    for fn in (Owner.cm, Owner.acm):
        assert pickle.loads(pickle.dumps(fn, protocol)) == fn
    back = pickle.loads(pickle.dumps(owner.method, protocol))
    assert type(back.__self__) is Owner
    assert back(1) == ["1"]


def test_it_reduces_to_its_name() -> None:
    assert cached.__reduce__() == cached.__reduce_ex__(2) == "cached"
    assert Owner.sm.__reduce__() == "Owner.sm"


def test_what_its_name_does_not_lead_to_cannot_be_pickled() -> None:
    @cache_aside
    def local() -> int:
        return 1

    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(local)


def test_copies_are_the_same_object() -> None:
    for fn in (cached, acached, stacked, Owner.sm, Owner.method):
        assert copy.copy(fn) is fn
        assert copy.deepcopy(fn) is fn
        assert copy.deepcopy({"fn": [fn]})["fn"][0] is fn
    owner = Owner()
    assert copy.copy(owner.method) == owner.method
    assert copy.deepcopy(Owner.cm) == Owner.cm


def test_a_copied_instance_has_results_of_its_own() -> None:
    class Local:
        @cache_aside
        def m(self) -> int:
            return id(self)

    a = Local()
    assert a.m() == id(a)
    b, c = copy.copy(a), copy.deepcopy(a)
    assert (b.m(), c.m()) == (id(b), id(c))


def test_it_can_be_referenced_weakly() -> None:
    @cache_aside
    def local() -> int:
        return 1

    local()
    reference = weakref.ref(local)
    assert reference() is local
    del local
    assert reference() is None
    owner = Owner()
    bound = owner.method
    assert weakref.ref(bound)() is bound
    assert weakref.WeakMethod(bound)()(1) == ["1"]  # type: ignore[misc]


def test_a_function_that_died_leaves_nothing_behind() -> None:
    store_of: Any = cache_aside(lambda a: a)
    store = store_of.store

    def make() -> None:
        @cache_aside
        def local(a: int) -> int:
            return a

        local(1)
        assert len(store) == 1

    make()
    gc.collect()
    store.set("next", "write")
    assert store.keys() == ["next"]


def test_equality_and_hash() -> None:
    assert cached == cached
    assert hash(cached) == hash(cached)
    assert cached != acached
    assert len({cached, acached, stacked, cached}) == 3


def test_the_repr_names_the_function_and_shows_no_value() -> None:
    cached(987654321)
    owner = Owner()
    owner.method(987654321)
    assert repr(cached) == f"<cached {__name__}.cached>"
    assert repr(owner.method).startswith(f"<cached {__name__}.Owner.method of <{__name__}.Owner object at ")

    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

        @cache_aside
        def m(self) -> int:
            return 1

    assert "hunter2" not in repr(Secret().m)


# -- tools -------------------------------------------------------------------------------------------------------------


def test_autospec_knows_the_signature() -> None:
    mock: Any = unittest.mock.create_autospec(cached)
    mock(1, k=True)
    mock.assert_called_once_with(1, k=True)
    for wrong in (lambda: mock(), lambda: mock(1, a=2)):
        with pytest.raises(TypeError):
            wrong()
    spec: Any = unittest.mock.create_autospec(Owner.method)
    spec(Owner(), 1)
    with pytest.raises(TypeError):
        spec()


def test_a_cached_function_can_be_patched_and_comes_back() -> None:
    with unittest.mock.patch.object(Owner, "method", return_value="patched"):
        assert Owner().method(1) == "patched"
    assert Owner().method(1) == ["1"]
    with unittest.mock.patch(f"{__name__}.cached", autospec=True) as mock:
        mock.return_value = "patched"
        assert cached(1) == "patched"
    assert cached(1) == ["1"]


def test_singledispatch_above_and_below() -> None:
    @functools.singledispatch
    @cache_aside
    def above(a: object) -> str:
        return f"object {a}"

    @above.register
    @cache_aside
    def _(a: int) -> str:
        return f"int {a}"

    assert (above("x"), above(1), above(1)) == ("object x", "int 1", "int 1")
    assert above.dispatch(int).stats().hits == 1

    @functools.singledispatch
    def dispatch(a: object) -> str:
        return f"object {a}"

    dispatch.register(int, lambda a: f"int {a}")
    below: Any = cache_aside(dispatch)
    assert (below("1"), below(1), below(True)) == ("object 1", "int 1", "int True")


def test_a_cached_property_and_a_partial_method() -> None:
    class Local:
        @functools.cached_property
        @cache_aside
        def p(self) -> object:
            return object()

        @cache_aside
        def m(self, a: int, b: int) -> tuple[int, int]:
            return a, b

        half = functools.partialmethod(m, 1)

    local = Local()
    assert local.p is local.p
    assert local.half(2) == local.m(1, 2) == (1, 2)  # type: ignore[call-arg]
    assert Local.m.stats().hits == 1


def test_doctests_are_found_and_run() -> None:
    module = sys.modules[__name__]
    found = {test.name: test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples}
    names = {name.rpartition(".")[2] for name in found}
    assert {"plain", "cached"} <= names
    runner = doctest.DocTestRunner()
    for test in found.values():
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_wraps_copies_from_it() -> None:
    again = passing(cached)
    assert (again.__name__, again.__doc__) == ("cached", cached.__doc__)
    assert inspect.signature(again) == inspect.signature(plain)
    bound = passing(Owner().method)
    assert bound.__qualname__ == "Owner.method"
    assert bound.__doc__ == "Say what it does."


def test_helpers_are_documented() -> None:
    for name in ("invalidate", "invalidate_all", "refresh", "peek", "set", "key_for", "ttl_left", "stats"):
        assert inspect.getdoc(getattr(cached, name))
        assert inspect.getdoc(getattr(Owner().method, name))
