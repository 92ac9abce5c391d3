"""The bytes that stand on a Redis server, written once and read for ever: by later versions, and beside older ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memo import MISSING, RedisStore, cache_aside
from memo.stores.redis import protocol
from memo.stores.redis.protocol import Entry, Held, Windows

GOLDEN = json.loads(Path(__file__).with_name("golden_payloads.json").read_text(encoding="utf-8"))


@pytest.fixture
def client(redis_server):
    return redis_server.client()


def store_for(server: Any, name: str) -> RedisStore:
    return RedisStore(server.url, prefix=GOLDEN[name]["prefix"], serializer=GOLDEN[name]["serializer"], timeout=20)


def put(client: Any, row: dict[str, Any]) -> None:
    for name, text in row["stamps"].items():
        client.set(name.encode(), text)
    client.set(row["key"].encode(), bytes.fromhex(row["bytes"]), px=row["px"] or None)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("entry")])
def test_an_entry_is_read_by_a_function_and_by_get(redis_server, client, name):
    row = GOLDEN[name]
    put(client, row)
    store = store_for(redis_server, name)

    @cache_aside(store=store, namespace=row["namespace"], tags=tuple(row["tags"]), ttl=60)
    def f(x):
        raise AssertionError("it is there")

    assert f(row["x"]) == row["value"]
    assert f.peek(row["x"]) == row["value"]
    assert store.get(f.key_for(row["x"])) == row["value"]
    assert store.keys() == [f.key_for(row["x"])]
    if row["px"]:
        assert f.ttl_left(row["x"]) == pytest.approx((row["px"] - row["kept"]) / 1000, abs=20)
    client.unlink(*row["stamps"])
    assert f.peek(row["x"]) is MISSING
    store.close()


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("entry")])
def test_an_entry_is_parsed_into_the_same_fields_and_written_as_the_same_bytes(name):
    row = GOLDEN[name]
    data = bytes.fromhex(row["bytes"])
    entry = protocol.parse(data)
    assert isinstance(entry, Entry)
    assert entry.id == row["id"].encode()
    assert entry.digest == protocol.digest(row["key"].encode())
    assert entry.stamps == ",".join(row["stamps"].values()).encode()
    assert entry.windows == (None if row["windows"] is None else Windows(*row["windows"]))
    assert entry.names == protocol.names(row["namespace"], tuple(row["tags"]))
    assert entry.claimed == row["claimed"]
    written = protocol.header(entry.id, entry.digest, entry.stamps, entry.windows, entry.names) + entry.payload
    assert written == (data if not row["claimed"] else data.replace(b"#memo1+", b"#memo1 "))


def test_a_placeholder_is_read_as_nothing_and_held(redis_server, client):
    row = GOLDEN["placeholder"]
    put(client, row)
    data = bytes.fromhex(row["bytes"])
    assert protocol.parse(data) == Held(row["id"].encode())
    assert protocol.placeholder(row["id"].encode()) == data
    store = store_for(redis_server, "placeholder")
    f = cache_aside(store=store, namespace="app.f", ttl=60)(lambda x: x)
    assert store.get("app.f(1)") is None
    assert not store.exists("app.f(1)")
    assert store.ttl("app.f(1)") is None
    assert store.keys() == []
    reading = f._self_memoized.attached().look("app.f(1)", ())
    assert (reading.value, reading.held, reading.lease.id) == (MISSING, True, row["id"].encode())
    assert store.delete("app.f(1)") is False
    assert client.get(row["key"]) is None
    store.close()


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("plain")])
def test_a_plain_value_is_read_and_written_without_a_header(redis_server, client, name):
    row = GOLDEN[name]
    put(client, row)
    store = store_for(redis_server, name)
    key = row["key"].removeprefix(row["prefix"])
    assert store.get(key) == row["value"]
    assert protocol.parse(bytes.fromhex(row["bytes"])) is None
    client.delete(row["key"])
    store.set(key, row["value"])
    assert client.get(row["key"]) == bytes.fromhex(row["bytes"])
    store.close()


def test_what_is_written_now_has_the_same_form(redis_server, client):
    row = GOLDEN["entry with tags and windows"]
    put(client, row)
    client.delete(row["key"])
    store = store_for(redis_server, "entry with tags and windows")
    f = cache_aside(
        store=store, namespace=row["namespace"], tags=tuple(row["tags"]), ttl=100, stale_while_revalidate=50,
        stale_if_error=200,
    )(lambda x: row["value"])  # fmt: skip
    f(row["x"])
    now, golden = client.get(row["key"]), bytes.fromhex(row["bytes"])
    assert (now[:7], now[19:]) == (golden[:7], golden[19:]), "all but the id"
    assert 299_000 < client.pttl(row["key"]) <= 300_000
    store.close()
