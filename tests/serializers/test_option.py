"""`serializer=` on a function takes the place of its store's, on every store; what another one wrote is a miss."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import pickle
import threading
from typing import Any

import pytest

from memo import (
    MISSING,
    CompressedSerializer,
    CustomStore,
    JSONSerializer,
    MemoryStore,
    NullStore,
    OptionError,
    PickleFileStore,
    PickleSerializer,
    RedisStore,
    SerializationError,
    cache_aside,
    cache_aside_many,
)
from memo.testing import ManualClock
from mutants import module

_servers = module("redis/conftest.py")
_session_server, redis_server = _servers._session_server, _servers.redis_server

PATIENCE = 20.0


@dataclasses.dataclass
class User:
    id: int
    born: dt.date


ADA = User(7, dt.date(1815, 12, 10))


class Records(CustomStore):
    """Records as a database has them: what outlives the store, and no type but bytes."""

    def __init__(self, records: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.records = records

    def load_record(self, key):
        return pickle.loads(self.records[key]) if key in self.records else None

    def save_record(self, key, record):
        self.records[key] = pickle.dumps(record)

    def remove_record(self, key):
        self.records.pop(key, None)

    def record_keys(self):
        return self.records


STORES = ("memory", "memory of pickles", "custom", "custom of JSON", "file", "redis")
SHARED = ("custom", "custom of JSON", "file", "redis")


class World:
    """Makes stores of one kind over the same entries, each as another process has it."""

    def __init__(self, kind: str, folder: Any, request: Any) -> None:
        self.kind = kind
        self.folder = folder
        self.records: dict[str, Any] = {}
        self.server = request.getfixturevalue("redis_server") if kind == "redis" else None
        self.made: list[Any] = []

    def store(self) -> Any:
        makers = {
            "memory": lambda: MemoryStore(cleanup_interval=None),
            "memory of pickles": lambda: MemoryStore(cleanup_interval=None, serializer="pickle"),
            "custom": lambda: Records(self.records),
            "custom of JSON": lambda: Records(self.records, serializer="json"),
            "file": lambda: PickleFileStore(self.folder / "cache.memo", timeout=10),
            "redis": lambda: RedisStore(self.server.url, timeout=10),
        }
        self.made.append(makers[self.kind]())
        return self.made[-1]

    def close(self) -> None:
        for store in self.made:
            store.close()


@pytest.fixture
def world(request, tmp_path):
    made = World(request.param, tmp_path, request)
    yield made
    made.close()


on_every_store = pytest.mark.parametrize("world", STORES, indirect=True)
on_shared_stores = pytest.mark.parametrize("world", SHARED, indirect=True)
of_both_kinds = pytest.mark.parametrize("awaited", [False, True], ids=["sync", "async"])


def cached(store: Any, value: Any, awaited: bool = False, returns: Any = Any, **options: Any) -> tuple[Any, list[Any]]:
    """A function that returns `value`, decorated, called as a plain one; and its loads."""
    loads: list[Any] = []
    options = {"ttl": 60, "namespace": "app.f", **options}

    def load(x):
        loads.append(x)
        return value

    async def aload(x):
        return load(x)

    load.__annotations__["return"] = aload.__annotations__["return"] = returns
    f = cache_aside(store=store, **options)(aload if awaited else load)
    return f, loads


def run(f: Any, *args: Any) -> Any:
    """Call a function or a helper, of an async one in an event loop of its own."""

    async def awaited():
        return await f(*args)

    result = f(*args) if not asyncio.iscoroutinefunction(f) else asyncio.run(awaited())
    return asyncio.run(_given(result)) if asyncio.iscoroutine(result) else result


async def _given(awaitable: Any) -> Any:
    return await awaitable


# -- what is allowed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decorate", [cache_aside, cache_aside_many])
@pytest.mark.parametrize("given", ["yaml", "", "json+lzma", 7, object(), JSONSerializer, b"json", True])
def test_what_is_no_serializer_is_refused_at_decoration(decorate, given):
    def load(ids):
        raise AssertionError("it is not called")

    with pytest.raises(OptionError) as caught:
        decorate(serializer=given)(load)
    text = str(caught.value)
    assert text.startswith(f"{__name__}.test_what_is_no_serializer_is_refused_at_decoration.<locals>.load: serializer=")
    assert "allowed" in text
    if given is not JSONSerializer:
        assert repr(given) in text
        assert "'msgpack+zlib'" in text
        assert "dumps and loads" in text


@pytest.mark.parametrize("given", ["json", "msgpack", "pickle", "json+gzip", "msgpack+zlib", json, JSONSerializer()])
def test_names_and_objects_are_allowed_and_no_store_is_asked_for(given):
    f = cache_aside(serializer=given, store="nowhere")(lambda x: x)
    with pytest.raises(OptionError, match="nowhere"):
        f(1)


@pytest.mark.parametrize("given", ["pickle", "pickle+gzip", pickle, PickleSerializer()])
@of_both_kinds
def test_on_redis_a_pickle_needs_a_secret_or_trust_which_the_first_call_finds(redis_server, given, awaited):
    store = RedisStore(redis_server.url)
    f, loads = cached(store, 1, awaited, serializer=given)
    for _ in range(2):
        with pytest.raises(OptionError, match=r"load: serializer=.*allowed are\s+PickleSerializer\(secret=...\)"):
            run(f, 1)
    assert loads == []
    store.close()


@pytest.mark.parametrize(
    "given",
    [
        PickleSerializer(secret="a secret of sixteen bytes"),
        PickleSerializer(trusted=True),
        CompressedSerializer(PickleSerializer(secret="a secret of sixteen bytes"), "zlib"),
    ],
)
@pytest.mark.parametrize("world", ["redis", "file", "custom"], indirect=True)
def test_a_signed_or_trusted_pickle_is_taken_and_keeps_any_type(world, given):
    f, loads = cached(world.store(), {ADA.id: (ADA.born, {1})}, serializer=given)
    assert f(1) == f(1) == {7: (dt.date(1815, 12, 10), {1})}
    assert len(loads) == 1


def test_a_signed_payload_of_another_key_is_not_read(redis_server):
    store = RedisStore(redis_server.url, timeout=10)
    f, loads = cached(store, "one", serializer=PickleSerializer(secret="a secret of sixteen bytes"))
    f(1), f(2)
    client = redis_server.client()
    one, two = client.get("cache:app.f(1)"), client.get("cache:app.f(2)")
    client.set("cache:app.f(2)", two.partition(b"\n")[0] + b"\n" + one.partition(b"\n")[2])
    assert f.peek(2) is MISSING
    f(2)
    assert len(loads) == 3
    store.close()


@pytest.mark.parametrize("own", [True, False], ids=["the function's", "the store's"])
def test_in_a_store_of_ones_own_a_signed_payload_of_another_key_is_not_read(own):
    signed = PickleSerializer(secret="a secret of sixteen bytes")
    records: dict[str, Any] = {}
    store = Records(records) if own else Records(records, serializer=signed)
    f, loads = cached(store, "one", serializer=signed if own else None)
    f(1), f(2)
    records["app.f(2)"] = records["app.f(1)"]
    assert f.peek(2) is MISSING
    f(2)
    assert loads == [1, 2, 2]
    assert f(2) == "one"


def test_in_a_store_of_ones_own_a_signed_plain_value_of_another_key_is_not_read():
    records: dict[str, Any] = {}
    store = Records(records, serializer=PickleSerializer(secret="a secret of sixteen bytes"))
    store.set("a", 1)
    assert (store.increment("a"), store.increment("a"), store.get("a")) == (2, 3, 3)
    records["b"] = records["a"]
    assert store.get("b") is None
    assert store.get("a") == 3


# -- what it does ------------------------------------------------------------------------------------------------------


@on_every_store
@of_both_kinds
def test_a_hit_has_the_type_of_the_miss_and_is_a_copy(world, awaited):
    f, loads = cached(world.store(), [ADA], awaited, returns=list[User], serializer="msgpack")
    missed, hit, peeked = run(f, 1), run(f, 1), run(f.peek, 1)
    assert missed == hit == peeked == [ADA]
    assert type(hit[0]) is User
    assert loads == [1]
    hit.append("changed")
    assert run(f, 1) == [ADA]
    run(f.set, [User(1, dt.date.min)], 1)
    assert run(f, 1) == [User(1, dt.date.min)]
    assert run(f.invalidate, 1)
    assert run(f, 1) == [ADA]
    assert (f.stats().hits, f.stats().misses, f.stats().errors) == (3, 2, {})


@on_every_store
def test_what_it_would_change_is_returned_and_not_stored_and_the_log_says_once_what_to_do(world, caplog):
    f, loads = cached(world.store(), (1, 2), serializer="json")
    assert f(1) == f(1) == (1, 2)
    assert len(loads) == 2
    assert f.peek(1) is MISSING
    assert sum(f.stats().errors.values()) == 2
    (line,) = [record.getMessage() for record in caplog.records if "fill" in record.getMessage()]
    assert "a tuple would come back as a list; annotate what the function returns" in line
    with pytest.raises(SerializationError, match="a tuple would come back as a list"):
        f.set((1, 2), 1)


@on_every_store
def test_verify_false_takes_what_can_be_written(world):
    f, _ = cached(world.store(), (1, 2), serializer=JSONSerializer(verify=False))
    assert f(1) == (1, 2)
    assert f(1) == [1, 2]


@on_every_store
def test_its_limit_holds_and_not_the_stores(world):
    f, loads = cached(world.store(), "x" * 100, serializer=JSONSerializer(max_size=100))
    f(1), f(1)
    assert len(loads) == 2
    g, loads = cached(world.store(), "x" * 98, serializer=JSONSerializer(max_size=100), namespace="app.g")
    g(1), g(1)
    assert len(loads) == 1


def test_a_function_has_more_types_than_its_store_or_fewer(redis_server):
    store = RedisStore(redis_server.url, timeout=10)
    f, loads = cached(store, b"bytes", serializer="msgpack")
    plain, plain_loads = cached(store, b"bytes", namespace="app.plain")
    for _ in range(2):
        assert (f(1), plain(1)) == (b"bytes", b"bytes")
    assert (len(loads), len(plain_loads)) == (1, 2)
    store.close()


@on_every_store
def test_an_object_of_ones_own_writes_text_or_bytes(world):
    f, loads = cached(world.store(), {"a": [1, None]}, serializer=json)
    assert f(1) == f(1) == {"a": [1, None]}
    assert len(loads) == 1


@on_every_store
@of_both_kinds
def test_of_many_ids_each_value_is_written_by_it(world, awaited):
    loads = []

    def load(ids) -> dict[int, User]:
        loads.append(ids)
        return {each: User(each, dt.date.min) for each in ids}

    async def aload(ids) -> dict[int, User]:
        return load(ids)

    decorate = cache_aside_many(store=world.store(), ttl=60, namespace="app.users", serializer="msgpack")
    f = decorate(aload if awaited else load)
    expected = {1: User(1, dt.date.min), 2: User(2, dt.date.min)}
    assert run(f, [1, 2]) == run(f, [1, 2]) == expected
    assert run(f.peek, 2) == expected[2]
    assert loads == [[1, 2]]
    assert f.stats().errors == {}


def test_of_many_ids_the_stores_serializer_reads_each_value_by_the_mappings_annotation(redis_server):
    store = RedisStore(redis_server.url, timeout=10)
    loads = []

    @cache_aside_many(store=store, namespace="app.users")
    def users(ids) -> dict[int, User]:
        loads.append(ids)
        return {each: User(each, dt.date.min) for each in ids}

    assert users([1, 2]) == users([1, 2]) == {1: User(1, dt.date.min), 2: User(2, dt.date.min)}
    assert loads == [[1, 2]]
    store.close()


class Own(Records):
    """Records that nobody else has."""

    shared = False


@pytest.mark.parametrize(
    "make",
    [MemoryStore, lambda: MemoryStore(serializer="pickle"), lambda: Own({})],
    ids=["memory", "memory of pickles", "custom"],
)
def test_the_methods_of_instances_have_it_too(make):
    class Shop:
        loads = 0

        @cache_aside(store=make(), serializer="json")
        def total(self, item) -> list[User]:
            Shop.loads += 1
            return [ADA]

    shop, other = Shop(), Shop()
    for _ in range(2):
        assert shop.total("book") == other.total("book") == [ADA]
        assert shop.total("book") is not shop.total("book")
    assert Shop.loads == 2
    assert Shop.total.stats().errors == {}
    shop.total.set([ADA], "box")
    with pytest.raises(SerializationError, match="a tuple would come back as a list"):
        shop.total.set((ADA,), "box")


def test_and_so_have_the_methods_of_classes():
    class Shop:
        @cache_aside(serializer="json")
        @classmethod
        def name(cls) -> list[User]:
            return [ADA]

    assert Shop.name() == Shop.name() == [ADA]
    assert Shop.name() is not Shop.name()
    assert Shop.name.stats().loads == 1


def test_a_stale_value_is_read_by_it_on_every_kind_of_call():
    clock, failing = ManualClock(), threading.Event()
    store = MemoryStore(clock=clock, cleanup_interval=None)

    @cache_aside(store=store, serializer="msgpack", ttl=10, stale_if_error=100)
    def f():
        if failing.is_set():
            raise OSError("down")
        return [b"x"]

    assert f() == [b"x"]
    failing.set()
    clock.advance(50)
    assert f() == [b"x"]
    assert f() is not f()


def test_a_store_that_keeps_nothing_takes_any():
    f, loads = cached(NullStore(), {1}, serializer="json")
    assert f(1) == f(1) == {1}
    assert len(loads) == 2


def test_a_function_without_it_still_shares_values_by_reference():
    store, value = MemoryStore(), []
    f, _ = cached(store, value)
    g, _ = cached(store, value, serializer="json", namespace="app.g")
    assert f(1) is f(1) is value
    assert g(1) is value
    assert g(1) is not value


# -- beside other serializers ------------------------------------------------------------------------------------------

PAIRS = [
    (one, two)
    for one in (None, "json", "msgpack", "msgpack+zlib", json, JSONSerializer)
    for two in (None, "json", "msgpack", PickleSerializer)
    if one is not two and (one, two) != (JSONSerializer, "json")
]


def made(serializer: Any) -> Any:
    if serializer is PickleSerializer:
        return PickleSerializer(secret="a secret of sixteen bytes")
    return serializer() if isinstance(serializer, type) else serializer


@on_shared_stores
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_after_a_deploy_what_another_serializer_wrote_is_a_miss_and_is_replaced(world, before, after):
    """The JSON of 7 is the MessagePack of 55."""
    old, _ = cached(world.store(), 7, serializer=made(before))
    old(1)
    new, loads = cached(world.store(), 8, serializer=made(after))
    assert new.peek(1) is MISSING
    assert new(1) == 8
    assert new(1) == 8
    assert loads == [1]
    assert (new.stats().hits, new.stats().misses, new.stats().errors) == (1, 1, {})
    assert old.peek(1) is MISSING
    assert old(1) == 7, "and rolled back"


def test_no_part_of_what_another_one_wrote_is_taken_for_a_payload(redis_server):
    store = RedisStore(redis_server.url, timeout=10)
    for number, before in enumerate((None, Late(), "json")):
        old, _ = cached(store, 123_456_789_012_345_678, serializer=before, namespace=f"app.f{number}")
        old(1)
        for after in ("json", Soon(), None):
            if after != before:
                new, _ = cached(store, 8, serializer=after, namespace=f"app.f{number}")
                assert new.peek(1) is MISSING
    store.close()


class Late:
    """Digits, as `Soon` writes them."""

    dumps = staticmethod(lambda value: str(value))
    loads = staticmethod(int)


class Soon(Late):
    """Another one, whose name is as long."""


@on_shared_stores
def test_an_invalidation_reaches_what_another_serializer_has_written(world):
    old, loads = cached(world.store(), 7, serializer="json", tags=("t",))
    new, _ = cached(world.store(), 7, serializer="msgpack", tags=("t",))
    for number, invalidate in enumerate(
        (lambda: new.invalidate(1), new.invalidate_all, lambda: new.store.invalidate_tags("t"), new.store.clear)
    ):
        assert old(1) == 7
        assert len(loads) == number + 1
        invalidate()


@on_shared_stores
def test_the_store_itself_takes_it_for_nothing_and_leaves_it_there(world):
    store = world.store()
    f, loads = cached(store, 7, serializer="msgpack")
    f(1)
    key = f.key_for(1)
    assert store.get(key, "nothing") == "nothing"
    assert store.get_many([key]) == {}
    assert store.exists(key)
    with pytest.raises((ValueError, SerializationError)):
        store.increment(key)
    assert f(1) == 7
    assert len(loads) == 1
    assert store.delete(key)


def test_a_memory_store_reads_what_each_function_has_written():
    store = MemoryStore(serializer="pickle")
    f, _ = cached(store, 7, serializer="msgpack")
    g, _ = cached(store, 8, namespace="app.g")
    f(1), g(1)
    store.set("plain", {1})
    assert (store.get("app.f(1)"), store.get("app.g(1)"), store.get("plain")) == (7, 8, {1})


@pytest.mark.parametrize("whole", [None, "pickle", pickle])
@pytest.mark.parametrize(("before", "after"), [(None, "json"), ("json", None), ("json", "msgpack"), ("json", "json")])
@pytest.mark.parametrize("called", ["before the load", "after the load"])
def test_a_saved_memory_store_is_read_by_who_has_written_it(tmp_path, whole, before, after, called):
    def f(x):
        loads.append(x)
        return 7

    loads: list[int] = []
    store = MemoryStore(serializer=whole, cleanup_interval=None)
    cache_aside(store=store, namespace="app.f", serializer=before)(f)(1)
    store.save(tmp_path / "saved")
    store = MemoryStore(serializer=whole, cleanup_interval=None)
    new = cache_aside(store=store, namespace="app.f", serializer=after)(f)
    if called == "before the load":
        new(1)
    store.load(tmp_path / "saved")
    loads.clear()
    if called == "after the load":
        got = store.get("app.f(1)")  # nobody has claimed it yet
        assert got == (7 if before is None else None)
    assert new(1) == new(1) == 7
    assert loads == ([] if before == after else [1])


def test_an_object_that_reads_anything_reads_no_other_functions_entry(redis_server):
    class Anything:
        dumps = staticmethod(lambda value: b"it")
        loads = staticmethod(bytes.upper)
        verify = False

    before, after = (RedisStore(redis_server.url, timeout=10, serializer=each) for each in ("json", Anything()))
    old, _ = cached(before, 7, serializer="json")
    old(1)
    new, loads = cached(after, 8)
    assert new(1) == 8
    assert new(1) == b"IT"
    assert loads == [1]
    before.close(), after.close()


def test_a_payload_of_a_class_that_inherits_from_one_of_ours_is_its_own(redis_server):
    class Mine(JSONSerializer):
        pass

    store = RedisStore(redis_server.url, timeout=10)
    mine, _ = cached(store, 7, serializer=Mine())
    mine(1)
    assert b"\n\xc1memo tests" in redis_server.client().get("cache:app.f(1)").replace(__name__.encode(), b"tests")
    ours, loads = cached(store, 8, serializer="json")
    assert ours(1) == 8
    assert loads == [1]
    store.close()


def test_what_stands_on_redis_is_the_header_the_mark_and_the_payload(redis_server):
    store = RedisStore(redis_server.url, timeout=10)
    f, _ = cached(store, {"a": 1}, serializer="json")
    f(1)
    header, mark, payload = redis_server.client().get("cache:app.f(1)").split(b"\n")
    assert header.startswith(b"#memo1 ")
    assert (mark, payload) == (b"\xc1memo json", b'{"a":1}')
    store.close()


def test_damage_in_a_file_is_counted(tmp_path):
    store = PickleFileStore(tmp_path / "cache.memo", timeout=10)
    old, _ = cached(store, 7)
    old(1)
    new, _ = cached(store, 8, serializer="json")
    assert new(1) == 8
    assert store.stats().corrupt > 0
    store.close()


class AsItIs:
    """Writes and reads nothing else than it is given."""

    dumps = loads = staticmethod(lambda value: value)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: MemoryStore(),
        lambda path: MemoryStore(serializer=AsItIs()),
        lambda path: Records({}),
        lambda path: Records({}, serializer=AsItIs()),
        lambda path: PickleFileStore(path, timeout=10),
    ],
    ids=["memory", "memory as it is", "custom", "custom as it is", "file"],
)
def test_a_value_that_begins_with_the_mark_is_refused_and_not_lost_silently(make, tmp_path, caplog):
    store, value = make(tmp_path / "cache.memo"), b"\xc1memo json\n[1]"
    for put in (lambda: store.set("a", value), lambda: store.set_many({"a": value})):
        with pytest.raises(SerializationError, match=r"bytes that begin with .*memo .* give the function serializer="):
            put()
    store.set("a", [value])
    assert store.get("a") == [value]
    f, loads = cached(store, value)
    assert f(1) == f(1) == value
    assert len(loads) == 2
    assert sum(f.stats().errors.values()) == 2
    assert "bytes that begin with" in caplog.text
    g, loads = cached(store, value, namespace="app.g", serializer="msgpack")
    assert g(1) == g(1) == value
    assert len(loads) == 1
    store.close()


# -- the store's own, in memory and in a store of one's own ------------------------------------------------------------


@pytest.mark.parametrize("make", [MemoryStore, lambda **options: Records({}, **options)], ids=["memory", "custom"])
@pytest.mark.parametrize("serializer", ["json", json, "msgpack+gzip"])
def test_a_stores_serializer_keeps_nothing_that_it_would_change(make, serializer):
    f, loads = cached(make(serializer=serializer), (1, 2))
    assert f(1) == f(1) == (1, 2)
    assert len(loads) == 2


@pytest.mark.parametrize("make", [MemoryStore, lambda **options: Records({}, **options)], ids=["memory", "custom"])
def test_a_stores_serializer_reads_by_the_return_annotation(make):
    f, loads = cached(make(serializer="json"), [ADA], returns=list[User])
    assert f(1) == f(1) == [ADA]
    assert len(loads) == 1


def test_an_object_that_makes_no_bytes_is_taken_as_it_is_and_checked():
    class Copies:
        dumps = staticmethod(lambda value: list(value))
        loads = staticmethod(lambda value: list(value))

    f, loads = cached(MemoryStore(serializer=Copies()), [1])
    assert f(1) == f(1) == [1]
    assert f(1) is not f(1)
    assert len(loads) == 1
    g, loads = cached(MemoryStore(serializer=Copies()), (1,))
    assert g(1) == g(1) == (1,)
    assert len(loads) == 2
