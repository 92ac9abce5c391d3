"""The classic functions: what a stand-in sees of each, and what they do at a real server."""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
from datetime import timedelta
from unittest.mock import AsyncMock, Mock, call

import pytest
import redis
import redis.asyncio

import memo
from memo import OptionError
from memo.desks import desk_of
from memo.functions import (
    deserialize_compressed,
    deserialize_json,
    deserialize_msgpack,
    get_cached_data,
    get_data_with_fallback,
    get_multiple_cached,
    get_ttl,
    invalidate_cache,
    invalidate_pattern,
    refresh_ttl,
    retry_operation,
    serialize_compressed,
    serialize_json,
    serialize_msgpack,
    set_ttl,
    update_data_with_invalidation,
)
from memo.testing import MockDataStore


def never(key):
    raise AssertionError("the data source was asked")


@pytest.fixture
def client():
    client = Mock(spec=redis.Redis)
    client.get.return_value = None
    client.delete.return_value = 1
    return client


@pytest.fixture
def async_client():
    return AsyncMock(spec=redis.asyncio.Redis)


# -- reading through the cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [get_cached_data, get_data_with_fallback])
class TestReadingThrough:
    def test_a_miss_is_one_get_and_one_set(self, function, client):
        assert function(client, "k", lambda key: [key]) == ["k"]
        assert client.mock_calls == [call.get("cache:k"), call.set("cache:k", '["k"]', ex=60)]

    def test_ttl_and_prefix_are_as_given(self, function, client):
        function(client, "k", len, 1.5, "app:")
        assert client.mock_calls == [call.get("app:k"), call.set("app:k", "1", px=1500)]

    def test_a_hit_is_one_get(self, function, client):
        client.get.return_value = b"[1]"
        assert function(client, "k", never) == [1]
        assert client.mock_calls == [call.get("cache:k")]

    def test_if_redis_fails_the_data_source_is_asked(self, function, client, caplog):
        client.get.side_effect = redis.ConnectionError
        for _ in range(3):
            assert function(client, "k", len) == 1
        [record] = caplog.records  # one line a minute
        assert record.getMessage().startswith("memo.functions: read (ConnectionError); ")

    def test_another_clients_failure_is_logged_too(self, function, client, caplog):
        for each in client, Mock(spec=redis.Redis):
            each.get.side_effect = redis.ConnectionError
            function(each, "k", len)
        assert len(caplog.records) == 2

    def test_the_data_sources_error_is_the_callers(self, function, client):
        with pytest.raises(ZeroDivisionError):
            function(client, "k", lambda key: 1 / 0)

    def test_bad_arguments_are_errors_before_redis_is_asked(self, function, client, async_client):
        for arguments in [(7, len), ("k", "source"), ("k", len, 0), ("k", len, True), ("k", len, 60, None)]:
            with pytest.raises(OptionError):
                function(client, *arguments)
        with pytest.raises(OptionError, match="redis_client"):
            function(async_client, "k", len)
        assert client.mock_calls == async_client.mock_calls == []

    def test_over_a_server(self, function, redis_server):
        client, source = redis_server.client(), MockDataStore(0, {"k": {"a": 1}})
        assert [function(client, "k", source.get, ttl=100) for _ in range(3)] == [{"a": 1}] * 3
        assert source.reads == 1
        assert client.ttl("cache:k") > 90


