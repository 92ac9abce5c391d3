"""What a call for many ids returns, asks the function for, keeps and counts."""

from __future__ import annotations

import inspect
import math
import pickle
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pytest

from memo import (
    MISSING,
    MemoryStore,
    NullStore,
    OptionError,
    UnkeyableError,
    cache_aside_many,
    disabled,
    override,
)


def test_the_result_is_in_the_order_of_the_ids_and_has_each_once(many, source):
    load = many(source.load)
    assert list(load([3, 1, 3, 2, 1]).items()) == [(3, "three"), (1, "one"), (2, "two")]
    assert source.asked == [[3, 1, 2]]


def test_only_missing_ids_are_loaded_in_one_call_in_order_as_a_list(many, source):
    load = many(source.load)
    load((2,))
    assert list(load(iter([3, 2, 1]))) == [3, 2, 1]
    assert source.asked == [[2], [3, 1]]


def test_the_function_is_not_called_when_nothing_is_missing(many, source):
    load = many(source.load)
    load({1: None, 2: None})
    assert load([2, 1]) == {2: "two", 1: "one"}
    assert load([]) == {}
    assert load.refresh([]) == {}
    assert source.asked == [[1, 2]]


def test_ids_that_the_function_leaves_out_are_absent_and_asked_for_again(many, source):
    load = many(source.load)
    assert load([1, 9]) == {1: "one"}
    assert load([9, 1]) == {1: "one"}
    assert source.asked == [[1, 9], [9]]
    assert load.peek(9) is MISSING
    assert load.stats().uncached_by == {"left_out": 2}


def test_an_old_entry_of_an_id_that_is_left_out_goes(many, source):
    load = many(source.load)
    load([1, 2])
    del source.values[1]
    assert load.refresh([1, 2]) == {2: "two"}
    assert load.peek(1) is MISSING
    assert load.peek(2) == "two"


def test_ids_that_were_not_asked_for_are_ignored(many, source):
    load = many(lambda ids: dict.fromkeys([*ids, 77], "x"))
    assert load([1]) == {1: "x"}
    assert load.peek(77) is MISSING


def test_none_is_returned_and_not_kept_unless_asked(many, source):
    source.values[1] = None
    load, keeping = many(source.load), many(source.load, cache_none=True)
    assert load([1, 2]) == {1: None, 2: "two"}
    assert load([1, 2]) == {1: None, 2: "two"}
    assert source.asked == [[1, 2], [1]]
    assert load.stats().uncached_by == {"none": 2}
    keeping([1])
    assert keeping([1, 9]) == {1: None}
    assert source.asked[2:] == [[1], [9]]  # also an id that is left out is never kept


def test_ttl_and_cache_if_see_the_value_of_one_id(many, source, clock):
    load = many(source.load, ttl=lambda value: len(value), cache_if=lambda value: value != "two")
    load([1, 2, 3])
    assert load.ttl_left(1) == 3
    assert load.ttl_left(3) == 5
    assert load.ttl_left(2) is None
    clock.advance(3)
    load([1, 2, 3])
    assert source.asked == [[1, 2, 3], [1, 2]]


def test_what_a_policy_callable_raises_keeps_one_value_out_only(many, source):
    load = many(source.load, cache_if=lambda value: value == "one" or 1 / 0)
    assert load([1, 2]) == {1: "one", 2: "two"}
    assert load.peek(1) == "one"
    assert load.peek(2) is MISSING
    assert load.stats().errors == {"policy": 1}


def test_each_id_is_one_lookup(many, source):
    load = many(source.load)
    load([1, 2, 2])
    load([2, 3, 9, 2])
    stats = load.stats()
    assert (stats.hits, stats.misses) == (1, 4)
    assert stats.loads == 4
    assert load.store.stats().hits == 1
    assert load.store.stats().misses == 4


def test_an_error_reaches_the_caller_and_nothing_is_stored_but_what_was(many, source, rest):
    load = many(source.load)
    load([1])
    source.error = LookupError("no")
    with pytest.raises(LookupError) as caught:
        load([1, 2, 3])
    assert caught.value is source.error
    source.error = None
    assert load.peek(1) == "one"
    assert load.peek(2) is MISSING
    assert rest(load.function) == []
    assert load([3, 2, 1]) == {3: "three", 2: "two", 1: "one"}


