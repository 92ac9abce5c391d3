"""Managers over a real server: what stands there, what they do when it fails, and the clients that a config makes."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import redis
import redis.asyncio

import memo
from memo import AsyncCacheAsideManager, CacheAsideManager, CacheConfig, InstrumentedCacheManager
from memo.testing import MockDataStore

ROOT = Path(__file__).parents[2]
VALUE = {"id": 7, "name": "naïve ✓", "tags": ["a", None, 1.5, True, {}]}


def never(key):
    raise AssertionError("the data source was asked")


async def anever(key):
    raise AssertionError("the data source was asked")


def config_of(server, **settings):
    return CacheConfig(host="127.0.0.1", port=server.port, **settings)


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("value", [VALUE, "", 0, False, [], [[1]], 2**70, "\ud800"], ids=ascii)
def test_what_was_cached_is_found_again(redis_server, decoded, value):
    client = redis_server.client(decode_responses=decoded)
    manager = CacheAsideManager(client, CacheConfig(ttl=100))
    assert manager.get("k", lambda key: value) == value
    assert manager.get("k", never) == value
    assert 99 <= client.ttl("cache:k") <= 100
    assert (manager.hits, manager.misses) == (1, 1)


@pytest.mark.parametrize("decoded", [False, True])
async def test_what_was_cached_is_found_again_by_tasks(redis_server, decoded):
    source = MockDataStore(latency_ms=0, data={"k": VALUE})
    async with redis_server.async_client(decode_responses=decoded) as client:
        manager = AsyncCacheAsideManager(client, CacheConfig(ttl=100))
        assert await manager.get("k", source.aget) == VALUE
        assert await manager.get("k", anever) == VALUE
        assert await manager.get("nothing", source.aget) is None
        assert await client.keys("*") == (["cache:k"] if decoded else [b"cache:k"])
        assert await manager.invalidate("k") is True
        assert await manager.invalidate("k") is False
        assert (manager.hits, manager.misses) == (1, 2)


def test_any_other_program_can_read_and_write_what_stands_there(redis_server):
    client = redis_server.client()
    manager = CacheAsideManager(client, CacheConfig())
    manager.get("mine", lambda key: {"a": (1, 2)})
    assert client.get("cache:mine") == b'{"a": [1, 2]}'
    client.set("cache:theirs", "[1,2]")
    assert manager.get("theirs", never) == [1, 2]


def test_a_short_ttl_is_kept_to_the_millisecond(redis_server):
    client = redis_server.client()
    manager = CacheAsideManager(client, CacheConfig())
    manager.get("k", len, ttl=50.25)
    assert 50_000 < client.pttl("cache:k") <= 50_250


def test_the_blocking_and_the_awaited_manager_share_what_is_cached(redis_server):
    async def read():
        async with redis_server.async_client() as client:
            return await AsyncCacheAsideManager(client, CacheConfig()).get("k", anever)

    assert CacheAsideManager(redis_server.client(), CacheConfig()).get("k", len) == 1
    assert asyncio.run(read()) == 1


def test_clients_of_many_event_loops_in_a_row_leave_nothing(redis_server):
    async def read():
        client = config_of(redis_server).create_async_redis_client()
        try:
            manager = AsyncCacheAsideManager(client, CacheConfig())
            return await asyncio.gather(*[manager.get("k", MockDataStore(0, {"k": 5}).aget) for _ in range(3)])
        finally:
            await client.connection_pool.disconnect()

    for _ in range(20):
        assert asyncio.run(read()) == [5, 5, 5]
    gc.collect()


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_at_the_start_is_used_as_soon_as_it_is_there(redis_servers, caplog):
    server = redis_servers()
    server.kill()
    client = config_of(server, password=None).create_redis_client()
    manager = InstrumentedCacheManager(client, CacheConfig())
    for _ in range(3):
        assert manager.get("k", len) == 1
    with pytest.raises(redis.ConnectionError):
        manager.invalidate("k")
    assert manager.metrics.errors == 4
    assert len(caplog.records) == 1
    server.start()
    assert manager.get("k", len) == 1
    assert manager.get("k", never) == 1
    server.restart()
    assert manager.get("k", len) == 1
    client.close()


async def test_a_closed_port_falls_back_to_the_data_source(closed_port, caplog):
    config = CacheConfig(port=closed_port, host="127.0.0.1")
    client = config.create_redis_client()
    assert CacheAsideManager(client, config).get("k", len) == 1
    client.close()
    other = config.create_async_redis_client()
    manager = AsyncCacheAsideManager(other, config)
    assert await manager.get("k", MockDataStore(0, {"k": 1}).aget) == 1
    with pytest.raises(redis.ConnectionError):
        await manager.invalidate("k")
    await other.connection_pool.disconnect()
    assert len(caplog.records) == 2


def test_a_server_that_hangs_is_waited_for_as_long_as_the_config_says_and_not_twice(redis_server):
    client = config_of(redis_server, socket_timeout=0.05).create_redis_client()
    manager = CacheAsideManager(client, CacheConfig())
    assert manager.get("k", len) == 1
    redis_server.pause()
    assert manager.get("k", lambda key: "source") == "source"
    with pytest.raises(redis.TimeoutError):
        manager.invalidate("k")
    redis_server.resume()
    client.close()


async def test_a_server_that_hangs_is_not_waited_for_by_tasks_either(redis_server):
    client = config_of(redis_server, socket_timeout=0.05).create_async_redis_client()
    manager = AsyncCacheAsideManager(client, CacheConfig())
    redis_server.pause()
    assert await manager.get("k", MockDataStore(0, {"k": 1}).aget) == 1
    redis_server.resume()
    await client.connection_pool.disconnect()


def test_a_server_that_is_full_is_read_and_invalidated(redis_servers):
    server = redis_servers("--maxmemory-policy", "noeviction")
    client = server.client()
    manager = CacheAsideManager(client, CacheConfig())
    manager.get("k", len)
    client.config_set("maxmemory", "1")
    assert manager.get("k", never) == 1
    assert manager.get("other", len) == 5
    assert manager.invalidate("k") is True
    assert client.dbsize() == 0


def test_what_is_no_text_is_neither_read_nor_replaced(redis_server):
    client = redis_server.client()
    client.rpush("cache:k", "a")
    assert CacheAsideManager(client, CacheConfig()).get("k", len) == 1
    assert client.lrange("cache:k", 0, -1) == [b"a"]


def test_a_user_who_may_do_nothing_is_served_by_the_data_source(redis_servers, caplog):
    server = redis_servers("--requirepass", "correct horse")
    client = server.client()
    assert CacheAsideManager(client, CacheConfig()).get("k", len) == 1
    wrong = config_of(server, password="battery staple").create_redis_client()
    assert CacheAsideManager(wrong, CacheConfig()).get("k", len) == 1
    wrong.close()
    assert "battery" not in caplog.text
    assert len(caplog.records) == 2


def test_a_pool_that_is_exhausted_is_a_failure_as_others_are(redis_server, caplog):
    client = config_of(redis_server, max_connections=1).create_redis_client()
    with client.pipeline() as taking:
        taking.watch("k")
        assert CacheAsideManager(client, CacheConfig()).get("k", len) == 1
    assert [": read (" in record.getMessage() for record in caplog.records] == [True]
    client.close()


# -- the config's clients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("create", ["create_redis_client", "create_async_redis_client"])
def test_a_client_has_the_settings_retries_nothing_and_is_not_connected(create):
    config = CacheConfig("cache.invalid", 6380, 3, socket_timeout=1, socket_connect_timeout=2.5, max_connections=4)
    client = getattr(config, create)()
    assert isinstance(client, redis.asyncio.Redis if "async" in create else redis.Redis)
    pool = client.connection_pool
    settings = pool.connection_kwargs
    assert (settings["host"], settings["port"], settings["db"]) == ("cache.invalid", 6380, 3)
    assert (settings["socket_timeout"], settings["socket_connect_timeout"]) == (1.0, 2.5)
    assert pool.max_connections == 4
    retry = settings["retry"]
    assert isinstance(retry, redis.asyncio.retry.Retry if "async" in create else redis.retry.Retry)
    assert retry._retries == 0
    assert not settings["retry_on_error"]
    assert not getattr(pool, "_available_connections", ())


def test_a_command_is_tried_once(redis_servers):
    server = redis_servers()
    client = config_of(server).create_redis_client()
    client.set("k", 1)
    server.kill()
    asked = []
    connect = client.connection_pool.connection_class.connect
    client.connection_pool.connection_class = type(
        "Counted",
        (client.connection_pool.connection_class,),
        {"connect": lambda self: asked.append(1) or connect(self)},
    )
    client.connection_pool.disconnect()
    client.connection_pool.reset()
    with pytest.raises(redis.ConnectionError):
        client.get("k")
    assert len(asked) <= 2  # a pool may try a connection that it holds for dead a second time


@pytest.mark.parametrize("create", ["create_redis_client", "create_async_redis_client"])
@pytest.mark.parametrize("username", [None, "app"])
def test_no_repr_of_a_client_shows_the_password(create, username):
    client = getattr(CacheConfig(username=username, password="correct horse"), create)()
    assert "correct horse" not in repr(client) + repr(client.connection_pool)
    assert "correct horse" not in str(client.connection_pool.connection_kwargs)


def test_a_client_tells_the_server_user_and_password(redis_servers):
    server = redis_servers("--requirepass", "correct horse")
    server.client(password="correct horse").acl_setuser("app", enabled=True, passwords=["+mine"], commands=["+@all"])
    for username, password in (None, "correct horse"), ("app", "mine"):
        client = config_of(server, username=username, password=password).create_redis_client()
        assert client.ping()
        client.close()


@pytest.mark.parametrize("create", ["create_redis_client", "create_async_redis_client"])
def test_a_user_without_a_password_is_that_user_and_an_empty_password_is_none(redis_servers, create):
    server = redis_servers()
    server.client().acl_setuser("app", enabled=True, nopass=True, commands=["+@all"])
    for username, password, expected in [("app", None, "app"), ("app", "", "app"), (None, "", "default")]:
        client = getattr(config_of(server, username=username, password=password), create)()

        async def who(client=client):
            async with client:
                return await client.acl_whoami()

        answer = asyncio.run(who()) if "async" in create else client.acl_whoami()
        assert answer in (expected, expected.encode())
        if "async" not in create:
            client.close()


def test_without_a_server_these_tests_fail_and_say_what_to_install(redis_server, monkeypatch):
    module = sys.modules[type(redis_server).__module__]
    monkeypatch.delenv("MEMO_REDIS_SERVER", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="apt-get install redis-server"):
        module.executable()


def python(code, **environment):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_memo_and_its_managers_are_imported_without_redis():
    code = "import memo, sys; memo.CacheAsideManager; memo.get_cached_data; print('redis' in sys.modules)"
    assert python(code).strip() == "False"


def test_without_redis_the_config_says_what_to_install():
    code = """
