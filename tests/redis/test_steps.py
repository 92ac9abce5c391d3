"""Round trips of the Redis store: how many there are, and what each of its operations makes of every answer."""

from __future__ import annotations

import asyncio
import gc
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from memo import MISSING, OptionError, RedisStore, StoreError, cache_aside, cache_aside_many, escape_pattern
from memo.entry import DEFAULT, Life
from memo.stores.redis import leases, protocol
from memo.stores.redis.commands import Refusal
from memo.stores.redis.leases import RedisLease
from memo.stores.redis.steps import BATCH, StoreSteps, together


class Trips(list):
    """The commands of each round trip, by their names."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__()
        self.store, self.link = store, store._link
        self.call, self.acall = self.link.call, self.link.acall
        self.link.call, self.link.acall = self._call, self._acall  # type: ignore[method-assign]

    def _call(self, commands: Any, loud: bool, deadline: float) -> Any:
        self.append([command[0] for command in commands])
        return self.call(commands, loud, deadline)

    async def _acall(self, commands: Any, loud: bool, deadline: float) -> Any:
        self.append([command[0] for command in commands])
        return await self.acall(commands, loud, deadline)

    def taken(self) -> list[list[str]]:
        """Return them, and begin anew."""
        trips = list(self)
        self.clear()
        return trips


@pytest.fixture
def store(redis_server):
    store = RedisStore(redis_server.url, timeout=20)
    yield store
    store.close()


@pytest.fixture
def trips(store):
    return Trips(store)


@pytest.fixture
def client(redis_server):
    return redis_server.client()


def run(awaits: bool, function: Any, *args: Any) -> Any:
    """Call a function that awaits, or one that does not."""
    return asyncio.run(_awaited(function, *args)) if awaits else function(*args)


async def _awaited(function: Any, *args: Any) -> Any:
    return await function(*args)


def decorated(awaits: bool, function: Any, **options: Any) -> Any:
    async def later(x):
        return function(x)

    return cache_aside(**{"namespace": "f", "ttl": 60, **options})(later if awaits else function)


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("awaits", [False, True])
def test_a_hit_is_one_round_trip_and_a_miss_two(store, trips, awaits):
    f = decorated(awaits, lambda x: [x], store=store)
    run(awaits, f, 0)
    trips.clear()
    assert run(awaits, f, 1) == [1]
    # The second trip is the fill, by a script. The first fill has lengthened the stamp's life, too.
    assert trips.taken() == [["GET", "GET", "SET"], ["EVALSHA"]]
    assert run(awaits, f, 1) == [1]
    assert trips.taken() == [["GET", "GET", "SET"]]


@pytest.mark.parametrize("awaits", [False, True])
def test_with_tags_too(store, trips, awaits):
    f = decorated(awaits, lambda x: x, store=store, tags=("a", "b{x}"))
    run(awaits, f, 1)
    assert trips.taken() == [["GET"] * 4 + ["SET"], ["SET", "GET"] * 3, ["EVALSHA"] * 4]  # the stamps are made once
    store.delete(f.key_for(1))
    trips.clear()
    run(awaits, f, 1)
    assert trips.taken() == [["GET"] * 4 + ["SET"], ["EVALSHA"]]  # and no longer life for some time
    run(awaits, f, 1)
    assert trips.taken() == [["GET"] * 4 + ["SET"]]


@pytest.mark.parametrize("awaits", [False, True])
def test_with_windows_the_time_left_is_asked_at_once_as_soon_as_one_is_met(store, trips, awaits):
    f = decorated(awaits, lambda x: x, store=store, stale_while_revalidate=5)
    run(awaits, f, 1)
    trips.clear()
    run(awaits, f, 1)
    assert trips.taken() == [["GET", "GET", "SET"], ["PTTL", "GET", "GET", "SET"]]
    run(awaits, f, 1)
    assert trips.taken() == [["PTTL", "GET", "GET", "SET"]]


@pytest.mark.parametrize("awaits", [False, True])
def test_of_many_ids_the_hits_are_one_round_trip_and_so_are_the_leases_and_the_fills(store, trips, awaits):
    ids = list(range(100))
    f = cache_aside_many(store=store, namespace="many", ttl=60)(_ids_later if awaits else _ids)
    assert len(run(awaits, f, ids)) == 100
    assert len(trips.taken()) <= 5  # the first ones make the function's stamp
    assert run(awaits, f, ids) == {each: each for each in ids}
    assert trips.taken() == [["MGET", "MGET"]]
    assert len(run(awaits, f, list(range(90, 110)))) == 20
    assert trips.taken() == [["MGET", "MGET"], ["GET", "GET", "SET"] * 10, ["EVALSHA"] * 10]
    assert run(awaits, f.invalidate_many, [1, 2, 3, 3, 1000]) == 3
    assert [len(trip) for trip in trips.taken()] == [4 * 3, 3 * 2]  # removing; asking which of them were valid
    assert run(awaits, f.invalidate_many, []) == 0
    assert trips.taken() == []


def _ids(ids):
    return {each: each for each in ids}


async def _ids_later(ids):
    return _ids(ids)


class Point(NamedTuple):
    x: int
    y: int


def _points(ids) -> dict[int, Point]:
    return {each: Point(each, each) for each in ids}


async def _points_later(ids) -> dict[int, Point]:
    return _points(ids)


@pytest.mark.parametrize("awaits", [False, True])
def test_of_many_ids_each_value_comes_back_as_the_annotation_of_the_mapping_says(store, awaits):
    f = cache_aside_many(store=store, namespace="points", ttl=60)(_points_later if awaits else _points)
    for _ in range(2):
        found = run(awaits, f, [1, 2])
        assert found == {1: (1, 1), 2: (2, 2)}
        assert {type(each) for each in found.values()} == {Point}
    assert f.stats().hits == 2


@pytest.mark.parametrize("awaits", [False, True])
def test_many_ids_with_tags_are_found_again(store, trips, awaits):
    f = cache_aside_many(store=store, namespace="many", tags=("all", "t{ids}"), ttl=60)(_ids_later if awaits else _ids)
    run(awaits, f, [1, 2, 3])
    trips.clear()
    assert run(awaits, f, [1, 2, 3]) == {1: 1, 2: 2, 3: 3}
    assert trips.taken() == [["MGET", "MGET"]]
    store.invalidate_tags("t2")
    trips.clear()
    run(awaits, f, [1, 2, 3])
    assert len(trips.taken()[1:]) == 3, "a lease for the one, its stamp, its fill"
    assert f.stats().hits == 3 + 2


@pytest.mark.parametrize("awaits", [False, True])
def test_what_many_ids_do_not_find_is_given_back_in_one_round_trip(store, trips, client, awaits):
    async def later(ids):
        return {}

    f = cache_aside_many(store=store, namespace="none", ttl=60)(later if awaits else lambda ids: {})
    assert run(awaits, f, [1, 2]) == {}
    assert trips.taken()[-1] == ["EVALSHA"] * 2
    assert client.keys("cache:none*") == []


@pytest.mark.parametrize("awaits", [False, True])
def test_one_value_of_many_that_cannot_be_kept_hinders_no_other(store, awaits):
    def load(ids):
        return {each: {1, 2} if each == 2 else each for each in ids}

    async def later(ids):
        return load(ids)

    f = cache_aside_many(store=store, namespace="odd", ttl=60)(later if awaits else load)
    assert run(awaits, f, [1, 2, 3]) == {1: 1, 2: {1, 2}, 3: 3}
    assert f.stats().errors == {"fill": 1}
    assert [run(awaits, f.peek, each) for each in (1, 2, 3)] == [1, MISSING, 3]
    assert store.keys() == [] or sorted(store.keys()) == ["odd(1)", "odd(3)"]


@pytest.mark.parametrize("awaits", [False, True])
def test_readings_of_calls_without_tags(store, awaits):
    f = decorated(False, lambda x: x, store=store)
    f(1)
    space = f._self_memoized.attached()
    read, read_many = (space.aread, space.aread_many) if awaits else (space.read, space.read_many)
    assert run(awaits, read, f.key_for(1)).value == 1
    assert [each.value for each in run(awaits, read_many, [f.key_for(1), f.key_for(2)])] == [1, MISSING]


def test_many_stale_values_are_read_with_their_times(store, trips, client):
    f = decorated(False, lambda x: x, store=store, ttl=10, stale_while_revalidate=100, stale_if_error=200)
    space = f._self_memoized.attached()
    for x in range(4):
        f.set(x, x)
    for x, left in enumerate((205_000, 150_000, 50_000)):
        client.pexpire(f"cache:{f.key_for(x)}", left)
    trips.clear()
    readings = space.look_many([(f.key_for(x), ()) for x in range(5)])
    assert trips.taken() == [["MGET", "MGET"], ["PTTL"] * 5 + ["MGET", "MGET"]]
    assert [(each.value, each.due, each.late, each.stale) for each in readings] == [
        (0, False, False, MISSING),
        (1, True, True, MISSING),
        (MISSING, False, False, 2),
        (3, False, False, MISSING),
        (MISSING, False, False, MISSING),
    ]


def test_what_is_not_ours_among_many_is_a_miss(store, client, caplog):
    f = decorated(False, lambda x: x, store=store)
    other = cache_aside(store=store, key="f({x})", ttl=60)(lambda x: -x)
    f(1)
    store.set(f.key_for(2), 5)
    client.rpush(f"cache:{f.key_for(3)}", 1)
    other(4)
    client.set(f"cache:{f.key_for(5)}", b"#memo1-ABCDEFGHIJKL")
    readings = f._self_memoized.attached().look_many([(f.key_for(x), ()) for x in range(1, 7)])
    assert [each.value for each in readings] == [1] + [MISSING] * 5
    assert readings[4].lease.id == b"ABCDEFGHIJKL"
    assert store.stats().errors == {"strange": 2}
    assert len([each for each in caplog.messages if "use one name" in each]) == 1


@pytest.mark.parametrize("verb", ["get_many", "set_many", "delete_many"])
@pytest.mark.parametrize("awaits", [False, True])
def test_several_plain_values_are_one_round_trip(store, trips, verb, awaits):
    names = [f"k{each}" for each in range(20)]
    argument = dict.fromkeys(names, 1) if verb == "set_many" else names
    run(awaits, getattr(store, f"a{verb}" if awaits else verb), argument)
    assert len(trips.taken()) == 1


@pytest.mark.parametrize("verb", ["get", "exists", "ttl"])
def test_one_plain_value_is_one_round_trip(store, trips, verb):
    store.set("k", 1)
    trips.clear()
    assert getattr(store, verb)("k")
    assert len(trips.taken()) == 1


def test_ten_thousand_keys_are_listed_and_removed_by_pattern_in_batches(store, trips, client):
    for start in range(0, 10_000, 1_000):
        store.set_many({f"{'a' if each % 2 else 'b'}:{each}": each for each in range(start, start + 1_000)}, None)
    client.set("another:1", 1)
    trips.clear()
    assert len(store.keys("a:*")) == 5_000
    assert max(map(len, trips.taken())) <= BATCH
    assert store.delete_pattern("a:*") == 5_000
    assert max(map(len, trips.taken())) <= 3 * BATCH
    assert store.stats().size == 5_000
    store.clear()
    assert client.keys("*") == [b"another:1"]


@pytest.mark.parametrize("prefix", ["a*", "a?", "a[b]", "a\\", "[^a]-", "é:", "{slot}:"])
def test_a_prefix_is_taken_as_it_is(redis_server, client, prefix):
    store = RedisStore(redis_server.url, prefix=prefix, timeout=20)
    for other in ("ab:x", "a:x", "abc", "b-x", "x", "a"):
        client.set(other, 1)
    store.set_many({"x": 1, "y*": 2})
    assert sorted(store.keys()) == ["x", "y*"]
    assert store.keys(escape_pattern("y*")) == ["y*"]
    assert store.delete_pattern("*") == 2
    store.clear()
    assert len(client.keys("*")) == 6
    store.close()


# -- what is answered --------------------------------------------------------------------------------------------------


def answered(steps: Any, *answers: Any) -> Any:
    """Take steps, with these answers; return their result."""
    steps.send(None)
    try:
        for answer in answers:
            commands = steps.send(answer)
    except StopIteration as stop:
        return stop.value
    raise AssertionError(f"it goes on: {commands}")


ours = StoreSteps("cache:", 60)
NO = Refusal("NOPERM")
LEASE = RedisLease(b"ABCDEFGHIJKL", b"s", mine=True)


def look(take: float | None = 60.0) -> Any:
    return ours.look("k", "f", (), b'["f"]', take, False)


@pytest.mark.parametrize(
    ("steps", "answers"),
    [
        (look, [[NO, b"s", None]]),
        (look, [[b"x", NO, None]]),
        (look, [[None, None, b"OK"], [NO, b"s"], [1]]),
        (look, [[b"plain", b"s", None], [NO]]),
        (lambda: ours.look_many([("k", ())], "f", [b'["f"]'], False), [[NO, [b"s"]]]),
        (lambda: ours.claim("k", LEASE, False, 60), [[NO]]),
        (lambda: ours.fill("k", "f", (), b'["f"]', LEASE, b"1", 60), [[NO, 1]]),
        (lambda: ours.release("k", LEASE, False), [[NO]]),
        (lambda: ours.renew("k", "f", (), 60, False), [[b"s", NO]]),
        (lambda: ours.put("k", "f", (), b'["f"]', b"1", 60), [[NO]]),
        (lambda: ours.put("k", "f", (), b'["f"]', b"1", 60), [[b"s"], [NO, 1]]),
        (lambda: ours.forget([b"k"]), [[NO]]),
        (lambda: ours.read(["k"]), [[NO]]),
        (lambda: ours.there([b"k"]), [[NO]]),
        (lambda: ours.write([("k", b"1")], 60), [[NO]]),
        (lambda: ours.remove(["k"]), [[b"", -2, NO]]),
        (lambda: ours.left("k"), [[NO, NO]]),
        (lambda: ours.expire("k", 5), [[NO]]),
        (lambda: ours.expire("k", 5), [[b"1"], [NO]]),
        (lambda: ours.increment("k", 1, int, str), [[NO, -2]]),
        (lambda: ours.increment("k", 1, lambda data: 1, lambda total: b"2"), [[b"1", -1], [NO]]),
        (lambda: ours.listed(), [[NO]]),
    ],
)
def test_what_the_server_refuses_is_raised(steps, answers):
    with pytest.raises(Refusal, match="NOPERM"):
        answered(steps(), *answers)


def test_what_came_or_went_in_between_is_looked_at_once_more():
    seen = answered(look(), [None, b"s", None], [None, b"s", None])
    assert (seen.standing, seen.lease, seen.held) == (None, None, False)
    seen = answered(look(), [None, b"s", None], [b"#memo1-ABCDEFGHIJKL", b"s", None])
    assert (seen.lease, seen.held) == (RedisLease(b"ABCDEFGHIJKL", b"s"), True)


def test_where_there_is_no_memory_for_a_placeholder_there_is_no_lease():
    seen = answered(look(), [None, b"s", Refusal("OOM")])
    assert seen.lease is None


def test_a_value_that_went_before_the_placeholder_came_is_not_served():
    """1. it is read   2. it expires   3. the placeholder is put: if the value were served, nobody would fill that."""
    entry = protocol.header(b"A" * 12, protocol.digest(b"cache:k"), b"s", None, b'["f"]') + b"1"
    assert answered(look(), [entry, b"s", None]) == (entry, len(entry) - 1)
    seen = answered(look(), [entry, b"s", b"OK"])
    assert seen.standing is None
    assert seen.lease.mine


def test_a_plain_value_that_somebody_replaces_meanwhile_gives_no_lease():
    seen = answered(look(), [b"plain", b"s", None], [0])
    assert (seen.lease, seen.strange) == (None, True)


def test_a_look_that_takes_nothing_has_no_lease_of_a_plain_value():
    seen = answered(look(None), [b"plain", None])
    assert (seen.lease, seen.strange) == (None, True)
    seen = answered(look(None), [b"#memo1-ABCDEFGHIJKL", None])
    assert seen.lease == RedisLease(b"ABCDEFGHIJKL", b"?"), "equal to no stamp that there is"


def test_a_claim_in_vain_is_none():
    assert answered(ours.claim("k", LEASE, False, 60), [0]) is None


def test_a_lease_that_is_not_ones_own_is_given_back_by_nobody():
    steps = ours.release("k", RedisLease(b"A" * 12, b"s"), False)
    with pytest.raises(StopIteration):
        steps.send(None)


def test_leases_are_equal_by_what_was_seen():
    assert RedisLease(b"ABCDEFGHIJKL", b"s") == LEASE
    assert hash(LEASE) == hash(RedisLease(b"ABCDEFGHIJKL", b"s"))
    assert RedisLease(b"ABCDEFGHIJKL", b"t") != LEASE
    assert RedisLease(b"ABCDEFGHIJKM", b"s") != LEASE
    assert LEASE != b"ABCDEFGHIJKL"


def test_of_several_steps_that_go_together_each_has_its_own_end():
    def counting(trips: int) -> Any:
        for each in range(trips):
            replies = yield [("GET", each)] * trips
            assert replies == [each] * trips
        if trips == 2:
            raise KeyError(trips)
        return trips

    steps = together([counting(3), counting(0), counting(2), counting(1)])
    replies, count = None, 0
    try:
        while True:
            commands = steps.send(replies)
            replies = [command[1] for command in commands]
            count += 1
    except StopIteration as stop:
        three, none, failed, one = stop.value
    assert (three, none, one, count) == (3, 0, 1, 3)
    assert isinstance(failed, KeyError)


@pytest.mark.parametrize(
    ("ttl", "milliseconds", "windows"),
    [
        (60, 60_000, None),
        (0.0001, 1, None),
        (None, 0, None),
        (DEFAULT, 60_000, None),
        (Life(10, 1, 2, 3), 13_000, (1_000, 2_000, 3_000)),
        (Life(10, 0, 5, 3), 15_000, (0, 5_000, 5_000)),
    ],
)
def test_durations_are_whole_milliseconds_that_include_the_windows(ttl, milliseconds, windows):
    assert ours.milliseconds(ttl) == (milliseconds, windows)


# -- lives of entries and stamps ---------------------------------------------------------------------------------------


def stamp(client: Any) -> int:
    return client.pttl("cache:~fn:f")


@pytest.mark.parametrize(("ttl", "least"), [(60, 1_200_000), (3_600, 7_200_000)])
def test_a_stamp_lives_for_twice_as_long_as_what_bears_it(store, client, ttl, least):
    f = decorated(False, lambda x: x, store=store, ttl=ttl)
    f(1)
    assert least - 10_000 < stamp(client) <= least
    f.set(5, 2)
    assert least - 10_000 < stamp(client) <= least


def test_a_stamp_is_lengthened_again_in_time_and_where_it_is_another_one(store, client, trips, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: now[0]))
    f = decorated(False, lambda x: x, store=store, ttl=3_600)
    short, ever = (decorated(False, lambda x: x, store=store, ttl=ttl) for ttl in (60, None))

    def lengthens(function, x):
        trips.clear()
        function(x)
        return trips.taken()[-1] == ["EVALSHA"] * 2

    assert [lengthens(f, x) for x in range(3)] == [True, False, False]
    assert lengthens(short, 3), "another ttl"
    now[0] += 1_799  # of the two hours that it was to live
    assert not lengthens(f, 4)
    now[0] += 2
    assert [lengthens(f, x) for x in (5, 6)] == [True, False]
    f.invalidate_all()
    assert [lengthens(f, x) for x in (7, 8)] == [True, False]
    now[0] += 10**9
    assert [lengthens(ever, x) for x in (9, 10)] == [True, False]
    now[0] += 10**9
    assert not lengthens(ever, 11), "it has no end"
    assert stamp(client) == -1


def test_a_stamp_that_could_not_be_lengthened_is_tried_again():
    steps = StoreSteps("cache:", 60)
    fill = ("k", "f", (), b'["f"]', LEASE, b"1", 60)
    assert answered(steps.fill(*fill), [1, Refusal("NOPERM")]) is True
    assert len(steps.fill(*fill).send(None)) == 2
    assert answered(steps.fill(*fill), [1, 5]) is True
    assert len(steps.fill(*fill).send(None)) == 1


def test_what_is_remembered_of_stamps_is_bounded(monkeypatch):
    monkeypatch.setattr(leases, "STAMPS", 3)
    steps = StoreSteps("cache:", 60)
    for tag in "abcdefg":
        assert answered(steps.fill("k", "f", (tag,), b"", LEASE, b"1", 60), [1, 5, 5]) is True
        assert len(steps._lengthened) <= 3


def test_no_stamp_is_shortened_and_one_of_what_never_expires_has_no_end(store, client):
    long, short, ever = (decorated(False, lambda x: x, store=store, ttl=ttl) for ttl in (7_200, 60, None))
    long(1)
    before = stamp(client)
    short(2)
    assert before - 10_000 < stamp(client) <= before
    ever(3)
    assert stamp(client) == -1
    short(4)
    assert stamp(client) == -1


@pytest.mark.parametrize("ttl", [100_000, None])
def test_who_gives_an_entry_a_longer_life_gives_its_stamps_one(store, client, ttl):
    f = decorated(False, lambda x: x, store=store, tags=("t",))
    f(1)
    assert store.expire(f.key_for(1), ttl)
    for name in ("~fn:f", "~tag:t"):
        left = client.pttl(f"cache:{name}")
        assert left == -1 if ttl is None else left > 190_000_000
    assert f.ttl_left(1) == (math.inf if ttl is None else pytest.approx(100_000, abs=60))


def test_expire_keeps_the_windows(store, client):
    f = decorated(False, lambda x: x, store=store, ttl=10, stale_while_revalidate=50)
    f(1)
    assert store.expire(f.key_for(1), 20)
    assert 60_000 < client.pttl("cache:f(1)") <= 70_000
    assert f.ttl_left(1) == pytest.approx(20, abs=5)
    assert store.expire("f(1)", 20)
    client.pexpire("cache:f(1)", 40_000)
    assert f.ttl_left(1) is None
    assert not store.expire("f(1)", 20), "it is over, and only kept"


# -- freshness over the server's time ----------------------------------------------------------------------------------


def test_stale_early_and_kept_go_by_the_time_that_the_server_has_left(store, client):
    f = decorated(False, lambda x: x, store=store, ttl=100, stale_while_revalidate=50, stale_if_error=200)
    space = f._self_memoized.attached()
    lease = space.take("k", (), False).lease
    assert space.fill("k", lease, "v", Life(100, 20, 50, 200), ())
    for left, seen in (
        (290_000, ("v", False, False)),
        (215_000, ("v", True, False)),
        (199_000, ("v", True, True)),
        (151_000, ("v", True, True)),
        (149_000, (MISSING, False, False)),
    ):
        client.pexpire("cache:k", left)
        reading = space.look("k", ())
        assert (reading.value, reading.due, reading.late) == seen, left
        assert reading.stale == ("v" if reading.value is MISSING else MISSING)
        assert space.peek("k") == ("v" if left > 200_000 else MISSING)
        assert (store.get("k") is None) is (left < 200_000)
    assert space.take("k", (), False).lease == space.look("k", ()).lease


def test_what_never_expires_is_never_stale(store):
    f = decorated(False, lambda x: x, store=store)
    space = f._self_memoized.attached()
    assert space.fill("k", space.take("k", (), False).lease, "v", Life(100, 20, 50, 200), ())
    assert store.expire("k", None)
    assert (space.look("k", ()).value, space.look("k", ()).due) == ("v", False)
    assert store.ttl("k") == math.inf


# -- keys that are the store's own -------------------------------------------------------------------------------------

OWN = ["~fn:f", "~tag:t", "~fn:", "~tag:"]


@pytest.mark.parametrize("key", OWN)
@pytest.mark.parametrize("awaits", [False, True])
def test_keys_of_stamps_are_refused(store, client, key, awaits):
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("get", (key,)),
        ("set", (key, 1)),
        ("delete", (key,)),
        ("exists", (key,)),
        ("ttl", (key,)),
        ("expire", (key, 5)),
        ("increment", (key,)),
        ("get_many", (["a", key],)),
        ("set_many", ({"a": 1, key: 1},)),
        ("delete_many", (["a", key],)),
    ]
    for name, args in calls:
        with pytest.raises(OptionError, match=r"are the Redis store's own"):
            run(awaits, getattr(store, f"a{name}" if awaits else name), *args)
    assert client.keys("*") == []


def test_a_function_whose_key_is_such_a_one_is_called_and_stores_nothing(store, client):
    f = cache_aside(store=store, key="~fn:{x}", ttl=60)(lambda x: x)
    assert f("g") == "g"
    assert client.keys("*") == []
    assert f.stats().errors
    with pytest.raises(OptionError):
        f.set(1, "g")


def test_stamps_are_listed_and_removed_by_no_pattern(store, client):
    f = decorated(False, lambda x: x, store=store, tags=("t",))
    f(1)
    assert store.keys("*") == ["f(1)"]
    assert store.delete_pattern("*") == 1
    assert sorted(client.keys("*")) == [b"cache:~fn:f", b"cache:~tag:t"]


def test_a_value_that_looks_like_an_entry_is_refused(redis_server):
    class Raw:
        def dumps(self, value):
            return value

        def loads(self, data):
            return data

    store = RedisStore(redis_server.url, serializer=Raw(), timeout=20)
    with pytest.raises(StoreError, match="begins as an entry of a decorated function does"):
        store.set("k", b"#memo1 x")
    store.close()


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_a_functions_number_is_added_to_and_stays_the_functions(store, client):
    f = decorated(False, lambda x: 5, store=store, tags=("t",))
    f(1)
    before = client.get("cache:f(1)")
    assert store.increment("f(1)", 2) == 7
    assert f(1) == f.peek(1) == store.get("f(1)") == 7
    assert f.stats().loads == 1
    assert client.get("cache:f(1)")[7:19] != before[7:19], "no load that began before fills it"
    assert 50 < store.ttl("f(1)") <= 60
    store.invalidate_tags("t")
    assert f.peek(1) is MISSING


def test_adding_keeps_the_time_that_is_left(store, client):
    store.set("n", 1, None)
    assert store.increment("n") == 2
    assert client.pttl("cache:n") == -1
    store.set("n", 1, 50)
    assert store.increment("n") == 2
    assert 40_000 < client.pttl("cache:n") <= 50_000
    assert store.increment("new") == 1
    assert 50_000 < client.pttl("cache:new") <= 60_000


def test_what_is_about_to_end_does_not_live_for_ever():
    """0 milliseconds that are left are not the 0 that means no end."""
    steps = ours.increment("k", 1, lambda data: 1, lambda total: b"2")
    steps.send(None)
    (command,) = steps.send([b"1", 0])
    assert command[-1] == 1


def test_adding_begins_anew_if_somebody_was_faster():
    steps = ours.increment("k", 1, int, lambda total: b"%d" % total)
    steps.send(None)
    (command,) = steps.send([None, -2])
    assert command == ("SET", b"cache:k", b"1", "NX", "PX", 60_000)
    assert [name for name, *_ in steps.send([None])] == ["GET", "PTTL"]
    (command,) = steps.send([b"7", 5_000])
    assert command == protocol.FILL(b"cache:k", protocol.foreign(b"7"), b"8", 5_000)
    assert [name for name, *_ in steps.send([0])] == ["GET", "PTTL"]
    (command,) = steps.send([b"8", 5_000])
    with pytest.raises(StopIteration) as stop:
        steps.send([1])
    assert stop.value.value == 9


def test_a_time_that_the_server_does_not_tell_is_no_time():
    entry = protocol.header(b"A" * 12, protocol.digest(b"cache:k"), b"s", None, b'["f"]') + b"1"
    assert answered(ours.left("k"), [entry, 5], [b"s", NO]) is None
    assert answered(ours.left("k"), [entry, 5], [b"s", 5_000]) == 5


# -- entries of many tags ----------------------------------------------------------------------------------------------

MANY = {
    "short": ("t",),
    "names": tuple(f"tag-{number}-{'x' * 60}" for number in range(30)),  # cut in the names
    "stamps": tuple(f"t{number}" for number in range(200)),  # cut before them
}
"""Tags; all but the first make a header that is longer than the beginning of an entry that is read."""


def tagged(awaits, store):
    """A function for each of these, by its name."""
    return {
        each: decorated(awaits, lambda x: [x], store=store, namespace=each, key="{x}", tags=tags)
        for each, tags in MANY.items()
    }


@pytest.mark.parametrize("awaits", [False, True])
def test_entries_of_many_tags_are_as_all_others(store, client, awaits):
    def ask(name, *args):
        return run(awaits, getattr(store, f"a{name}" if awaits else name), *args)

    functions = tagged(awaits, store)
    all_of_them = [f"{each}:1" for each in MANY]
    store.set("plain", "x" * 2000)

    def fill():
        for f in functions.values():
            assert run(awaits, f, 1) == [1]

    fill()
    assert sorted(ask("keys")) == ["names:1", "plain", "short:1", "stamps:1"]
    for name, f in functions.items():
        key = f"{name}:1"
        header, _, _ = client.get(f"cache:{key}").partition(b"\n")
        assert len(header) > 1023 or name == "short"
        assert ask("exists", key)
        assert 50 < ask("ttl", key) <= 60
        assert ask("get", key) == run(awaits, f.peek, 1) == [1]
        assert ask("expire", key, 30)
        assert 20 < run(awaits, f.ttl_left, 1) <= 30
        assert run(awaits, f, 1) == [1]
        assert f.stats().loads == 1
    assert [ask("delete", each) for each in (*all_of_them, "plain")] == [True] * 4
    assert [ask("delete", each) for each in (*all_of_them, "plain")] == [False] * 4
    fill()
    assert ask("delete_many", [*all_of_them, "none"]) == 3
    fill()
    assert [run(awaits, f.invalidate, 1) for f in functions.values()] == [True] * 3
    fill()
    assert ask("delete_pattern", "s*") == 2
    assert ask("keys") == ["names:1"]
    fill()
    ask("clear")
    assert client.keys("*") == []


@pytest.mark.parametrize("tag", [-1, 0, 15])
def test_any_of_many_tags_that_is_invalidated_takes_its_entries(store, tag):
    for name, f in tagged(False, store).items():
        if name != "short":
            f(1)
            store.invalidate_tags(MANY[name][tag])
            assert not store.exists(f"{name}:1")
            assert store.ttl(f"{name}:1") is None
            assert not store.expire(f"{name}:1", 5)
            assert store.keys() == []
            assert f.peek(1) is MISSING


def test_only_of_entries_of_many_tags_all_is_read(store, trips, client):
    functions = tagged(False, store)
    functions["names"](1)
    functions["short"](1)
    store.set("plain", "x" * 2000)
    client.set("cache:another's", client.get("cache:names:1"))
    client.set("cache:damaged", b"#memo1" + b"x" * 2000)
    trips.taken()
    assert sorted(store.keys()) == ["names:1", "plain", "short:1"]
    scan, beginnings, whole, stamps = trips.taken()
    assert scan == ["SCAN"]
    assert beginnings == ["GETRANGE"] * 5
    assert whole == ["GET"]
    assert len(stamps) == (1 + 30) + 1 + (1 + 1) + 1  # and a time for each
    assert store.delete_many(["another's", "damaged"]) == 0


def test_what_became_of_an_entry_between_its_beginning_and_all_of_it():
    names = protocol.names("f", MANY["names"])
    entry = protocol.header(b"A" * 12, protocol.digest(b"cache:k"), b"s", None, names) + b"1"
    beginning = entry[:1024]
    assert answered(ours.there([b"cache:k"]), [beginning], [None]) == [False]
    assert answered(ours.there([b"cache:k"]), [beginning], [b"plain"]) == [True]
    assert answered(ours.there([b"cache:k"]), [beginning], [Refusal("WRONGTYPE")]) == [False]
    with pytest.raises(Refusal, match="NOPERM"):
        answered(ours.there([b"cache:k"]), [beginning], [Refusal("NOPERM")])


# -- what is told of failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("awaits", [False, True])
def test_a_server_that_refuses_is_told_where_it_matters(store, client, awaits):
    client.config_set("maxmemory", 1)
    try:
        run(awaits, store.aset if awaits else store.set, "k", 1)
        assert run(awaits, store.aget if awaits else store.get, "k", "none") == "none"
        with pytest.raises(StoreError, match=r"the Redis server refuses \(OOM\)"):
            run(awaits, store.aincrement if awaits else store.increment, "k")
        assert run(awaits, store.adelete if awaits else store.delete, "k") is False
        f = decorated(awaits, lambda x: x, store=store)
        assert run(awaits, f, 1) == 1
        with pytest.raises(StoreError):
            run(awaits, f.set, 5, 1)
        run(awaits, f.invalidate, 1)
        run(awaits, f.invalidate_all)
    finally:
        client.config_set("maxmemory", 0)
    assert store.stats().errors == {"set": 1}
    assert run(awaits, f, 1) == run(awaits, f, 1) == 1
    assert f.stats().hits == 1


@pytest.mark.parametrize("awaits", [False, True])
def test_reads_of_a_server_that_is_gone_are_misses(closed_port, awaits):
    store = RedisStore(f"redis://127.0.0.1:{closed_port}/0")
    assert run(awaits, store.aget_many if awaits else store.get_many, ["a", "b"]) == {}
    assert run(awaits, store.akeys if awaits else store.keys) == []
    run(awaits, store.aset_many if awaits else store.set_many, {"a": 1})
    stats = run(awaits, store.astats if awaits else store.stats)
    assert (stats.misses, stats.size) == (2, 0)
    assert stats.errors == {"get_many": 1, "keys": 1, "set_many": 1, "stats": 1}


@pytest.mark.parametrize("bad", ["", None, b"cache:", 5])
def test_a_prefix_that_is_none_is_refused(bad):
    with pytest.raises(OptionError, match=r"^prefix="):
        RedisStore(prefix=bad)


def test_nothing_asked_of_many_is_no_round_trip(store, trips):
    assert store.get_many([]) == asyncio.run(store.aget_many([])) == {}
    store.set_many({})
    asyncio.run(store.aset_many({}))
    assert store.delete_many([]) == asyncio.run(store.adelete_many([])) == 0
    store.invalidate_tags()
    asyncio.run(store.ainvalidate_tags())
    assert trips.taken() == []


def test_no_stamp_equals_one_that_is_missing():
    """Not even in an entry that says that it has none."""
    entry = protocol.header(b"A" * 12, protocol.digest(b"cache:k"), b"", None, b'["f"]') + b"1"
    assert answered(look(None), [entry, None]).standing is None
    assert answered(look(None), [entry, b""]) == (entry, len(entry) - 1), "it is for want of the stamp"


def test_a_space_whose_function_is_gone_is_not_used_again(store):
    f = decorated(False, lambda x: x, store=store)
    space, counters = f._self_memoized.attached(), f._self_memoized.counters
    assert space.join(counters.hits, counters.misses) is True
    del f
    gc.collect()
    store.stats()  # which notices it
    assert space.join(counters.hits, counters.misses) is False
