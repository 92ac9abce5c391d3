"""Methods: whose call it is counts, by value where the class has one, else by identity, held weakly."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import gc
import inspect
import math
import types
import weakref
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import pytest

from memo import MISSING, MemoryStore, NullStore, UnkeyableError, cache_aside, register_key_type


class Plain:
    def __init__(self, name: str = "plain") -> None:
        self.name = name
        self.calls: list[Any] = []

    @cache_aside
    def m(self, x: Any, y: Any = 2) -> Any:
        self.calls.append((x, y))
        return self.name, x, y

    @cache_aside
    async def am(self, x: Any) -> Any:
        self.calls.append(x)
        return self.name, x


# -- by identity -------------------------------------------------------------------------------------------------------


def test_each_instance_has_its_own_results() -> None:
    a, b = Plain("a"), Plain("b")
    for argument in (1, [1], "k" * 300):
        assert a.m(argument) == a.m(x=argument) == a.m(argument, 2) == ("a", argument, 2)
        assert b.m(argument) == ("b", argument, 2)
    assert len(a.calls) == len(b.calls) == 3


async def test_each_instance_has_its_own_results_awaited() -> None:
    a, b = Plain("a"), Plain("b")
    for argument in (1, [1]):
        assert await a.am(argument) == await a.am(x=argument) == ("a", argument)
        assert await b.am(argument) == ("b", argument)
    assert len(a.calls) == len(b.calls) == 2


def test_through_the_class_it_is_the_same_call() -> None:
    a = Plain("a")
    assert Plain.m(a, 5) == a.m(5)
    assert Plain.m(self=a, x=5) == a.m(5)
    assert a.calls == [(5, 2)]
    assert Plain.m.key_for(a, 5) == a.m.key_for(5)
    assert Plain.m.peek(a, 5) == a.m.peek(5) == ("a", 5, 2)
    assert Plain.m.invalidate(a, 5)
    assert a.m.peek(5) is MISSING


def test_helpers_of_a_bound_method_know_the_instance() -> None:
    a, b = Plain("a"), Plain("b")
    a.m(1)
    b.m(1)
    assert a.m.invalidate(1)
    assert a.m.peek(1) is MISSING
    assert b.m.peek(1) == ("b", 1, 2)
    assert a.m.refresh(1) == ("a", 1, 2)
    a.m.set("given", 7)
    assert a.m(7) == "given"
    assert b.m(7) == ("b", 7, 2)
    assert a.m.ttl_left(7) == math.inf
    assert a.m.key_for(7) != b.m.key_for(7)
    assert a.m.stats() == Plain.m.stats()
    assert a.m.store is Plain.m.store


async def test_helpers_of_an_async_bound_method() -> None:
    a, b = Plain("a"), Plain("b")
    await a.am(1)
    assert await a.am.peek(1) == ("a", 1)
    assert await b.am.peek(1) is MISSING
    assert await Plain.am.peek(a, 1) == ("a", 1)
    assert await a.am.invalidate(1)
    assert await a.am.refresh(1) == ("a", 1)
    await a.am.set("given", 2)
    assert await a.am(2) == "given"
    assert await a.am.ttl_left(2) == math.inf
    await a.am.invalidate_all()
    assert await a.am.peek(2) is MISSING


def test_invalidate_all_is_for_all_instances() -> None:
    a, b = Plain("a"), Plain("b")
    for instance in (a, b):
        instance.m(1)
        instance.m([1])
    a.m.invalidate_all()
    for instance in (a, b):
        assert instance.m.peek(1) is MISSING
        instance.m(1)
        assert instance.m.peek(1) is not MISSING
    assert len(b.calls) == 3


def test_the_entries_of_an_instance_go_by_their_key() -> None:
    store = MemoryStore()

    class Local:
        @cache_aside(store=store)
        def m(self, x: Any) -> Any:
            return x

    a, b = Local(), Local()
    for instance in (a, b):
        for argument in (1, [1], "k" * 300):
            instance.m(argument)
    assert set(store.keys()) == {i.m.key_for(x) for i in (a, b) for x in (1, [1], "k" * 300)}
    for argument in (1, [1], "k" * 300):
        key = a.m.key_for(argument)
        assert store.get(key) == argument
        assert store.exists(key)
        assert store.delete(key)
        assert a.m.peek(argument) is MISSING
        assert b.m.peek(argument) == argument
    assert store.delete_pattern("*") == 3


def test_a_text_that_names_no_instance_finds_nothing() -> None:
    a = Plain()
    a.m(1)
    key = a.m.key_for(1)
    assert a.m.store.get(key) is not None
    for text in (key.replace("#", "#9"), key.replace(",1,2", ""), key.replace(">,", ">"), key.replace("<", "")):
        assert a.m.store.get(text) is None
        assert not a.m.store.delete(text)


def test_an_instance_is_freed_as_soon_as_nobody_else_holds_it() -> None:
    a = Plain()
    a.m(1)
    a.m([1])
    freed = weakref.ref(a)
    del a
    assert freed() is None


def test_the_entries_of_a_dead_instance_go_with_the_next_write() -> None:
    store = MemoryStore()

    class Local:
        @cache_aside(store=store)
        def m(self, x: Any) -> Any:
            return x

    a, b = Local(), Local()
    a.m(1)
    a.m(2)
    del a
    b.m(1)
    assert len(store) == 1
    assert store.keys() == [b.m.key_for(1)]


def test_an_address_used_again_is_another_instance() -> None:
    class Local:
        def __init__(self, number: int) -> None:
            self.number = number

        @cache_aside
        def m(self, x: int) -> int:
            return self.number

        @cache_aside(store=NullStore())
        def n(self, x: int) -> int:
            return self.number

    addresses = set()
    for number in range(200):
        instance = Local(number)
        addresses.add(id(instance))
        assert instance.m(5) == instance.m(5) == number
        assert instance.m(x=5) == instance.m.peek(5) == number
        assert instance.n(5) == number
        del instance
    assert len(addresses) < 200, "no address was used again, so this has tested nothing"


def test_a_dead_instance_in_a_cycle_is_freed_by_the_collector() -> None:
    a: Any = Plain()
    a.me = a
    a.m(1)
    freed = weakref.ref(a)
    del a
    gc.collect()
    assert freed() is None


def test_a_value_that_holds_its_instance_keeps_it_until_it_is_forgotten() -> None:
    class Local:
        @cache_aside
        def m(self) -> Any:
            return self

    a = Local()
    a.m()
    freed = weakref.ref(a)
    del a
    assert freed() is not None
    Local.m.invalidate_all()
    assert freed() is None


class WithoutWeakref:
    __slots__ = ("name",)

    @cache_aside
    def m(self, x: int) -> int:
        return x

    @cache_aside(key="slots:{x}")
    def keyed(self, x: int) -> int:
        return x

    @cache_aside(ignore=("self",))
    def shared(self, x: int) -> int:
        return x

    @cache_aside(store="null://")
    def null(self, x: int) -> int:
        return x


class WithWeakref:
    __slots__ = ("__weakref__", "name")

    @cache_aside
    def m(self, x: int) -> int:
        return x


def test_what_cannot_be_referenced_weakly_is_refused_with_the_ways_out() -> None:
    instance = WithoutWeakref()
    for call in instance.m, instance.m.peek, instance.m.key_for, instance.m.invalidate:
        with pytest.raises(UnkeyableError, match=r"WithoutWeakref.*__weakref__.*__slots__.*__cache_key__"):
            call(1)
    with pytest.raises(UnkeyableError, match="cannot be weakly referenced"):
        instance.null(1)
    assert instance.keyed(1) == instance.shared(1) == 1
    assert WithWeakref().m(1) == 1


class Equal:
    """All instances are equal, and cannot be hashed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return True

    @cache_aside
    def m(self, x: int) -> str:
        return self.name


