"""What the page "Redis in production" says of servers, at real ones: permissions, full memory, numbers, bytes."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from memo import (
    AsyncCacheAsideManager,
    CacheAsideManager,
    CacheConfig,
    RedisStore,
    StoreError,
    cache_aside,
    cache_aside_many,
    deserialize_json,
    get_multiple_cached,
    get_ttl,
    invalidate_pattern,
    refresh_ttl,
    set_ttl,
    update_data_with_invalidation,
)
from memo.stores.redis import breaker, protocol, wire
from memo.testing import MockDataStore
from memo.urls import make_store

PAGE = Path(__file__).parent.parent.parent / "docs" / "redis.md"
TEXT = PAGE.read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())
GOLDEN = json.loads(Path(__file__).with_name("golden_payloads.json").read_text(encoding="utf-8"))


def commands() -> list[list[str]]:
    """What the page gives to redis-cli."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [line[1:] for line in lines if line[0] == "redis-cli"]


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


# -- least privilege ---------------------------------------------------------------------------------------------------

FOR_STORES, FOR_CLASSICS = [line for line in commands() if line[:2] == ["ACL", "SETUSER"]]
PREFIX = "shop:"


def granted(line: list[str]) -> list[str]:
    return [word for word in line if word.startswith("+")]


def refused(admin: Any) -> set[str]:
    """The commands that a server has refused, but for the one by which clients say their name: the page tells of it."""
    return {entry["object"] for entry in admin.acl_log()} - {"client", "client|setinfo"}


@pytest.fixture
def admin(redis_server):
    client = redis_server.client()
    client.execute_command("ACL", "LOG", "RESET")
    yield client
    client.acl_deluser("memo")


def url(server: Any) -> str:
    """The URL that the page gives to this user, at the tests' server."""
    shown = re.search(r"`(redis://memo:[^`]*)`", TEXT)[1]
    return shown.replace("localhost:6379", f"127.0.0.1:{server.port}") + "&timeout=20"


@pytest.fixture
def parts(redis_server, admin):
    """Does all that memo does with a store; returns the parts of it that did not do what they should."""
    made: list[Any] = []

    def run() -> set[str]:
        made.append(make_store(url(redis_server), "", None))
        admin.script_flush()  # as after a restart
        failed = set()
        for part in (functions, fleet, endless, plain, numbers, awaited, many, patterns):
            admin.flushall()
            try:
                part(made[-1], admin)
            except Exception:
                failed.add(part.__name__)
        return failed

    yield run
    for store in made:
        store.close()


def well(function: Any) -> None:
    assert function.stats().errors == {}


def functions(store: RedisStore, admin: Any) -> None:
    """Lookups, fills, tags, the helpers, stale windows."""
    loads = []

    @cache_aside(store=store, ttl=3600, tags=("t", "t{x}"), stale_while_revalidate=30, namespace="f")
    def f(x: int) -> int | None:
        loads.append(x)
        return x or None

    forget = [lambda: f.invalidate(1), f.invalidate_all, lambda: store.invalidate_tags("t1")]
    for number, forgotten in enumerate(forget):
        assert [f(1), f(1), f.peek(1)] == [1, 1, 1]
        assert len(loads) == number + 1
        assert f.ttl_left(1) > 50
        forgotten()
    assert f.refresh(1) == 1
    f.set(2, 1)
    assert f(1) == 2
    assert f(0) is None  # is not kept, and gives its placeholder back
    assert admin.exists("shop:f(0)") == 0
    admin.lpush("shop:f(5)", "of another type")
    assert [f(5), f(5)] == [5, 5]
    assert loads.count(5) == 1
    assert admin.ttl("shop:~tag:t1") > 7000, "stamps outlive their entries"
    well(f)


def fleet(store: RedisStore, admin: Any) -> None:
    """One process loads for all, and refreshes what is stale for all."""
    loads = []

    @cache_aside(store=store, ttl=60, single_flight="fleet", stale_if_error=60, wait_timeout=0.05, namespace="g")
    def g(x: int) -> int:
        loads.append(x)
        return len(loads)

    assert [g(1), g(1)] == [1, 1]
    admin.pexpire("shop:g(1)", 50_000)  # past its ttl, and kept for an error
    assert [g(1), g(1)] == [2, 2]
    assert g.refresh(1) == 3
    well(g)


def endless(store: RedisStore, admin: Any) -> None:
    """What never expires has stamps that never do."""

    @cache_aside(store=store, ttl=None, namespace="h")
    def h(x: int) -> int:
        return x

    assert [h(1), h(1)] == [1, 1]
    assert [admin.ttl("shop:h(1)"), admin.ttl("shop:~fn:h")] == [-1, -1]
    well(h)