def test_a_refresh_that_raises_leaves_the_old_entries(many, source):
    load = many(source.load)
    load([1, 2])
    source.error = LookupError("no")
    with pytest.raises(LookupError):
        load.refresh([1])
    assert load.peek(1) == "one"


@pytest.mark.parametrize("result", [None, [1, 2], "ab", 7, {1}])
def test_a_result_that_is_no_mapping_is_a_type_error_that_names_the_function(many, result, rest):
    load = many(lambda ids: result, namespace="app.load")
    with pytest.raises(TypeError, match=r"(load|<lambda>) returned a \w+: .*mapping"):
        load([1, 2])
    assert rest(load.function) == []


def test_a_coroutine_for_a_mapping_is_closed(store):
    async def late(ids):
        return {}

    load = cache_aside_many(store=store)(lambda ids: late(ids))
    with pytest.raises(TypeError, match="returned a coroutine"):
        load([1])


def test_a_value_that_can_be_used_only_once_is_refused(many):
    load = many(lambda ids: {1: "fine", 2: (x for x in ids)})
    with pytest.raises(TypeError, match="generator, which can be used only once"):
        load([1, 2])
    assert load.peek(1) == "fine"


def test_a_mapping_need_not_be_a_dict_and_its_defaults_are_not_asked_for(many):
    class Lazy(Mapping):
        def __getitem__(self, each):
            if each == 9:
                raise KeyError(each)
            return each * 10

        def __iter__(self):
            raise AssertionError

        __len__ = __iter__

    assert many(lambda ids: Lazy())([1, 9, 2]) == {1: 10, 2: 20}
    defaults = defaultdict(list, {1: "one"})
    assert many(lambda ids: defaults)([1, 2]) == {1: "one"}
    assert dict(defaults) == {1: "one"}


def test_what_a_mapping_raises_is_the_loads_error(many, rest):
    class Broken(dict):
        def get(self, each, default=None):
            raise ZeroDivisionError

    load = many(lambda ids: Broken())
    with pytest.raises(ZeroDivisionError):
        load([1])
    assert rest(load.function) == []


def test_equal_ids_are_one_as_in_any_dict(many, source):
    load = many(source.load)
    assert load([1, True, 1.0]) == {1: "one"}
    assert source.asked == [[1]]
    assert load.key_for(True) != load.key_for(1)


def test_ids_that_render_alike_share_the_result_of_the_first(many):
    asked = []
    load = many(lambda ids: asked.append(ids) or {each: repr(each) for each in ids}, key="id:{ids}")
    assert load([7, "7", 8]) == {7: "7", "7": "7", 8: "8"}
    assert asked == [[7, 8]]
    assert (load.stats().hits, load.stats().misses) == (0, 2)
    assert load(["7", 7]) == {"7": "7", 7: "7"}


def test_an_id_that_a_template_cannot_render_safely_is_refused_by_the_functions_name(many, source):
    load = many(source.load, key="id:{ids}")
    with pytest.raises(UnkeyableError, match=rf"^{re.escape(load._self_memoized.name)}: {{ids}}"):
        load([1, object()])
    assert source.asked == []


def test_other_parameters_are_part_of_each_key_and_ignored_ones_are_not(store):
    asked = []

    @cache_aside_many(store=store, ignore=("conn",), namespace="app.load")
    def load(ids: Sequence[int], lang: str = "en", *, conn: object = None):
        asked.append((ids, lang, conn))
        return dict.fromkeys(ids, lang)

    assert load([1]) == {1: "en"}
    assert load(ids=[1, 2], lang="no", conn=3) == {1: "no", 2: "no"}
    assert load([1, 2], "no", conn=4) == {1: "no", 2: "no"}
    assert load([1, 2, 3], conn=5) == {1: "en", 2: "en", 3: "en"}
    assert asked == [([1], "en", None), ([1, 2], "no", 3), ([2, 3], "en", 5)]
    assert load.key_for(1, "no") == "app.load(1,'no')"
    assert load.invalidate_many([1, 2, 9], lang="no") == 2
    assert load.peek(1) == "en"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "app.load('a',x=1,ids=7)"),
        ({"key": "{tenant}:{ids}"}, "app.load:a:7"),
        ({"key": lambda tenant, *, x, ids: f"{tenant}-{ids}"}, "app.load:a-7"),
        ({"ignore": ("x",)}, "app.load('a',ids=7)"),
    ],
)
def test_ids_may_be_any_parameter_and_stand_for_one_id_in_its_key(store, options, key):
    asked = []

    @cache_aside_many(ids="ids", store=store, namespace="app.load", **options)
    def load(tenant, *, x=1, ids):
        asked.append((tenant, x, ids))
        return dict.fromkeys(ids, tenant)

    assert load("a", ids=[7, 8]) == {7: "a", 8: "a"}
    assert load("a", ids=[8, 9]) == {8: "a", 9: "a"}
    assert asked == [("a", 1, [7, 8]), ("a", 1, [9])]
    assert load.peek("a", ids=7) == "a"
    assert load.key_for("a", ids=7) == key
    assert load.store.get(key) == "a"
    assert load.invalidate_many("a", ids=[7, 8]) == 2