import sys
sys.modules["redis"] = sys.modules["redis.asyncio"] = None
from memo import CacheAsideManager, CacheConfig
for create in CacheConfig().create_redis_client, CacheConfig().create_async_redis_client:
    try:
        create()
    except ImportError as error:
        print(error)

class Own:
    def get(self, key): return b"1"

print(CacheAsideManager(Own(), CacheConfig()).get("k", len))
"""
    advice = 'this needs redis-py: python -m pip install "memo-cache[redis]"\n'
    assert python(code) == advice * 2 + "1\n"


if os.environ.get("MEMO_PROFILE") == "nightly":

    def test_all_of_this_holds_for_the_oldest_redis_py(tmp_path):
        """In an environment of its own, which pip fills: only in the nightly run."""
        venv.create(tmp_path / "old", with_pip=True)
        there = str(tmp_path / "old" / "bin" / "python")
        needed = ["redis==4.5.5", "pytest>=8", "pytest-asyncio>=0.24", "hypothesis>=6.100", "freezegun>=1.5"]
        subprocess.run([there, "-m", "pip", "install", "-q", str(ROOT), *needed], check=True)
        tests = [str(Path(__file__).parent / name) for name in OLDEST]
        environment = {name: value for name, value in os.environ.items() if name != "MEMO_PROFILE"}
        command = [there, "-m", "pytest", "-q", "-W", "ignore::DeprecationWarning", *tests]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


OLDEST = ["test_stand_in.py", "test_managers.py", "test_manager_races.py", "test_functions.py"]


def test_the_classic_names_are_memos_own():
    for module in memo.managers, memo.functions:
        for name in module.__all__:
            assert getattr(memo, name) is getattr(module, name)
