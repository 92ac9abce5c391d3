"""One load per key, no stale fill and no lease left behind, whenever the answers of a server reach those who asked.

The lookup and the steps of a space are the real ones; the server is a stand-in that does what its few commands and
scripts say, so that tens of thousands of schedules can be tried. A question goes out, the server answers it, the answer
arrives: between any two of these others may come, of the same process or another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from memo import aside
from memo.aside import Call, Fill, Pause, Plan, Read, Release, Take, Wait
from memo.flight import Failure, Flight, Outcome
from memo.policy import Policy
from memo.stats import Counter, FunctionCounters
from memo.stores.redis import protocol
from memo.stores.redis.leases import RedisLease
from memo.stores.redis.space import RedisSpace
from memo.stores.redis.steps import StoreSteps
from schedules import schedules

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"

Turns = Iterator[Callable[[], bool] | None]
KEY, TAGS = "k", ("t",)


class Raised(Exception):
    pass


class Server:
    """What a Redis server does with the commands of a lookup, a fill, a release and an invalidation."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    def call(self, commands: list[Any]) -> list[Any]:
        return [getattr(self, command[0].lower())(*command[1:]) for command in commands]

    def head(self, key: bytes) -> bytes:
        return self.data.get(key, b"")[:19]

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def set(self, key: bytes, value: bytes, nx: str, *_: Any) -> bytes | None:
        assert nx == "NX"
        if key in self.data:
            return None
        self.put(key, value)
        return b"OK"

    def put(self, key: bytes, value: bytes) -> None:
        self.data[key] = value

    def unlink(self, key: bytes) -> int:
        return int(self.data.pop(key, None) is not None)

    def evalsha(self, digest: str, _: int, key: bytes, *args: Any) -> Any:
        if digest == protocol.EXTEND.digest:
            return 1
        if digest == protocol.RENEW.digest:
            mine, _, kind = args
            found = self.data.get(key, b"")
            value = found[:7] in (b"#memo1 ", b"#memo1+")
            self.put(key, b"#memo1" + kind.encode() + mine + found[19:] if value else protocol.placeholder(mine))
            return mine
        if self.head(key)[7:] != args[0]:
            return 0
        if digest == protocol.FILL.digest:
            self.put(key, args[1])
        elif digest == protocol.CLAIM.digest:
            found = self.data[key]
            self.put(key, b"#memo1+" + args[1] + found[19:] if args[3] else protocol.placeholder(args[1]))
        else:
            assert digest == protocol.RELEASE.digest
            if args[1] or self.head(key)[6:7] == b"-":
                self.unlink(key)
            elif self.head(key)[6:7] == b"+":
                self.put(key, b"#memo1 " + self.data[key][7:])
        return 1


CODEC = SimpleNamespace(loads=lambda data, key: int(data), dumps=lambda value, key: b"%d" % value)


class Process:
    """One process: its flights, and what it knows of leases."""

    def __init__(self, fleet: bool) -> None:
        self.steps = StoreSteps("p:", 60)
        store: Any = SimpleNamespace(_steps=self.steps, _sets=Counter(), _strange=pytest.fail, default_ttl=60)
        self.space = RedisSpace(store, SimpleNamespace(label="f", fleet=fleet), CODEC)  # type: ignore[arg-type]
        policy = Policy(60, False, None, "f")
        self.plan = Plan("f", lambda x: None, policy, FunctionCounters("f"), True, None, fleet)