def test_tags_are_those_of_one_id(many, source, store):
    load = many(source.load, tags=("names", "name:{ids}"))
    load([1, 2, 3])
    store.invalidate_tags("name:2")
    assert [load.peek(each) for each in (1, 2, 3)] == ["one", MISSING, "three"]
    store.invalidate_tags("names")
    assert load.peek(1) is MISSING
    load.set("uno", 1)
    store.invalidate_tags("name:1")
    assert load.peek(1) is MISSING


def test_the_helpers_take_one_id(many, source):
    load = many(source.load, ttl=10)
    load([1, 2])
    assert load.ttl_left(1) == 10
    assert load.ttl_left(3) is None
    load.set("drei", 3)
    assert load([3]) == {3: "drei"}
    assert load.invalidate(1) is True
    assert load.invalidate(1) is False
    assert load.peek(1) is MISSING
    assert load.invalidate_all() is None
    assert load.peek(3) is MISSING
    assert load.invalidate_many([1, 2]) == 0
    with pytest.raises(OptionError, match="not kept"):
        load.set(None, 1)


def test_a_refresh_loads_all_ids_and_takes_the_place_of_what_is_there(many, source):
    load = many(source.load)
    load([1, 2])
    source.values[1] = "uno"
    assert load.refresh([2, 1, 2]) == {2: "two", 1: "uno"}
    assert load([1]) == {1: "uno"}
    assert source.asked == [[1, 2], [2, 1]]
    assert (load.stats().hits, load.stats().misses) == (1, 2)


@pytest.mark.parametrize("wrong", ["ab", b"ab", 7, None])
def test_one_id_in_the_place_of_several_is_refused_and_the_function_not_called(many, source, wrong):
    load = many(source.load)
    load.set("an entry of that id", wrong)
    for call in (load, load.refresh, load.invalidate_many):
        with pytest.raises(UnkeyableError, match=r"'ids' is of type .*several"):
            call(wrong)
    assert source.asked == []


def test_several_ids_in_the_place_of_one_are_refused(many, source):
    load = many(source.load)
    load([1, 2])
    for call in (load.invalidate, load.peek, load.key_for, load.ttl_left):
        with pytest.raises(UnkeyableError, match=r"'ids' is of type list.*takes one id"):
            call([1, 2])
    with pytest.raises(UnkeyableError, match="takes one id"):
        load.set("x", [1, 2])
    assert load.peek(1) == "one"


@pytest.mark.parametrize("wrong", [object(), [1], lambda: None])
def test_an_id_that_cannot_be_a_key_is_refused_before_anything_is_called(many, source, wrong):
    load = many(source.load)
    with pytest.raises(UnkeyableError, match="'ids'"):
        load([1, wrong])
    assert source.asked == []
    assert load.peek(1) is MISSING
    assert load.stats().misses == 0


def test_what_a_tag_cannot_hold_is_raised_and_nothing_is_left_behind(many, source, rest):
    load = many(source.load, tags=("t:{ids.name}",))
    with pytest.raises(AttributeError):
        load([1])
    assert rest(load.function) == []
    assert source.asked == []


def test_a_store_that_keeps_nothing_loads_every_time(source):
    load = cache_aside_many(store=NullStore())(source.load)
    assert load([1, 2]) == load([1, 2]) == {1: "one", 2: "two"}
    assert source.asked == [[1, 2], [1, 2]]


# -- methods -----------------------------------------------------------------------------------------------------------