class TestReadingSeveral:
    async def test_one_mget_and_the_missing_ones_are_set(self, async_client):
        async_client.mget.return_value = [b"1", None, None, b"{"]
        loaded = []

        async def source(key):
            loaded.append(key)
            return None if key == "c" else key.upper()

        found = await get_multiple_cached(async_client, ["a", "b", "c", "d"], source)
        assert list(found.items()) == [("a", 1), ("b", "B"), ("c", None), ("d", "D")]
        assert sorted(loaded) == ["b", "c", "d"]
        assert async_client.mock_calls[0] == call.mget(["cache:a", "cache:b", "cache:c", "cache:d"])
        assert sorted(async_client.mock_calls[1:], key=str) == [
            call.set("cache:b", '"B"', ex=60),
            call.set("cache:d", '"D"', ex=60),
        ]

    async def test_ttl_and_prefix_are_as_given_and_methods_may_be_awaited(self, async_client):
        async_client.mget, async_client.set = AsyncMock(return_value=[None]), AsyncMock()
        assert await get_multiple_cached(async_client, iter("a"), MockDataStore(0, {"a": 1}).aget, 5, "app:") == {
            "a": 1
        }
        assert async_client.mget.mock_calls == [call(["app:a"])]
        assert async_client.set.mock_calls == [call("app:a", "1", ex=5)]

    async def test_the_missing_ones_are_loaded_concurrently_and_each_once(self, async_client):
        async_client.mget.return_value = [None] * 3
        together = 0

        async def source(key):
            nonlocal together
            together += 1
            while together < 3:
                await asyncio.sleep(0)
            return key

        found = await asyncio.wait_for(get_multiple_cached(async_client, ["a", "b", "a", "c"], source), 20)
        assert found == {"a": "a", "b": "b", "c": "c"}
        assert together == 3

    async def test_a_key_that_another_call_loads_is_waited_for(self, async_client):
        async_client.get.return_value = None
        async_client.mget.return_value = [None]
        begun, go = asyncio.Event(), asyncio.Event()

        async def source(key):
            begun.set()
            await go.wait()
            return 1

        manager = memo.AsyncCacheAsideManager(async_client, memo.CacheConfig())
        leader = asyncio.create_task(manager.get("a", source))
        await begun.wait()
        follower = asyncio.create_task(get_multiple_cached(async_client, ["a"], never))
        for _ in range(10):
            await asyncio.sleep(0)
        go.set()
        assert (await leader, await follower) == (1, {"a": 1})

    async def test_no_key_is_no_command(self, async_client):
        assert await get_multiple_cached(async_client, [], never) == {}
        assert async_client.mock_calls == []

    @pytest.mark.parametrize("answer", [redis.ConnectionError(), RuntimeError(), [None], None])
    async def test_if_redis_fails_all_come_from_the_data_source_and_nothing_is_set(self, async_client, answer, caplog):
        async_client.mget.side_effect = [answer]
        source = MockDataStore(0, {"a": 1, "b": 2})
        assert await get_multiple_cached(async_client, ["a", "b"], source.aget) == {"a": 1, "b": 2}
        assert async_client.mock_calls == [call.mget(["cache:a", "cache:b"])]
        assert len(caplog.records) == 1

    async def test_an_error_comes_out_when_all_loads_are_over(self, async_client):
        async_client.mget.return_value = [None] * 3
        ended = []

        async def source(key):
            if key != "c":
                raise LookupError(key)
            for _ in range(5):
                await asyncio.sleep(0)
            ended.append(key)
            return key

        with pytest.raises(LookupError, match="a"):
            await get_multiple_cached(async_client, ["a", "b", "c"], source)
        assert ended == ["c"]
        assert desk_of(async_client).seats == {}  # nothing is left of it

    async def test_bad_arguments_are_errors_before_redis_is_asked(self, async_client, client):
        for arguments in [("ab", never), ([7], never), (["a"], None), (["a"], never, 0), (["a"], never, 60, None)]:
            with pytest.raises(OptionError):
                await get_multiple_cached(async_client, *arguments)
        with pytest.raises(OptionError, match="redis_client"):
            await get_multiple_cached(client, ["a"], never)
        assert async_client.mock_calls == client.mock_calls == []

    async def test_over_a_server(self, redis_server):
        source = MockDataStore(0, {str(n): n for n in range(100)})
        async with redis_server.async_client() as client:
            for reads in 100, 102:
                keys = [str(n) for n in range(reads)]
                found = await get_multiple_cached(client, keys, source.aget)
                assert found == {key: source.data.get(key) for key in keys}
                assert source.reads == reads


# -- invalidating ------------------------------------------------------------------------------------------------------


def test_invalidating_is_one_del(client):
    assert invalidate_cache(client, "k") is True
    assert client.mock_calls == [call.delete("cache:k")]
    client.delete.return_value = 0
    assert invalidate_cache(client, "k", "app:") is False
    assert client.mock_calls[1:] == [call.delete("app:k")]


def test_an_invalidation_that_fails_is_an_error(client):
    client.delete.side_effect = redis.ConnectionError
    with pytest.raises(redis.ConnectionError):
        invalidate_cache(client, "k")
    client.scan_iter.side_effect = redis.ConnectionError
    with pytest.raises(redis.ConnectionError):
        invalidate_pattern(client, "cache:*")


def test_a_pattern_is_one_scan_and_a_del_of_each_batch(client):
    client.scan_iter.return_value = iter([f"cache:{n}" for n in range(1_200)])
    client.delete.side_effect = lambda *keys: len(keys)
    assert invalidate_pattern(client, "cache:*") == 1_200
    assert client.mock_calls[0] == call.scan_iter(match="cache:*", count=500)
    assert [len(each.args) for each in client.mock_calls[1:]] == [500, 500, 200]


