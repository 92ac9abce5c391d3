"""The Redis store keeps the promises of every store, blocking and awaited, over a real server."""

from __future__ import annotations

import pytest

from memo import RedisStore
from memo.serializers import PickleSerializer
from memo.testing import StoreContract

PATIENCE = 20.0
"""Seconds that a server may take on a machine with much else to do: a read that takes longer would be a miss."""

# Moves the time of all keys, as if it had passed for the server: ARGV[1] milliseconds.
PASS = """
local cursor = '0'
repeat
  local found = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = found[1]
  for _, key in ipairs(found[2]) do
    local left = redis.call('PTTL', key)
    if left >= 0 then
      if left - ARGV[1] <= 0 then redis.call('UNLINK', key) else redis.call('PEXPIRE', key, left - ARGV[1]) end
    end
  end
until cursor == '0'
"""


class TestRedisStore(StoreContract):
    precision = 0.5
    serializer = "json"
    values = (
        None,
        False,
        True,
        0,
        -1,
        0.5,
        "",
        "text",
        "é \U0001f9ff \x00\n",
        [],
        [1, [2, {"a": None}]],
        {},
        {"a": {"b": [1.5]}},
    )

    @pytest.fixture(autouse=True)
    def _server(self, redis_server):
        self.server, self.made = redis_server, []
        self.server.client().flushall()
        yield
        for store in self.made:
            store.close()

    def make_store(self, clock, default_ttl=None):
        self.made.append(
            RedisStore(
                f"redis://127.0.0.1:{self.server.port}/{len(self.made)}",
                default_ttl=default_ttl,
                serializer=self.serializer,
                timeout=PATIENCE,
                connect_timeout=PATIENCE,
            )
        )
        return self.made[-1]

    def advance(self, clock, seconds):
        clock.advance(seconds)
        for index in range(len(self.made)):
            self.server.client(db=index).eval(PASS, 0, int(seconds * 1000))


class TestRedisStoreOfPickles(TestRedisStore):
    serializer = PickleSerializer(secret=b"a secret of the tests, 32 bytes.")
    values = StoreContract.values