def test_equality_of_instances_does_not_count() -> None:
    a, b = Equal("a"), Equal("b")
    assert (a.m(1), b.m(1), a.m(1)) == ("a", "b", "a")


def test_a_mutable_instance_counts_by_identity_though_it_has_fields() -> None:
    @dataclasses.dataclass
    class Mutable:
        name: str

        @cache_aside
        def m(self) -> str:
            return self.name

    a, b = Mutable("x"), Mutable("x")
    assert a.m() == "x"
    assert Mutable.m.peek(b) is MISSING


# -- by value ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Point:
    x: int

    @cache_aside
    def m(self, y: int) -> int:
        CALLS.append(self)
        return self.x + y


class Pair(NamedTuple):
    x: int

    @cache_aside
    def m(self, y: int) -> int:
        CALLS.append(self)
        return self.x + y


class Colour(enum.Enum):
    RED = 1

    @cache_aside
    def m(self, y: int) -> int:
        CALLS.append(self)
        return self.value + y


class Keyed:
    def __init__(self, x: int) -> None:
        self.x = x

    def __cache_key__(self) -> Any:
        return self.x

    @cache_aside
    def m(self, y: int) -> int:
        CALLS.append(self)
        return self.x + y


class Taught:
    def __init__(self, x: int) -> None:
        self.x = x

    @cache_aside
    def m(self, y: int) -> int:
        CALLS.append(self)
        return self.x + y