def test_a_pattern_that_nothing_matches_is_no_del(client):
    client.scan_iter.return_value = iter([])
    assert invalidate_pattern(client, "cache:*") == 0
    assert client.delete.mock_calls == []


@pytest.mark.parametrize("decoded", [False, True])
def test_a_pattern_removes_what_matches_and_no_more(redis_server, decoded):
    client = redis_server.client(decode_responses=decoded)
    client.mset({f"cache:{kind}:{n}": 1 for kind in ("user", "order") for n in range(700)} | {"user:1": 1})
    assert invalidate_pattern(client, "cache:user:*") == 700
    assert client.dbsize() == 701
    assert invalidate_pattern(client, r"cache:order:[12]\*") == 0
    assert invalidate_pattern(client, "cache:order:1?") == 10


def test_an_update_invalidates(client):
    store = MockDataStore(0, {"k": 1})
    assert update_data_with_invalidation(client, store, "k", 2) is True
    assert store.data == {"k": 2}
    assert client.mock_calls == [call.delete("cache:k")]
    assert update_data_with_invalidation(client, store, "k", 3, prefix="app:") is True
    assert client.mock_calls[1:] == [call.delete("app:k")]


@pytest.mark.parametrize("error", [redis.ConnectionError("secret"), RuntimeError("secret")])
def test_an_update_that_could_not_invalidate_says_so(client, caplog, error):
    client.delete.side_effect = error
    store = MockDataStore(0, {"k": 1})
    assert update_data_with_invalidation(client, store, "k", "value") is False
    assert store.data == {"k": "value"}
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "invalidate" in record.getMessage()
    assert "secret" not in caplog.text
    assert "value" not in record.getMessage()


def test_an_update_that_failed_invalidates_nothing(client):
    store = Mock()
    store.update.side_effect = OSError
    with pytest.raises(OSError):
        update_data_with_invalidation(client, store, "k", 2)
    assert client.mock_calls == []


# -- times to live -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [set_ttl, refresh_ttl])
def test_a_ttl_is_set_by_one_command(client, function):
    client.expire.return_value, client.pexpire.return_value = True, False
    assert function(client, "k", 30) is True
    assert function(client, "k", timedelta(milliseconds=1500), "app:") is False
    assert client.mock_calls == [call.expire("cache:k", 30), call.pexpire("app:k", 1500)]


def test_a_refresh_without_a_ttl_is_the_default_one(client):
    client.expire.return_value = 1
    assert refresh_ttl(client, "k") is True
    assert client.mock_calls == [call.expire("cache:k", 60)]


def test_a_ttl_is_read_by_one_command(client):
    client.ttl.return_value = 42
    assert get_ttl(client, "k") == 42
    assert get_ttl(client, "k", "app:") == 42
    assert client.mock_calls == [call.ttl("cache:k"), call.ttl("app:k")]


def test_ttls_over_a_server(redis_server):
    client = redis_server.client()
    assert get_ttl(client, "k") == -2
    assert set_ttl(client, "k", 30) is False
    get_cached_data(client, "k", len, ttl=10)
    assert 9 <= get_ttl(client, "k") <= 10
    assert set_ttl(client, "k", 100.5) is True
    assert 99 <= get_ttl(client, "k") <= 101
    assert refresh_ttl(client, "k") is True
    assert 59 <= get_ttl(client, "k") <= 60
    client.persist("cache:k")
    assert get_ttl(client, "k") == -1


ALL = [
    (invalidate_cache, ("k",)),
    (invalidate_pattern, ("cache:*",)),
    (update_data_with_invalidation, (MockDataStore(0), "k", 1)),
    (set_ttl, ("k", 1)),
    (get_ttl, ("k",)),
    (refresh_ttl, ("k",)),
]


@pytest.mark.parametrize(("function", "arguments"), ALL)
def test_bad_arguments_are_errors_before_redis_is_asked(client, async_client, function, arguments):
    with pytest.raises(OptionError, match="redis_client"):
        function(async_client, *arguments)
    wrong = [7 if each == arguments[-1 if len(arguments) == 1 else 0] else each for each in arguments]
    if function is update_data_with_invalidation:
        wrong = [arguments[0], 7, 1]
    with pytest.raises(OptionError, match=r"key|pattern"):
        function(client, *wrong)
    assert client.mock_calls == async_client.mock_calls == []


def test_an_empty_pattern_or_a_ttl_of_nothing_is_an_error(client):
    with pytest.raises(OptionError, match="pattern"):
        invalidate_pattern(client, "")
    for ttl in 0, -1, None, math.nan, True:
        with pytest.raises(OptionError, match="ttl"):
            set_ttl(client, "k", ttl)
    assert client.mock_calls == []