class World:
    """A source whose value is its version, a server, two processes, and callers that are half-way."""

    def __init__(self, fleet: bool, start: str, outcomes: str) -> None:
        self.server = Server()
        self.processes = [Process(fleet) for _ in range(2)]
        self.fleet = fleet
        self.full, self.stamps = b"p:k", [b"p:~fn:f", b"p:~tag:t"]
        self.version = self.floor = 0
        self.outcomes = iter(outcomes)  # of the loads in their order: "+" is filled, "-" raises
        self.refreshes = self.may_leave_a_lease = False
        self.loading: dict[Flight, tuple[Process, RedisLease]] = {}
        if start != "nothing":
            for stamp in self.stamps:
                self.server.data[stamp] = protocol.new_id()
        if start == "dead":
            named = protocol.names("f", TAGS)
            stamps = b",".join([protocol.new_id()] * 2)
            self.server.data[self.full] = (
                protocol.header(protocol.new_id(), protocol.digest(self.full), stamps, None, named) + b"0"
            )

    def standing(self) -> int | None:
        """The value that a caller would be served now."""
        entry = protocol.parse(self.server.data.get(self.full, b""))
        stamps = b",".join(self.server.data.get(each, b"?") for each in self.stamps)
        return int(entry.payload) if isinstance(entry, protocol.Entry) and entry.stamps == stamps else None

    def valid(self, lease: Any) -> bool:
        """Whether a load with that lease can still fill the key with what is served."""
        stamps = b",".join(self.server.data.get(each, b"?") for each in self.stamps)
        return lease is not None and self.server.head(self.full)[7:] == lease.id and lease.stamps == stamps

    def turns(self, steps: Any) -> Any:
        replies: Any = None
        while True:
            try:
                commands = steps.send(replies)
            except StopIteration as stop:
                return stop.value
            yield None
            replies = self.server.call(commands)
            yield None

    def caller(self, number: int = 0, kind: str = "lookup") -> Turns:
        at, floor = self.processes[number], self.floor
        flight = Flight(at.space, KEY, (), {}, TAGS, None)
        steps = aside.refresh(at.plan, flight) if kind == "refresh" else aside.lookup(at.plan, flight, None, True)
        answer: Any = None
        self.refreshes |= kind == "refresh"
        while True:
            try:
                command = steps.send(answer)
            except StopIteration as stop:
                outcome = stop.value
                break
            if type(command) is Wait:
                awaited = command.flight
                yield lambda awaited=awaited: awaited.outcome is not None
                answer = awaited.outcome
            elif type(command) is Pause:
                head = self.server.head(self.full)
                if head[6:7] in (b"-", b"+"):
                    yield lambda head=head: self.server.head(self.full) != head
                answer = None
            elif type(command) is Call:
                answer = yield from self.load(at, flight)
            else:
                answer = yield from self.turns(self.asked(at, command))
        flight.settle(outcome)
        if outcome.error is None:
            assert outcome.value >= floor, f"{kind} was given {outcome.value}, older than {floor}"

    def load(self, at: Process, flight: Flight) -> Any:
        for process, lease in self.loading.values():
            if (process is at or self.fleet) and not self.refreshes:  # a refresh joins nobody
                assert not self.valid(lease) or not self.valid(flight.lease), "two loads at a time"
        self.loading[flight] = (at, flight.lease)
        version, fills = self.version, next(self.outcomes, "+") == "+"
        yield None
        del self.loading[flight]
        return Outcome(version) if fills else Failure.of(Raised())

    @staticmethod
    def asked(at: Process, command: Any) -> Any:
        if type(command) is Read:
            return at.space._look(KEY, TAGS, command.leads)
        if type(command) is Take:
            return at.space._take(KEY, TAGS, command.renew)
        if type(command) is Fill:
            return at.space._fill(KEY, command.lease, command.value, command.ttl, TAGS)
        assert type(command) is Release
        return at.steps.release(KEY, command.lease, command.remove)

    def writer(self, how: str) -> Turns:
        self.version += 1
        version = self.version
        yield None
        # 1. A takes a lease, and hears of it late   2. the stamp beside it goes   3. B loads with both, and raises
        # 4. A loads with what B had, and raises. Neither knows the lease as its own, and nobody waits for it.
        self.may_leave_a_lease = how != "key" and not self.fleet
        self.server.unlink({"key": self.full, "function": self.stamps[0], "tag": self.stamps[1]}[how])
        self.floor = version

    def check(self) -> None:
        stored = self.standing()
        assert stored is None or stored >= self.floor, f"{stored} is stored, older than {self.floor}"
        for process in self.processes:
            assert process.space.flights == {}
        if not self.may_leave_a_lease:
            assert self.server.head(self.full)[6:7] not in (b"-", b"+"), "nobody loads, and a lease stands there"


def explore(who: tuple[Any, ...], how: str, preemptions: int, fleet: bool, start: str, outcomes: str) -> int:
    """Check every schedule's end; return how many there were."""
    worlds: list[World] = []
    count = 0

    def actors() -> list[Any]:
        world = World(fleet, start, outcomes)
        worlds[:] = [world]
        made = [world.caller(0, "refresh") if each == "refresh" else world.caller(each) for each in who]
        return [*made, world.writer(how)] if how else made

    for _ in schedules(actors, preemptions):
        worlds[0].check()
        count += 1
    return count


# Each caller as the number of its process; and how often one is preempted.
CALLERS: dict[str, tuple[tuple[Any, ...], int]] = {
    "two in a process": ((0, 0), 2),
    "two processes": ((0, 1), 2),
    "three in a process": ((0, 0, 0), 1),
    "three in two processes": ((0, 0, 1), 1),
    "a refresh": (("refresh", 0), 2),
}


@pytest.mark.parametrize("who", CALLERS)
@pytest.mark.parametrize("how", ["", "key", "tag"])
@pytest.mark.parametrize("fleet", [False, True], ids=["process", "fleet"])
@pytest.mark.parametrize(("start", "outcomes"), [("stamps", ""), ("stamps", "-"), ("nothing", "--"), ("dead", "-")])
def test_whenever_an_answer_arrives_a_key_is_loaded_once_and_nothing_stale_is_left(who, how, fleet, start, outcomes):
    callers, preemptions = CALLERS[who]
    assert explore(callers, how, preemptions + NIGHTLY, fleet, start, outcomes) > 10


@pytest.mark.parametrize("outcomes", ["", "-"])
@pytest.mark.parametrize(("who", "how"), [((0, 0), "tag"), ((0, 0, 0), "key")])
def test_who_hears_late_of_its_lease_joins_who_has_another_one_by_then(who, how, outcomes):
    """1. A takes lease 1, its answer is slow   2. B loads with it, and is gone   3. the key is invalidated   4. C takes
    lease 2 and loads   5. A is answered: what is void is its own lease. Or, where only a stamp goes, B has looked anew.
    """
    assert explore(who, how, 5 - len(who), False, "stamps", outcomes) > 100