def plain(store: RedisStore, admin: Any) -> None:
    """Values by key."""
    store.set_many({"a": 1, "b": 2}, ttl=5)
    assert store.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
    assert store.exists("a")
    assert store.expire("a", 500)
    assert store.ttl("a") > 400
    assert store.expire("b", None)
    assert store.ttl("b") == float("inf")
    assert store.delete("a")
    assert store.get("a") is None


def numbers(store: RedisStore, admin: Any) -> None:
    """Counting."""
    assert [store.increment("n"), store.increment("n", 2)] == [1, 3]


def awaited(store: RedisStore, admin: Any) -> None:
    """The same, awaited."""

    @cache_aside(store=store, ttl=60, tags=("t",), namespace="af")
    async def af(x: int) -> int:
        return x

    async def main() -> None:
        assert [await af(1), await af(1)] == [1, 1]
        assert await af.invalidate(1)
        await store.ainvalidate_tags("t")
        await store.aclose()

    asyncio.run(main())
    well(af)


def many(store: RedisStore, admin: Any) -> None:
    """Many ids at once."""

    @cache_aside_many(store=store, ttl=60, tags=("t",), namespace="many")
    def load(ids: list[int]) -> dict[int, int]:
        return {each: each for each in ids}

    assert load([1, 2]) == load([2, 1]) == {1: 1, 2: 2}
    assert load.invalidate_many([1, 2]) == 2
    well(load)


def patterns(store: RedisStore, admin: Any) -> None:
    """What goes through all keys."""
    store.set_many({"a:1": 1, "a:2": 2, "b:1": 3})
    assert sorted(store.keys("a:*")) == ["a:1", "a:2"]
    assert store.delete_pattern("a:*") == 2
    assert store.stats().size == 1
    store.clear()
    assert admin.dbsize() == 0


ALL = {"functions", "fleet", "endless", "plain", "numbers", "awaited", "many", "patterns"}


def test_with_the_permissions_of_the_page_everything_works_and_nothing_is_refused(admin, parts):
    admin.execute_command(*FOR_STORES)
    assert parts() == set()
    assert refused(admin) == set()


@pytest.mark.parametrize("permission", granted(FOR_STORES))
def test_without_any_one_of_them_something_does_not(admin, parts, permission, caplog):
    admin.execute_command(*[word for word in FOR_STORES if word != permission])
    failed = parts()
    assert failed
    # What the page says may be left out is missed by nothing else.
    alone = {"+mget": {"many"}, "+scan": {"patterns"}}
    assert failed == alone[permission] if permission in alone else len(failed) > 1


def test_other_keys_and_databases_are_out_of_reach(redis_server, admin):
    admin.execute_command(*FOR_STORES)
    store = RedisStore(url(redis_server).partition("?")[0], "other:", timeout=20)
    with pytest.raises(StoreError, match="NOPERM"):
        store.delete("a")
    store.close()
    elsewhere = RedisStore(url(redis_server).partition("?")[0].replace("/0", "/1"), PREFIX, timeout=20)
    with pytest.raises(StoreError):
        elsewhere.delete("a")
    elsewhere.close()
    admin.execute_command(*FOR_STORES, "+select")
    assert elsewhere.delete("a") is False
    elsewhere.close()


def classics(server: Any, password: str) -> None:
    """All of the classic interface that asks a server."""
    config = CacheConfig("127.0.0.1", server.port, key_prefix=PREFIX, username="memo", password=password)
    source = MockDataStore(latency_ms=0, data={"a": 1, "b": 2})
    client = config.create_redis_client()
    try:
        manager = CacheAsideManager(client, config)
        assert [manager.get("a", source.get) for _ in range(2)] == [1, 1]
        assert manager.invalidate("a")
        assert manager.get("a", source.get, ttl=1.5) == 1
        assert source.reads == 2
        assert set_ttl(client, "a", 50, PREFIX)
        assert refresh_ttl(client, "a", 0.5 + 60, PREFIX)
        assert 50 < get_ttl(client, "a", PREFIX) <= 61
        assert update_data_with_invalidation(client, source, "a", 5, PREFIX)
        manager.get("a", source.get)
        assert invalidate_pattern(client, f"{PREFIX}*") == 1
    finally:
        client.close()

    async def main() -> None:
        async with config.create_async_redis_client() as client:
            manager = AsyncCacheAsideManager(client, config)
            assert [await manager.get("b", source.aget) for _ in range(2)] == [2, 2]
            assert await get_multiple_cached(client, ["a", "b"], source.aget, prefix=PREFIX) == {"a": 5, "b": 2}
            assert deserialize_json(await client.get(f"{PREFIX}b")) == 2
            before = source.reads
            assert await get_multiple_cached(client, ["a", "b"], source.aget, prefix=PREFIX) == {"a": 5, "b": 2}
            assert source.reads == before
            assert await manager.invalidate("b")

    asyncio.run(main())