# -- values as text and bytes ------------------------------------------------------------------------------------------

PLAIN = [None, True, 0, -1, 1.5, "", "naïve ✓", [], [1, [2]], {}, {"a": {"b": None}}]


@pytest.mark.parametrize("value", PLAIN, ids=ascii)
@pytest.mark.parametrize(
    ("write", "read", "form"),
    [
        (serialize_json, deserialize_json, str),
        (serialize_msgpack, deserialize_msgpack, bytes),
        (serialize_compressed, deserialize_compressed, bytes),
    ],
)
def test_values_come_back(write, read, form, value):
    payload = write(value)
    assert type(payload) is form
    assert read(payload) == value
    assert type(read(payload)) is type(value)


@pytest.mark.parametrize("write", [serialize_json, serialize_msgpack, serialize_compressed])
def test_a_value_that_has_no_form_is_an_error(write):
    with pytest.raises(TypeError):
        write(object())


@pytest.mark.parametrize("write", [serialize_json, serialize_compressed])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_no_nan(write, value):
    with pytest.raises(ValueError, match="JSON"):
        write(value)


PACKED = serialize_compressed("memo " * 1000)


@pytest.mark.parametrize(
    ("read", "payload"),
    [
        (deserialize_json, "{"),
        (deserialize_json, b"\xff"),
        (deserialize_msgpack, b""),
        (deserialize_msgpack, b"\xc1"),
        (deserialize_compressed, b""),
        (deserialize_compressed, b"nonsense"),
        (deserialize_compressed, PACKED[:-1]),
        (deserialize_compressed, PACKED + b"more"),
        (deserialize_compressed, gzip.compress(b"{", mtime=0)),
    ],
)
def test_what_cannot_be_read_is_a_value_error(read, payload):
    with pytest.raises(ValueError):
        read(payload)


def test_a_payload_is_unpacked_up_to_a_size():
    size = len(serialize_json("memo " * 1000))
    assert deserialize_compressed(PACKED, max_size=size) == "memo " * 1000
    with pytest.raises(ValueError, match="more than"):
        deserialize_compressed(PACKED, max_size=size - 1)


@pytest.mark.parametrize("max_size", [0, -1, 1.5, None, True])
def test_a_size_that_would_be_no_limit_is_refused(max_size):
    with pytest.raises(OptionError, match=r"max_size=.* allowed is an int of at least 1"):
        deserialize_compressed(PACKED, max_size=max_size)


def test_gzip_is_read_too():
    assert deserialize_compressed(gzip.compress(b"[1]", mtime=0)) == [1]


def test_a_kilobyte_of_zeros_and_more_is_not_unpacked(monkeypatch):
    monkeypatch.setattr("memo.functions.LARGEST", 1)  # the default is bound: it is not read at each call
    with pytest.raises(ValueError, match="67108864"):
        deserialize_compressed(gzip.compress(b" " * (64 * 1024 * 1024 + 1), 1))


# -- trying again ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


def test_an_operation_that_succeeds_is_called_once(pauses):
    operation = Mock(return_value=5)
    assert retry_operation(operation) == 5
    assert operation.call_count == 1
    assert pauses == []


def test_an_operation_that_fails_is_called_again_after_ever_longer_pauses(pauses):
    errors = [redis.ConnectionError(), OSError(), ValueError(), LookupError("last")]
    operation = Mock(side_effect=errors)
    with pytest.raises(LookupError) as caught:
        retry_operation(operation)
    assert caught.value is errors[-1]
    assert operation.call_count == 4
    assert pauses == [0.1, 0.2, 0.4]


def test_the_number_of_retries_and_the_first_pause_are_as_given(pauses):
    operation = Mock(side_effect=[OSError, OSError, "done"])
    assert retry_operation(operation, max_retries=5, backoff_ms=10) == "done"
    assert pauses == [0.01, 0.02]
    with pytest.raises(OSError):
        retry_operation(Mock(side_effect=OSError), max_retries=0)
    assert len(pauses) == 2


def test_an_interruption_is_not_tried_again(pauses):
    operation = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        retry_operation(operation)
    assert operation.call_count == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((5,), "operation"),
        ((len, -1), "max_retries"),
        ((len, True), "max_retries"),
        ((len, 1.0), "max_retries"),
        ((len, 1, -1), "backoff_ms"),
        ((len, 1, math.inf), "backoff_ms"),
        ((len, 1, "100"), "backoff_ms"),
    ],
)
def test_retries_that_are_not_allowed_are_errors_at_once(arguments, name):
    with pytest.raises(OptionError, match=name):
        retry_operation(*arguments)