register_key_type(Taught, lambda taught: taught.x)

CALLS: list[Any] = []


@pytest.mark.parametrize("kind", [Point, Pair, Colour, Keyed, Taught])
def test_a_value_class_counts_by_value(kind: Any) -> None:
    CALLS.clear()
    kind.m.invalidate_all()
    one, other = kind(1), kind(1)
    assert one.m(5) == other.m(5) == kind.m(other, 5) == 6
    assert len(CALLS) == 1
    assert one.m.key_for(5) == kind.m.key_for(other, 5)
    assert "#" not in one.m.key_for(5)
    assert one.m.store.get(one.m.key_for(5)) == 6
    assert other.m.invalidate(5)
    assert one.m.peek(5) is MISSING
    if kind is not Colour:
        assert kind(2).m(5) == 7


# -- inheritance -------------------------------------------------------------------------------------------------------


class Base:
    @cache_aside
    def m(self, x: int) -> str:
        return f"{type(self).__name__} {x}"

    @cache_aside
    def over(self, x: int) -> list[str]:
        return ["base"]

    @cache_aside
    @classmethod
    def cm(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @classmethod
    @cache_aside
    def inner_cm(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @cache_aside
    @staticmethod
    def sm(x: int) -> int:
        STATIC.append(x)
        return x

    @staticmethod
    @cache_aside
    def inner_sm(x: int) -> int:
        STATIC.append(x)
        return x

    @cache_aside
    @classmethod
    async def acm(cls, x: int) -> str:
        return f"{cls.__name__} {x}"


class Derived(Base):
    @cache_aside
    def over(self, x: int) -> list[str]:
        return [*super().over(x), "derived"]


class Further(Derived):
    @cache_aside
    def over(self, x: int) -> list[str]:
        return [*super().over(x), "further"]


STATIC: list[int] = []


def test_an_inherited_method_is_told_apart_by_its_instance() -> None:
    assert (Base().m(1), Derived().m(1)) == ("Base 1", "Derived 1")


def test_super_calls_the_methods_above() -> None:
    further, derived = Further(), Derived()
    for _ in range(2):
        assert further.over(1) == ["base", "derived", "further"]
        assert derived.over(1) == ["base", "derived"]
    assert Base.over.peek(further, 1) == ["base"]
    assert super(Further, further).over.peek(1) == ["base", "derived"]
    assert further.over.invalidate(1)
    assert further.over(1) == ["base", "derived", "further"]


@pytest.mark.parametrize("name", ["cm", "inner_cm"])
def test_a_classmethod_counts_by_class(name: str) -> None:
    base, derived = getattr(Base, name), getattr(Derived, name)
    assert (base(1), derived(1), base(1), getattr(Base(), name)(1)) == ("Base 1", "Derived 1", "Base 1", "Base 1")


def test_helpers_of_a_classmethod_know_the_class() -> None:
    Base.cm(7)
    assert Derived.cm.peek(7) is MISSING
    assert Base().cm.peek(7) == Base.cm.peek(7) == "Base 7"
    Derived.cm.set("given", 7)
    assert Base.cm.invalidate(7)
    assert Derived.cm(7) == "given"
    Base.cm.invalidate_all()
    assert Derived.cm.peek(7) is MISSING
    assert Base.cm.refresh(7) == "Base 7"
    assert Base.cm.store.get(Base.cm.key_for(7)) == "Base 7"


async def test_an_async_classmethod() -> None:
    assert (await Base.acm(1), await Derived.acm(1), await Base.acm(1)) == ("Base 1", "Derived 1", "Base 1")
    assert await Derived.acm.peek(1) == "Derived 1"
    assert await Base.acm.invalidate(1)


def test_below_a_classmethod_a_helper_given_no_class_says_so() -> None:
    Base.inner_cm(7)
    for helper in ("invalidate", "peek", "key_for", "refresh", "ttl_left"):
        for args in ((7,), (), (Base(), 7)):
            with pytest.raises(UnkeyableError, match=r"inner_cm.*the class.*Put @cache_aside above @classmethod"):
                getattr(Base.inner_cm, helper)(*args)
    with pytest.raises(UnkeyableError, match="Put @cache_aside above"):
        Base.inner_cm.set("value", 7)
    assert Base.inner_cm.peek(Base, 7) == "Base 7"
    assert Base.inner_cm.peek(Derived, 7) is MISSING
    assert Base.inner_cm.invalidate(Base, 7)


def test_with_a_class_given_a_wrong_call_is_an_ordinary_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'") as caught:
        Base.inner_cm.key_for(Base)
    assert not isinstance(caught.value, UnkeyableError)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Base.cm.key_for()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Plain().m.key_for()


def test_a_method_whose_first_parameter_is_called_cls_is_a_method() -> None:
    class Odd:
        @cache_aside
        def m(cls, x: int) -> Any:
            return cls, x

    a, b = Odd(), Odd()
    assert a.m(1) == (a, 1)
    assert b.m(1) == (b, 1)
    assert a.m.peek(1) == (a, 1)
    assert a.m.invalidate(x=1)
    with pytest.raises(TypeError, match="missing 1 required"):
        a.m.peek()


@pytest.mark.parametrize("name", ["sm", "inner_sm"])
def test_a_staticmethod_counts_by_its_arguments_alone(name: str) -> None:
    STATIC.clear()
    method = getattr(Base, name)
    method.invalidate_all()
    assert method(1) == getattr(Base(), name)(1) == getattr(Derived(), name)(x=1) == 1
    assert STATIC == [1]
    assert method.peek(1) == getattr(Derived(), name).peek(1) == 1
    assert getattr(Base(), name).invalidate(1)
    assert method.peek(1) is MISSING


def test_a_method_of_a_metaclass_counts_by_class() -> None:
    class Meta(type):
        @cache_aside
        def m(cls, x: int) -> str:
            return f"{cls.__name__} {x}"

    class One(metaclass=Meta):
        pass

    class Two(metaclass=Meta):
        pass

    assert (One.m(1), Two.m(1), One.m(1), Meta.m(Two, 1)) == ("One 1", "Two 1", "One 1", "Two 1")
    assert Two.m.invalidate(1)
    assert One.m.peek(1) == "One 1"


def test_a_class_is_freed_too() -> None:
    class Local:
        @cache_aside
        @classmethod
        def cm(cls, x: int) -> int:
            return x

    Local.cm(1)
    Local().cm(1)
    freed = weakref.ref(Local)
    del Local
    gc.collect()
    assert freed() is None


# -- how a method may be written ---------------------------------------------------------------------------------------


def passing(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Written:
    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0

    def _called(self, x: Any) -> Any:
        self.calls += 1
        return self.name, x

    @cache_aside
    def this(this, x: int) -> Any:
        return this._called(x)

    @cache_aside
    def only(self, x: int, /, *, y: int = 0) -> Any:
        return self._called(x)

    @passing
    @cache_aside
    def below(self, x: int) -> Any:
        return self._called(x)

    @cache_aside
    @passing
    def above(self, x: int) -> Any:
        return self._called(x)

    @cache_aside
    @cache_aside
    def twice(self, x: int) -> Any:
        return self._called(x)

    @cache_aside
    def anything(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(args[0] if args else kwargs["x"])

    assigned = cache_aside(lambda self, x: self._called(x))


@pytest.mark.parametrize("name", ["this", "only", "below", "above", "twice", "anything", "assigned"])
def test_however_it_is_written_a_method_counts_by_instance(name: str) -> None:
    a, b = Written("a"), Written("b")
    for _ in range(2):
        assert getattr(a, name)(1) == ("a", 1)
        assert getattr(b, name)(1) == ("b", 1)
        assert getattr(Written, name)(b, 1) == ("b", 1)
    assert a.calls == b.calls == 1
    freed = weakref.ref(a)
    del a
    assert freed() is None


def test_a_method_that_is_put_into_the_class_later() -> None:
    class Local:
        pass

    Local.m = cache_aside(lambda self, x: (self, x))  # type: ignore[attr-defined]
    a, b = Local(), Local()
    assert a.m(1) == (a, 1)  # type: ignore[attr-defined]
    assert b.m(1) == (b, 1)  # type: ignore[attr-defined]


def test_any_keyword_reaches_a_method() -> None:
    a = Written("a")
    names = ("_mbound", "_minstance", "_m", "instance", "func", "args", "keywords", "memoized", "wrapper")
    for name in names:
        assert a.anything(**{"x": 1, name: 2}) == ("a", 1)
    assert a.calls == len(names)


def test_a_method_of_arguments_only_is_refused_but_for_value_classes() -> None:
    """Nothing in its signature says that the first of its arguments is an instance."""

    class Local:
        @cache_aside
        def m(*args: Any) -> Any:
            return args[1:]

    for call in Local().m, Local().m.key_for, Local().m.peek:
        with pytest.raises(UnkeyableError, match="'args'"):
            call(1)

    class Keyed:
        __cache_key__ = staticmethod(lambda: 1)

        @cache_aside
        def m(*args: Any) -> Any:
            return args[1:]

        @cache_aside
        async def am(*args: Any) -> Any:
            return args[1:]

    assert asyncio.run(Keyed().am(1)) == asyncio.run(Keyed().am(1)) == (1,)
    assert Keyed.am.stats().hits == 1
    assert Keyed().m(1) == Keyed().m(1) == (1,)
    assert Keyed.m.stats().hits == 1
    assert Keyed().m.peek(1) == (1,)


def test_ignore_self_lets_all_instances_share() -> None:
    class Local:
        @cache_aside(ignore=("self",))
        def m(self, x: int) -> int:
            return id(self)

    a, b = Local(), Local()
    assert a.m(1) == b.m(1) == Local.m(b, 1) == id(a)
    assert b.m.invalidate(1)
    assert a.m.peek(1) is MISSING
    assert a.m.key_for(1).endswith("m(1)")


def test_a_template_may_use_self() -> None:
    class Local:
        def __init__(self, name: str) -> None:
            self.name = name

        @cache_aside(key="local:{self.name}:{x}")
        def m(self, x: int) -> str:
            return self.name

    a, b, c = Local("a"), Local("b"), Local("a")
    assert (a.m(1), b.m(1), c.m(1)) == ("a", "b", "a")
    assert Local.m.stats().hits == 1
    assert c.m.key_for(1) == Local.m.key_for(a, 1) == "local:a:1"
    assert a.m.store.get("local:a:1") == "a"


def test_a_property() -> None:
    class Local:
        @property
        @cache_aside
        def p(self) -> object:
            return object()

    a, b = Local(), Local()
    assert a.p is a.p
    assert a.p is not b.p
    assert Local.p.fget.invalidate(a)


def test_an_abstract_method_stays_abstract() -> None:
    class Abstract(ABC):
        @cache_aside
        @abstractmethod
        def m(self) -> int: ...

    class Concrete(Abstract):
        @cache_aside
        def m(self) -> int:
            return 1

    with pytest.raises(TypeError, match="abstract"):
        Abstract()  # type: ignore[abstract]
    assert Concrete().m() == 1


def test_a_bound_method_outlives_its_place_in_the_class() -> None:
    class Local:
        @cache_aside
        def m(self, x: int) -> int:
            return x

        @cache_aside
        def n(self, x: int) -> int:
            return x

    a = Local()
    a.n(1)
    m, n = a.m, a.n
    del Local.m, Local.n
    gc.collect()
    for method in (m, n):
        assert method(1) == method(1) == 1
        assert method.invalidate(1)
        assert method.peek(1) is MISSING
        assert inspect.signature(method).parameters.keys() == {"x"}


@cache_aside
def mentioned(items: list[int]) -> int:
    return sum(items)


def test_a_function_that_a_class_mentions_stays_a_function() -> None:
    class Settings:
        loader = mentioned

    assert Settings.loader([1, 2]) == mentioned([1, 2]) == 3
    assert mentioned.stats().hits >= 1
    assert mentioned.peek([1, 2]) == 3


class Adder:
    def __call__(self, x: int) -> int:
        return x + 1


class Unbound:
    """In a class Python binds functions, and neither builtins nor callable objects (nor, up to 3.13, partials)."""

    length = cache_aside(len)
    adder = cache_aside(Adder())


def test_what_python_does_not_bind_is_not_bound() -> None:
    assert Unbound().length("abc") == Unbound.length("abc") == 3
    assert Unbound().adder(1) == Unbound.adder(1) == 2
    assert Unbound.adder.stats().hits == 1


def test_a_partial_in_a_class_is_bound_if_python_binds_it() -> None:
    class Local:
        double = cache_aside(functools.partial(int.__mul__, 2))

    assert Local.double(4) == 8
    assert hasattr(functools.partial, "__get__") or Local().double(4) == 8


def test_a_bound_method_is_equal_and_hashes_like_one() -> None:
    a, b = Equal("a"), Equal("b")
    assert a.m == a.m
    assert hash(a.m) == hash(a.m)
    assert a.m != b.m
    assert a.m != Plain().m
    assert a.m != 1
    assert len({a.m, a.m, b.m}) == 2
    assert isinstance(a.m, types.MethodType)
    assert a.m.__self__ is a
    assert a.m.__func__ is Equal.m
