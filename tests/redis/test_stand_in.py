"""What a stand-in for a client sees of the managers: one GET, one SET on a miss, one DEL to invalidate; no more."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from datetime import timedelta
from unittest.mock import AsyncMock, Mock, call

import pytest
import redis
import redis.asyncio
import redis.exceptions

from memo import OptionError
from memo.managers import AsyncCacheAsideManager, CacheAsideManager, CacheConfig, InstrumentedCacheManager

SECRET = "correct horse"


class Blocking:
    """The blocking manager, and a stand-in for its client."""

    manager = CacheAsideManager

    def client(self, payload=None):
        client = Mock(spec=redis.Redis)
        client.get.return_value = payload
        client.delete.return_value = 1
        return client

    def get(self, manager, key, source, *args, **kwargs):
        return manager.get(key, source, *args, **kwargs)

    def invalidate(self, manager, key):
        return manager.invalidate(key)


class Awaiting(Blocking):
    """The awaited one; `AsyncMock(spec=...)` makes plain methods of a client that returns awaitables."""

    manager = AsyncCacheAsideManager

    def client(self, payload=None):
        client = AsyncMock(spec=redis.asyncio.Redis)
        client.get.return_value = payload
        client.delete.return_value = 1
        return client

    def get(self, manager, key, source, *args, **kwargs):
        async def load(key):
            return source(key)

        return asyncio.run(manager.get(key, load if callable(source) else source, *args, **kwargs))

    def invalidate(self, manager, key):
        return asyncio.run(manager.invalidate(key))


class Awaited(Awaiting):
    """The same, with methods that are awaited."""

    def client(self, payload=None):
        client = super().client(payload)
        client.get = AsyncMock(return_value=payload)
        client.set = AsyncMock()
        client.delete = AsyncMock(return_value=1)
        client.attach_mock(client.get, "get")
        client.attach_mock(client.set, "set")
        client.attach_mock(client.delete, "delete")
        return client


@pytest.fixture(params=[Blocking, Awaiting, Awaited], ids=lambda side: side.__name__.lower())
def side(request):
    return request.param()


def never(key):
    raise AssertionError(f"the data source was asked for {key}")


def test_a_miss_is_one_get_and_one_set(side):
    client = side.client()
    manager = side.manager(client, CacheConfig())
    assert side.get(manager, "user:7", lambda key: {"asked": key}) == {"asked": "user:7"}
    assert client.mock_calls == [call.get("cache:user:7"), call.set("cache:user:7", '{"asked": "user:7"}', ex=60)]
    assert (manager.hits, manager.misses) == (0, 1)


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, "", 0, False, [], {}, "naïve ✓", 2**70])
def test_a_hit_is_one_get_whether_the_client_decodes_responses_or_not(side, value, decoded):
    payload = json.dumps(value)
    client = side.client(payload if decoded else payload.encode())
    manager = side.manager(client, CacheConfig(key_prefix="app:"))
    found = side.get(manager, "k", never)
    assert found == value
    assert type(found) is type(value)
    assert client.mock_calls == [call.get("app:k")]
    assert (manager.hits, manager.misses) == (1, 0)


@pytest.mark.parametrize(
    ("ttl", "option"),
    [
        (60, {"ex": 60}),
        (60.0, {"ex": 60}),
        (1.5, {"px": 1500}),
        (0.00001, {"px": 1}),
        (timedelta(minutes=2), {"ex": 120}),
        (timedelta(milliseconds=250), {"px": 250}),
    ],
)
def test_whole_seconds_go_as_ex_and_others_as_px(side, ttl, option):
    first, second = side.client(), side.client()
    side.get(side.manager(first, CacheConfig(ttl=ttl)), "k", len)
    side.get(side.manager(second, CacheConfig()), "k", len, ttl)
    for client in first, second:
        assert client.set.call_args == call("cache:k", "1", **option)
        assert {name: type(each) for name, each in client.set.call_args.kwargs.items()} == dict.fromkeys(option, int)


@pytest.mark.parametrize("value", ["", 0, False, [], {}])
def test_what_is_false_is_cached(side, value):
    client = side.client()
    assert side.get(side.manager(client, CacheConfig()), "k", lambda key: value) == value
    assert client.set.call_args == call("cache:k", json.dumps(value), ex=60)


def test_none_is_returned_and_not_cached(side):
    client = side.client()
    manager = side.manager(client, CacheConfig())
    for misses in 1, 2:
        assert side.get(manager, "k", lambda key: None) is None
        assert manager.misses == misses
    assert client.mock_calls == [call.get("cache:k")] * 2


def test_a_null_that_another_program_has_left_is_a_miss(side):
    client = side.client(b"null")
    assert side.get(side.manager(client, CacheConfig()), "k", lambda key: 5) == 5
    assert client.mock_calls == [call.get("cache:k"), call.set("cache:k", "5", ex=60)]


FAILURES = [
    redis.ConnectionError(SECRET),
    redis.TimeoutError(SECRET),
    redis.AuthenticationError(SECRET),
    redis.BusyLoadingError(SECRET),
    redis.ResponseError(f"WRONGTYPE {SECRET}"),
    redis.exceptions.RedisClusterException(SECRET),  # no RedisError, as those below
    RuntimeError("Event loop is closed"),
    OSError(SECRET),
    UnicodeEncodeError("utf-8", SECRET, 0, 1, SECRET),
    ValueError(SECRET),
]


@pytest.fixture(params=FAILURES, ids=lambda error: type(error).__name__)
def failure(request):
    return request.param


def test_if_get_fails_the_data_source_is_asked_and_the_server_not_again(side, failure, caplog):
    client = side.client()
    client.get.side_effect = failure
    manager = side.manager(client, CacheConfig())
    assert side.get(manager, "private", lambda key: "a value") == "a value"
    assert client.mock_calls == [call.get("cache:private")]
    assert (manager.hits, manager.misses) == (0, 1)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("memo", logging.WARNING)
    assert type(failure).__name__ in record.getMessage()
    for unwanted in SECRET, "private", "a value":
        assert unwanted not in caplog.text


def test_if_set_fails_the_value_is_returned(side, failure, caplog):
    client = side.client()
    client.set.side_effect = failure
    manager = side.manager(client, CacheConfig())
    assert side.get(manager, "private", lambda key: "a value") == "a value"
    [record] = caplog.records
    assert record.getMessage().startswith(f"{side.manager.__name__}: write ({type(failure).__name__}); ")
    for unwanted in SECRET, "private", "a value":
        assert unwanted not in caplog.text


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xfe", "nonsense", b"[" * 100_000, object(), Mock(), 5])
def test_what_cannot_be_decoded_is_a_miss_and_is_replaced(side, payload, caplog):
    client = side.client(payload)
    manager = side.manager(client, CacheConfig())
    assert side.get(manager, "k", lambda key: 5) == 5
    assert client.mock_calls == [call.get("cache:k"), call.set("cache:k", "5", ex=60)]
    assert (manager.hits, manager.misses) == (0, 1)
    [record] = caplog.records
    assert ": decode (" in record.getMessage()


def cyclic():
    made = []
    made.append(made)
    return made


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", math.nan, math.inf, cyclic(), {(1, 2): 3}], ids=repr)
def test_what_json_cannot_write_is_returned_and_not_cached(side, value, caplog):
    client = side.client()
    manager = side.manager(client, CacheConfig())
    assert side.get(manager, "k", lambda key: value) is value
    assert client.mock_calls == [call.get("cache:k")]
    [record] = caplog.records
    assert ": encode (" in record.getMessage()


def test_invalidating_is_one_del(side):
    client = side.client()
    manager = side.manager(client, CacheConfig(key_prefix="app:"))
    assert side.invalidate(manager, "k") is True
    client.delete.return_value = 0
    assert side.invalidate(manager, "k") is False
    assert client.mock_calls == [call.delete("app:k")] * 2


def test_an_invalidation_that_fails_is_no_secret(side, failure):
    client = side.client()
    client.delete.side_effect = failure
    manager = side.manager(client, CacheConfig())
    with pytest.raises(type(failure)) as caught:
        side.invalidate(manager, "k")
    assert caught.value is failure


def test_an_error_of_the_data_source_is_the_callers_and_nothing_is_cached(side):
    client = side.client()
    manager = side.manager(client, CacheConfig())
    error = LookupError("nobody")

    def source(key):
        raise error

    for misses in 1, 2:
        with pytest.raises(LookupError) as caught:
            side.get(manager, "k", source)
        assert caught.value is error
        assert (manager.hits, manager.misses) == (0, misses)
    assert client.mock_calls == [call.get("cache:k")] * 2


def test_an_interruption_of_a_command_is_no_failure_of_redis(caplog):
    client = Blocking().client()
    client.get.side_effect = KeyboardInterrupt
    manager = CacheAsideManager(client, CacheConfig())
    with pytest.raises(KeyboardInterrupt):
        manager.get("k", never)
    assert caplog.records == []
    assert (manager.hits, manager.misses) == (0, 0)


def test_the_hit_ratio_and_the_counters_are_plain(side):
    client = side.client()
    manager = side.manager(client, CacheConfig())
    assert manager.get_hit_ratio() == 0.0
    side.get(manager, "k", len)
    client.get.return_value = "1"
    for _ in range(3):
        side.get(manager, "k", never)
    assert (manager.hits, manager.misses, manager.get_hit_ratio()) == (3, 1, 0.75)
    manager.hits = manager.misses = 0
    assert manager.get_hit_ratio() == 0.0


def test_the_logger_that_is_given_hears_of_failures(side):
    client, log = side.client(), Mock(spec=logging.Logger)
    client.get.side_effect = redis.ConnectionError
    side.get(side.manager(client, CacheConfig(), log), "k", len)
    assert log.warning.call_count == 1


def test_an_outage_logs_a_line_a_minute_for_each_kind(side, monkeypatch, caplog):
    now = [1_000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    client = side.client(b"{")
    client.set.side_effect = redis.ConnectionError
    manager = side.manager(client, CacheConfig())
    for now[0] in 1_000.0, 1_000.0, 1_030.0, 1_059.9, 1_060.0, 1_061.0:
        side.get(manager, "k", len)
    lines = [record.getMessage().partition(";")[0] for record in caplog.records]
    assert [line for line in lines if "decode" in line] == [
        f"{side.manager.__name__}: decode (JSONDecodeError)",
        f"{side.manager.__name__}: decode (JSONDecodeError) (3 more since the last line)",
    ]
    assert len(lines) == 4
    now[0] = 5.0  # a clock that was frozen, or thawed
    side.get(manager, "k", len)
    assert len(caplog.records) == 6


def test_a_logger_that_fails_fails_no_call(side):
    client, log = side.client(), Mock(spec=logging.Logger)
    client.get.side_effect = redis.ConnectionError
    log.warning.side_effect = OSError
    assert side.get(side.manager(client, CacheConfig(), log), "k", len) == 1


def test_keys_of_two_prefixes_are_two(side):
    client = side.client()
    for prefix in "a:", "b:", "":
        side.get(side.manager(client, CacheConfig(key_prefix=prefix)), "k", len)
    assert [each.args[0] for each in client.set.call_args_list] == ["a:k", "b:k", "k"]


class Slotted:
    """A client that cannot be weakly referenced."""

    __slots__ = ("data",)

    def __init__(self):
        self.data = {}

    def get(self, key):
        return self.data.get(key)

    def set(self, key, payload, ex):
        self.data[key] = payload

    def delete(self, key):
        return self.data.pop(key, None) is not None


def test_any_object_with_the_three_commands_will_do():
    manager = CacheAsideManager(Slotted(), CacheConfig())
    assert [manager.get("k", lambda key: [1]), manager.get("k", never), manager.invalidate("k")] == [[1], [1], True]


def test_metrics_count_what_the_manager_has_done(monkeypatch):
    client = Blocking().client()
    manager = InstrumentedCacheManager(client, CacheConfig())
    metrics = manager.metrics
    assert (metrics.hit_ratio, metrics.avg_fetch_time_ms) == (0.0, 0.0)
    now = 10.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def source(key):
        nonlocal now
        now += 0.25
        return "x" if key == "good" else object()

    manager.get("good", source)
    manager.get("bad", source)  # an error: it cannot be written
    client.get.return_value = '"x"'
    manager.get("good", never)
    client.get.side_effect = redis.ConnectionError
    manager.get("good", source)
    with pytest.raises(ZeroDivisionError):
        manager.get("good", lambda key: 1 / 0)
    client.delete.side_effect = redis.ConnectionError
    with pytest.raises(redis.ConnectionError):
        manager.invalidate("good")
    assert (metrics.hits, metrics.misses, metrics.errors) == (manager.hits, manager.misses, 4) == (1, 4, 4)
    assert (metrics.fetches, metrics.total_fetch_time_ms, metrics.avg_fetch_time_ms) == (3, 750.0, 250.0)
    assert metrics.hit_ratio == manager.get_hit_ratio() == 0.2


@pytest.mark.parametrize(
    "settings",
    [
        {"host": ""},
        {"host": None},
        {"port": 0},
        {"port": 65_536},
        {"port": "6379"},
        {"port": True},
        {"db": -1},
        {"db": 1.0},
        {"ttl": 0},
        {"ttl": None},
        {"ttl": True},
        {"key_prefix": b"cache:"},
        {"socket_timeout": 0},
        {"socket_timeout": None},
        {"socket_connect_timeout": -1},
        {"max_connections": 0},
        {"username": 5},
        {"password": b"x"},
    ],
    ids=str,
)
def test_settings_that_are_not_allowed_are_errors_at_once(settings):
    with pytest.raises(OptionError, match=next(iter(settings))):
        CacheConfig(**settings)


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, True, "60"])
def test_a_ttl_that_is_not_allowed_is_an_error_before_redis_is_asked(side, ttl):
    client = side.client()
    with pytest.raises(OptionError, match="ttl"):
        side.get(side.manager(client, CacheConfig()), "k", len, ttl)
    assert client.mock_calls == []


def test_a_key_or_source_that_is_not_allowed_is_an_error_before_redis_is_asked(side):
    client = side.client()
    manager = side.manager(client, CacheConfig())
    for key in 7, b"k", None:
        with pytest.raises(OptionError, match="key"):
            side.get(manager, key, len)
        with pytest.raises(OptionError, match="key"):
            side.invalidate(manager, key)
    with pytest.raises(OptionError, match="data_source"):
        side.get(manager, "k", "not a function")
    assert client.mock_calls == []


def test_a_client_of_the_other_kind_is_refused(side):
    other = Blocking() if side.manager is AsyncCacheAsideManager else Awaiting()
    for client in other.client(), None:
        with pytest.raises(OptionError, match=r"redis_client: .*allowed is a redis\."):
            side.manager(client, CacheConfig())


def test_other_arguments_that_are_not_allowed_are_errors_at_once(side):
    with pytest.raises(OptionError, match="config"):
        side.manager(side.client(), {"ttl": 60})
    with pytest.raises(OptionError, match="logger"):
        side.manager(side.client(), CacheConfig(), "memo")


def test_no_repr_shows_a_password(side):
    config = CacheConfig(username="app", password=SECRET)
    manager = side.manager(side.client(), config)
    for text in repr(config), str(config), repr(manager), str(manager):
        assert SECRET not in text
    assert "username='app'" in repr(manager)