class Shop:
    def __init__(self, name):
        self.name = name
        self.asked = []

    @cache_aside_many(store="memory://?max_size=77")
    def load(self, ids):
        self.asked.append(ids)
        return {each: (self.name, each) for each in ids}

    @cache_aside_many(store="memory://?max_size=77")
    async def aload(self, ids):
        self.asked.append(ids)
        return {each: (self.name, each) for each in ids}

    @cache_aside_many(store="memory://?max_size=77")
    @classmethod
    def outer(cls, ids):
        return {each: (cls.__name__, each) for each in ids}

    @classmethod
    @cache_aside_many(store="memory://?max_size=77")
    def inner(cls, ids):
        return {each: (cls.__name__, each) for each in ids}

    @cache_aside_many(store="memory://?max_size=77")
    @staticmethod
    def souter(ids):
        return dict.fromkeys(ids, "s")

    @staticmethod
    @cache_aside_many(store="memory://?max_size=77")
    def sinner(ids, x=1):
        return dict.fromkeys(ids, x)


class Branch(Shop):
    def load(self, ids):
        return super().load(ids)


def test_methods_have_entries_by_instance():
    one, two = Shop("one"), Branch("two")
    assert one.load([1, 2]) == {1: ("one", 1), 2: ("one", 2)}
    assert two.load([1]) == {1: ("two", 1)}
    assert one.load([2, 3]) == {2: ("one", 2), 3: ("one", 3)}
    assert one.asked == [[1, 2], [3]]
    assert one.load.peek(3) == ("one", 3)
    assert Shop.load.peek(one, 3) == ("one", 3)
    assert one.load.invalidate(3)
    assert one.load.invalidate_many([1, 2, 3]) == 2
    assert one.load.refresh([1]) == {1: ("one", 1)}
    assert two.load([1]) == {1: ("two", 1)}
    assert two.asked == [[1]]


async def test_async_methods_have_entries_by_instance():
    one = Shop("one")
    assert await one.aload([1, 2]) == {1: ("one", 1), 2: ("one", 2)}
    assert await one.aload([2]) == {2: ("one", 2)}
    assert await one.aload.invalidate_many([1, 2, 3]) == 2
    assert await one.aload.refresh([1]) == {1: ("one", 1)}
    assert one.asked == [[1, 2], [1]]


def test_classmethods_and_staticmethods():
    assert Shop.outer([1]) == Shop("x").outer([1]) == {1: ("Shop", 1)}
    assert Branch.outer([1]) == {1: ("Branch", 1)}
    assert Shop.outer.invalidate(1)
    assert Branch.outer.peek(1) == ("Branch", 1)
    assert Shop.inner([1]) == {1: ("Shop", 1)}
    assert Shop.inner.invalidate_many(Shop, [1]) == 1
    assert Shop.souter([1]) == {1: "s"}
    assert Shop("x").souter.invalidate_many([1, 2]) == 1
    assert Shop.sinner([1], x=2) == {1: 2}
    assert Shop.sinner.peek(1, 2) == 2


def test_an_instance_that_is_given_a_new_table_between_two_ids_begins_again(source):
    """1. the first id is located   2. invalidate_all lets the instance's table go   3. the second id is located."""
    store = MemoryStore(cleanup_interval=None)

    class Repo:
        @cache_aside_many(store=store)
        def load(self, ids):
            return source.load(ids)

    repo = Repo()
    repo.load([3])

    class Sly:
        def __init__(self):
            self.done = False

        def __hash__(self):
            return 5

        def __cache_key__(self):
            if not self.done:
                self.done = True
                Repo.load.invalidate_all()
            return "sly"

    sly = Sly()
    source.values[sly] = "sly"
    assert repo.load([1, sly, 3]) == {1: "one", sly: "sly", 3: "three"}
    assert repo.load.peek(3) == "three"
    assert repo.load.peek(sly) == "sly"


# -- what it looks like ------------------------------------------------------------------------------------------------


@cache_aside_many
def documented(ids: Sequence[int], lang: str = "en") -> Mapping[int, str]:
    """Say it."""
    return {}


@cache_aside_many
async def adocumented(ids):
    return {}


def test_the_function_looks_like_itself_and_pickles_by_reference():
    assert list(inspect.signature(documented).parameters) == ["ids", "lang"]
    assert documented.__doc__ == "Say it."
    assert documented.__name__ == "documented"
    assert documented.__wrapped__([1]) == {}
    assert inspect.iscoroutinefunction(adocumented)
    assert not inspect.iscoroutinefunction(documented)
    assert pickle.loads(pickle.dumps(documented)) is documented
    assert pickle.loads(pickle.dumps(Shop.load)) is Shop.load
    assert isinstance(documented.store, MemoryStore)