PASSWORD = FOR_STORES[FOR_STORES.index("on") + 1].removeprefix(">")


def test_the_classic_interface_works_with_what_the_page_adds_for_it(redis_server, admin):
    admin.execute_command(*FOR_STORES)
    admin.execute_command(*FOR_CLASSICS)
    classics(redis_server, PASSWORD)
    assert refused(admin) == set()


@pytest.mark.parametrize("permission", granted(FOR_CLASSICS))
def test_and_not_without_any_one_of_these(redis_server, admin, permission, caplog):
    import redis

    admin.execute_command(*FOR_STORES)
    admin.execute_command(*[word for word in FOR_CLASSICS if word != permission])
    with pytest.raises((AssertionError, redis.exceptions.NoPermissionError)):
        classics(redis_server, PASSWORD)


# -- memory ------------------------------------------------------------------------------------------------------------


def policies() -> list[str]:
    return re.findall(
        r"`((?:allkeys|volatile)-\w+|noeviction)`", section("Choose a memory policy").partition("|\n\n")[0]
    )


def test_the_page_has_every_memory_policy():
    volatile = {f"volatile-{each}" for each in ("lru", "lfu", "random", "ttl")}
    assert set(policies()) == {"noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random"} | volatile


BIG = "x" * 20_000
SPACE = 1_500_000


@pytest.mark.parametrize("policy", sorted(set(policies())))
def test_when_memory_is_full_nothing_stale_is_served_and_every_invalidation_works(redis_server, policy):
    client = redis_server.client()
    store = RedisStore(redis_server.url, timeout=20, default_ttl=300)
    version, loads = [0], []

    @cache_aside(store=store, namespace="f", tags=("t",))
    def f(x: int) -> list[Any]:
        loads.append(x)
        return [version[0], BIG]

    try:
        for number in range(20):
            client.set(f"kept:{number}", BIG)
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory-samples", 10)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + SPACE)
        forget = [lambda: f.invalidate(0), f.invalidate_all, lambda: store.invalidate_tags("t")]
        for forgotten in forget:
            for x in range(100):  # more than fits
                assert f(0)[0] == f(x)[0] == version[0]
            version[0] += 1
            forgotten()
            assert f(0)[0] == version[0]
            store.clear()  # what is dead takes its room until its ttl is over
        for x in range(100):
            f(0), f(x)
        stored = client.keys("cache:f(*")  # some may be dead, where a stamp was evicted
        assert 0 < len(stored) < 100
        assert client.exists(*[f"kept:{number}" for number in range(20)]) == 20 or policy.startswith("allkeys")
        before = len(loads)
        if policy.endswith("lfu"):  # "lru" counts in seconds
            assert f(0)[0] == version[0]
            assert len(loads) == before, "what is used most is there, and so are the stamps"
        assert [f(99)[0], f(99)[0]] == [version[0]] * 2
        if policy == "noeviction":
            assert b"cache:f(99)" not in stored
            assert len(loads) == before + 2  # nothing new is stored, and no call fails
            assert client.info("stats")["evicted_keys"] == 0
        else:
            assert client.info("stats")["evicted_keys"] > 0
        assert store.stats().errors == {}
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory-samples", 5)
        client.config_resetstat()
        store.close()


def test_where_nothing_is_evicted_what_a_tag_has_made_untrue_keeps_the_server_full(redis_server):
    client = redis_server.client()
    store = RedisStore(redis_server.url, timeout=20)

    @cache_aside(store=store, namespace="f", tags=("t",), ttl=300)
    def f(x: int) -> str:
        return BIG

    try:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + SPACE)
        for x in range(100):
            f(x)
        store.invalidate_tags("t")
        f(0), f(0)
        assert f.stats().hits == 0
        store.clear()
        f(0), f(0)
        assert f.stats().hits == 1
    finally:
        client.config_set("maxmemory", 0)
        store.close()


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-ttl"])
def test_entries_without_an_end_are_kept_by_the_volatile_policies_as_if_nothing_were_evicted(redis_server, policy):
    client = redis_server.client()
    store = RedisStore(redis_server.url, timeout=20, default_ttl=None)

    @cache_aside(store=store, namespace="f")
    def f(x: int) -> str:
        return BIG

    try:
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + SPACE)
        for x in range(100):
            f(x)
        stored = store.keys()
        for x in range(100):
            f(x)
        assert set(stored) <= set(store.keys())
        assert 0 < len(stored) <= f.stats().hits
        assert client.exists("cache:~fn:f")
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        store.close()


def test_a_header_is_as_long_as_the_page_says():
    fixed, each = map(int, re.search(r"header of (\d+) bytes, .*? and (\d+) bytes for each tag", FLAT).groups())
    for tags in ((), ("a",), ("a", "b:1")):
        stamps = b",".join([protocol.new_id()] * (1 + len(tags)))
        named = protocol.names("app.f", tags)
        line = protocol.header(protocol.new_id(), protocol.digest(b"k"), stamps, None, named)
        assert len(line) == fixed + each * len(tags) + len(named)


# -- failures ----------------------------------------------------------------------------------------------------------


def failures(outcome: str) -> list[str]:
    """The names in the rows of the table of failures whose callers see that outcome."""
    rows = [
        line.split("|")[1:4] for line in section("What a caller sees when it fails").splitlines() if line[:2] == "| "
    ]
    return [name for what, seen, _ in rows if outcome in seen for name in re.findall(r"`(\w+)`", what)]


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "get_many": (["a"],),
    "delete_many": (["a"],),
    "set": ("a", 1),
    "set_many": ({"a": 1},),
    "expire": ("a", 5),
    "keys": (),
    "clear": (),
}
HELPERS = ("invalidate", "invalidate_all", "peek", "ttl_left")


@pytest.fixture
def without_a_server(closed_port):
    store = RedisStore(f"redis://127.0.0.1:{closed_port}/0", timeout=20)
    yield store
    store.close()


@pytest.mark.parametrize("name", [*failures("nothing is there"), *failures("not stored")])
def test_what_the_page_says_to_fail_nobody_fails_nobody_and_is_counted(without_a_server, name, caplog):
    assert not getattr(without_a_server, name)(*ARGUMENTS.get(name, ("a",)))
    assert without_a_server.stats().errors[name] == 1


@pytest.mark.parametrize("name", failures("`StoreError`"))
def test_what_the_page_says_to_be_an_error_is_one(without_a_server, name):
    @cache_aside(store=without_a_server)
    def f(x: str) -> str:
        return x

    if name in HELPERS:
        helper = getattr(f, name)
        with pytest.raises(StoreError):
            helper() if name == "invalidate_all" else helper("a")
    elif name == "set":  # the helper: the store's own fails nobody
        with pytest.raises(StoreError):
            f.set("a", "a")
    else:
        with pytest.raises(StoreError):
            getattr(without_a_server, name)(*ARGUMENTS.get(name, ("a",)))


def test_the_table_of_failures_has_all_that_asks_the_server():
    rest = {"close", "stats"}  # the latter says what it could not ask as 0
    methods = {name for name in dir(RedisStore) if not name.startswith("_") and callable(getattr(RedisStore, name))}
    blocking = {name for name in methods if f"a{name}" in methods} - rest
    listed = {*failures("nothing is there"), *failures("not stored"), *failures("`StoreError`")}
    assert blocking <= listed


# -- numbers, bytes, commands ------------------------------------------------------------------------------------------


def test_the_numbers_of_the_page_are_those_of_the_code():
    store = RedisStore()
    defaults = {name: each.default for name, each in inspect.signature(RedisStore).parameters.items()}
    assert f"| `timeout` | {defaults['timeout']} seconds" in FLAT
    assert f"| `connect_timeout` | {defaults['connect_timeout']} seconds" in FLAT
    assert f"at most {wire.MOST} in each" in FLAT
    assert (breaker.TOLERATED, breaker.FIRST, breaker.LONGEST) == (3, 0.5, 10)
    assert re.search("After three failures in a row .* After half a second .* up to 10 seconds", FLAT)
    longest, fleet = protocol.LONGEST_LOAD, protocol.LONGEST_FLEET_LOAD
    assert f'for {longest:g} seconds, with `single_flight="fleet"` for {fleet:g}' in FLAT
    assert f"one and a half times as long as their entries or longer, at least {1.5 * longest / 60:g} minutes" in FLAT
    assert f"`max_size`, {store._codec.max_size >> 20} MiB" in FLAT


def test_the_bytes_that_the_page_shows_are_the_golden_ones():
    shown = re.findall(r"^```text\n(#memo1.*?)\n```$", section("The wire format"), re.MULTILINE | re.DOTALL)
    golden = {bytes.fromhex(row["bytes"]).decode() for row in GOLDEN.values() if row["serializer"] == "json"}
    assert len(shown) == 3
    assert set(shown) <= golden


def test_the_commands_that_the_page_gives_to_a_shell_are_ones(redis_server):
    client = redis_server.client()
    asked = [line for line in commands() if line[0] != "ACL"]
    scan = asked.pop(0)
    assert scan[:2] == ["--scan", "--pattern"]
    store = RedisStore(redis_server.url, "shop:", timeout=20)
    cache_aside(store=store, namespace="prices", tags=("book:{x}",))(lambda x: x)(7)
    assert [key.decode() for key in client.scan_iter(match=scan[2])] == ["shop:prices(7)"]
    assert all(client.execute_command(*line) for line in asked)
    assert len(asked) == 4
    store.close()