@pytest.mark.parametrize(
    ("decorate", "message"),
    [
        (lambda: cache_aside_many(ids="x")(lambda ids: {}), r"ids='x'.*\['ids'\]"),
        (lambda: cache_aside_many(ids=3)(lambda ids: {}), "ids=3"),
        (lambda: cache_aside_many(lambda: None), "has a parameter for them"),
        (lambda: cache_aside_many(lambda *ids: {}), "has a parameter for them"),
        (lambda: cache_aside_many(lambda ids=(): {}), "'ids' holds the ids, so it has no default"),
        (lambda: cache_aside_many(ignore=("ids",))(lambda ids: {}), "ignore= must not leave it out"),
        (lambda: cache_aside_many(key="a:{x}")(lambda ids, x: {}), "key= must not leave it out"),
        (lambda: cache_aside_many(ids="self")(Shop.load.__wrapped__), "ids='self'"),
        (lambda: cache_aside_many(60), "cache_aside_many decorates functions"),
        (lambda: cache_aside_many(int), "cache_aside_many decorates functions"),
        (lambda: cache_aside_many(ttl=0)(lambda ids: {}), "ttl"),
        (lambda: cache_aside_many(store=7)(lambda ids: {}), "store="),
        (lambda: cache_aside_many(tags=("t:{nobody}",))(lambda ids: {}), "nobody"),
        (lambda: cache_aside_many(lambda ids: (yield)), "generator"),
    ],
)
def test_what_is_not_allowed_is_an_error_at_decoration(decorate, message):
    with pytest.raises(OptionError, match=message):
        decorate()


def test_the_first_parameter_after_self_holds_the_ids():
    seen = {}

    class Repo:
        @cache_aside_many
        def load(self, numbers):
            return dict.fromkeys(numbers, 1)

        @cache_aside_many
        @classmethod
        def cload(klass, numbers):
            return dict.fromkeys(numbers, 2)

    @cache_aside_many
    def keyword(*, numbers, x=1):
        return dict.fromkeys(numbers, 3)

    assert Repo().load([1]) == {1: 1}
    assert Repo.cload([1]) == {1: 2}
    assert keyword(numbers=[1]) == {1: 3}
    assert keyword.ttl_left(numbers=1) == math.inf
    assert seen == {}


# -- beside other parts ------------------------------------------------------------------------------------------------


def test_switched_off_it_asks_each_time_and_overridden_it_is_elsewhere(many, source, store):
    load = many(source.load)
    load([1])
    with disabled():
        assert load([1, 1]) == {1: "one"}
    other = MemoryStore(cleanup_interval=None)
    with override(other):
        assert load([1, 2]) == {1: "one", 2: "two"}
        assert len(other) == 2
    assert load([1]) == {1: "one"}
    assert source.asked == [[1], [1], [1, 2]]


def test_methods_that_were_switched_off_find_their_entries_again():
    shop = Shop("off")
    shop.load([1])
    with disabled():
        assert shop.load([1, 2]) == {1: ("off", 1), 2: ("off", 2)}
    assert shop.load([1, 2]) == {1: ("off", 1), 2: ("off", 2)}
    assert shop.asked == [[1], [1, 2], [2]]


def test_while_caching_is_disabled_a_call_returns_what_it_returns_otherwise(many, source):
    """The function has a list; its caller has a dict in the order of the ids, without what was not asked for."""
    load = many(lambda ids: {99: "not asked for", **source.load(ids)})
    with disabled():
        assert list(load(iter([3, 1, 3, 2, 77])).items()) == [(3, "three"), (1, "one"), (2, "two")]
        assert load([]) == {}
    assert source.asked == [[3, 1, 2, 77]]
    stats = load.stats()
    assert (stats.hits, stats.misses, stats.loads) == (0, 0, 0)


def test_while_caching_is_disabled_what_is_no_mapping_and_no_ids_is_refused_as_otherwise(many):
    load = many(lambda ids: list(ids))
    with disabled():
        with pytest.raises(TypeError, match="returns a mapping"):
            load([1])
        with pytest.raises(UnkeyableError, match="several ids"):
            load("12")
