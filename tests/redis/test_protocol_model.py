"""No stale read, no second load, no wait for ever: every interleaving of the Redis protocol, searched exhaustively.

`protocol.py` is the specification and the model. A search goes through every state that its actors can come to, within
small bounds: one key, one tag, two or three callers, a writer, and mishaps that happen once or twice. It fails at the
first state in which a promise is broken:

- stale read: a caller that began after an invalidation had returned is given something older; stale entry: it would be
- late fill: a load stores its result though its lease was taken away; goes back: in the place of a newer one
- two loads at a time: in one process, or in a fleet; neither doomed, and neither had waited as long as it may
- stuck: some actor can never end by itself; orphan: a placeholder stays, and all who took one are alive and done
- cannot be invalidated: an invalidation fails because the server has no memory

So that the model cannot become empty without notice, each search must come to a number of states, all of them together
must try every transition there is, and each defect in a table must be found.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from siblings import module

if TYPE_CHECKING:
    from .protocol import Broken, Placeholder, Protocol, Stored, Value, World
else:
    _module = module("redis/protocol.py")
    Broken, Placeholder, Protocol = _module.Broken, _module.Placeholder, _module.Protocol
    Value, World = _module.Value, _module.World

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"


def sorted_callers(world: World) -> World:
    """The same world with callers of a kind, each in a process of its own, in an order that forgets who is who."""
    callers = world.callers
    order = sorted(
        range(len(callers)),
        key=lambda at: (
            callers[at].at, callers[at].floor, callers[at].version, callers[at].asked, callers[at].taken,
            callers[at].void, callers[at].doomed,
        ),
    )  # fmt: skip
    flights = tuple(None if world.flights[at] is None else number for number, at in enumerate(order))
    return world._replace(callers=tuple(callers[at] for at in order), flights=flights)


def canonical(world: World) -> World:
    """The same world with its ids renumbered in the order in which they are met."""
    names: dict[int, int] = {}

    def name(number: int | None) -> int | None:
        return None if number is None else names.setdefault(number, len(names))

    def stored(what: Stored) -> Stored:
        if type(what) is Placeholder:
            return Placeholder(name(what.id), what.owned)  # type: ignore[arg-type]
        if type(what) is Value:
            return what._replace(id=name(what.id), stamps=(name(what.stamps[0]), name(what.stamps[1])))
        return what

    key = stored(world.key)
    stamps = (name(world.stamps[0]), name(world.stamps[1]))
    callers = []
    for caller in world.callers:
        if caller.at not in ("idle", "wait", "done"):
            caller = caller._replace(
                head=stored(caller.head),
                stamps=(name(caller.stamps[0]), name(caller.stamps[1])),
                lease=name(caller.lease),
            )
        callers.append(caller)
    writer = world.writer
    if writer.stamps != (None, None):
        writer = writer._replace(stamps=(name(writer.stamps[0]), name(writer.stamps[1])))
    before = world.before
    if before is not None:
        before = (stored(before[0]), (name(before[1][0]), name(before[1][1])), before[2])
    return World(
        len(names), world.source, world.floor, key, stamps, world.full, world.left, world.flights, tuple(callers),
        writer, before,
    )  # fmt: skip


class Found(NamedTuple):
    """What a search has come to."""

    broken: str  # "" if every promise holds
    trace: tuple[str, ...]
    states: int
    met: Counter[str]  # how often each transition was tried


def search(protocol: Protocol, most: int = 5_000_000) -> Found:
    """Go through every state that can be reached, the nearest first; stop at the first promise that does not hold."""
    worlds: list[World] = []
    origin: list[tuple[int, str]] = []
    number: dict[World, int] = {}
    back: list[list[int]] = []  # from where the actors alone, or a dead owner's placeholder's end, lead here
    met: Counter[str] = Counter()
    # A trace of a defect is easier to read if everyone keeps its number.
    alike = not protocol.defect and len(set(protocol.kinds)) == 1 and not any(protocol.peers)

    def trace(at: int) -> tuple[str, ...]:
        steps = []
        while at >= 0:
            at, label = origin[at]
            steps.append(label)
        return tuple(reversed(steps))

    def add(world: World, parent: int, label: str) -> int:
        world = canonical(sorted_callers(world) if alike else world)
        known = number.setdefault(world, len(worlds))
        if known == len(worlds):
            worlds.append(world)
            origin.append((parent, label))
            back.append([])
        return known

    for name, world in protocol.starts():
        add(world, -1, f"start: {name}")
    at = 0
    while at < len(worlds):
        assert at < most
        for who, label, after in protocol.moves(worlds[at]):
            step = f"{who}: {label}"
            if isinstance(after, Broken):
                return Found(str(after.args[0]), (*trace(at), f"{who}: {after.args[1]}"), len(worlds), met)
            met[label if who in ("server", "writer") else f"caller {label}"] += 1
            there = add(after, at, step)
            if who != "server" or "dead owner" in label:
                back[there].append(at)
            if there == len(worlds) - 1 and (wrong := protocol.broken(worlds[there])):
                return Found(wrong, trace(there), len(worlds), met)
        at += 1
    # Whatever has happened, the actors can all come to their end by themselves.
    good = [all(caller.at == "done" for caller in world.callers) for world in worlds]
    todo = deque(at for at, done in enumerate(good) if done)
    while todo:
        for before in back[todo.popleft()]:
            if not good[before]:
                good[before] = True
                todo.append(before)
    for at, fine in enumerate(good):
        if not fine:
            return Found("stuck", trace(at), len(worlds), met)
    return Found("", (), len(worlds), met)


# -- what is searched --------------------------------------------------------------------------------------------------

TWO = ("lookup@0", "lookup@1")
SAME = ("lookup@0", "lookup@0")
THREE = ("lookup@0", "lookup@1", "lookup@2")
MIXED = ("lookup@0", "lookup@0", "lookup@1")
WAYS = ("key", "tag", "function", "pattern", "clear", "put", "set")
STARTS = ("empty", "warm", "dead", "plain")
LATE = ("warm", "due", "kept")


def options(*callers: str, **others: Any) -> dict[str, Any]:
    return {"callers": callers, "starts": STARTS, **others}


# By name; with each the least number of states.
SEARCHES: dict[str, tuple[int, dict[str, Any]]] = {
    **{
        f"two processes, {way}": (least, options(*TWO, rounds=(way,), evict=int(way != "clear")))
        for way, least in zip(WAYS, (2100, 2500, 2500, 2700, 2600, 2900, 2500), strict=True)
    },
    **{
        f"one process, {way}": (least, options(*SAME, rounds=(way,)))
        for way, least in zip(WAYS, (1000, 1300, 1300, 1300, 10000, 950, 1100), strict=True)
    },
    "one process, evictions, key": (5200, options(*SAME, rounds=("key",), evict=1, starts=("empty", "warm"))),
    "one process, evictions, tag": (6900, options(*SAME, rounds=("tag",), evict=1, starts=("empty", "warm"))),
    "one process, command by command": (
        4700,
        options(*SAME, rounds=("tag",), trip="pipeline", evict=1, starts=("warm",)),
    ),
    "two rounds": (1400, options(*TWO, rounds=("tag", "key"))),
    "three processes": (5100, options(*THREE, rounds=("tag",), evict=1, starts=("warm", "dead"))),
    "expiry, flush, restart": (7100, options(*TWO, rounds=("key",), expire=1, flush=1)),
    "command by command, key": (
        5600,
        options(*TWO, rounds=("key",), trip="pipeline", evict=1, starts=("empty", "dead")),
    ),
    "command by command, put": (850, options(*TWO, rounds=("put",), trip="pipeline")),
    "stamps apart, key": (4400, options(*TWO, rounds=("key",), trip="apart", starts=("empty", "dead"))),
    "stamps apart, tag": (4000, options(*TWO, rounds=("tag",), trip="apart", starts=("empty", "warm"))),
    "refresh": (3200, options("refresh@0", "lookup@1", rounds=("key",), evict=1)),
    "refresh, one process": (1500, options("refresh@0", "lookup@0", rounds=("tag",))),
    "refresh, command by command": (1900, options("refresh@0", "lookup@1", rounds=("tag",), trip="pipeline")),
    "refresh, fleet": (3500, options("refresh@0", "lookup@1", rounds=("tag",), evict=1, fleet=True)),
    "two refreshes": (260, options("refresh@0", "refresh@1", rounds=("put",))),
    "windows": (6000, options(*TWO, rounds=("tag",), age=2, expire=1, starts=LATE)),
    "windows, one process": (910, options(*SAME, rounds=("key",), age=1, starts=LATE)),
    "windows, fleet": (
        12000,
        options(*TWO, rounds=("tag",), age=2, fleet=True, outcomes="fill raise", expire=1, starts=LATE),
    ),
    "fleet": (3200, options(*TWO, rounds=("key",), fleet=True, outcomes="fill nothing raise", expire=1, kill=1)),
    "fleet, tag": (2400, options(*TWO, rounds=("tag",), fleet=True, outcomes="fill nothing raise", evict=1)),
    "fleet of three": (1100, options(*THREE, rounds=("key",), fleet=True, outcomes="fill raise")),
    "fleet, one process": (2400, options(*SAME, rounds=("key",), fleet=True, outcomes="fill raise")),
    "fleet, two in one of two processes": (11000, options(*MIXED, rounds=("tag",), fleet=True)),
    "fleet, command by command": (5900, options(*TWO, rounds=("key",), fleet=True, trip="pipeline", expire=1)),
    "fleet, waits that end": (690, options(*TWO, rounds=("key",), fleet=True, outcomes="fill raise", give_up=1)),
    "fleet, one process, waits that end": (
        6_800,
        options(*SAME, rounds=("key",), fleet=True, outcomes="fill raise", give_up=1),
    ),
    "one process, waits that end": (8400, options(*SAME, rounds=("tag",), give_up=1, outcomes="fill raise")),
    "fleet, answers lost, memory full": (7200, options(*TWO, rounds=("put",), fleet=True, lost=1, full=2)),
    "answers lost, memory full": (
        550,
        options(*TWO, rounds=("set",), outcomes="fill raise", lost=1, full=2, starts=("warm",)),
    ),
    "killed, fleet of windows": (110, options(*TWO, fleet=True, kill=1, age=1, starts=("due", "kept"))),
    "failover, key": (5600, options(*TWO, rounds=("key", "key"), failover=1)),
    "failover, tag": (1700, options(*TWO, rounds=("tag",), failover=1)),
    "failover, put": (1500, options(*TWO, rounds=("put",), failover=1)),
}

if NIGHTLY:
    for way in ("key", "tag", "pattern", "put", "set"):  # a function is as a tag, and clear is all of these
        SEARCHES |= {
            f"nightly: {way}, {name}": (4_000, options(**{"callers": TWO, "rounds": (way,), **bounds}))
            for name, bounds in {
                "apart": {"trip": "apart", "evict": 1},
                "called twice": {"turns": 2, "evict": 1},
                "mishaps": {"evict": 2, "expire": 1, "flush": 1},
                "one process": {"callers": SAME, "evict": 1, "expire": 1, "outcomes": "fill nothing raise"},
                "three in two processes": {"callers": MIXED, "evict": 1},
                "windows": {"age": 2, "evict": 1, "trip": "pipeline", "starts": LATE},
                "windows, one process": {"callers": SAME, "age": 2, "evict": 1, "starts": LATE},
                "fleet": {"fleet": True, "turns": 2, "evict": 1, "kill": 1, "outcomes": "fill nothing raise"},
                "fleet, apart": {"fleet": True, "trip": "apart", "expire": 1},
                "fleet, three in two processes": {
                    "callers": MIXED, "fleet": True, "give_up": 1, "outcomes": "fill raise",
                },
                "refresh, one process": {"callers": ("refresh@0", "lookup@0", "lookup@1"), "evict": 1},
                "failover": {"rounds": (way, "key"), "failover": 1, "evict": 1},
            }.items()
        }  # fmt: skip


TRANSITIONS = {
    "FLUSHALL, or a restart",
    "SCAN gives nothing",
    "SCAN gives the key",
    "SET a plain value",
    "UNLINK the function's stamp",
    "UNLINK the key",
    "UNLINK the key that SCAN gave",
    "UNLINK the tag's stamp",
    "a failover loses the last write",
    "a process is killed",
    "a wait is over",
    "caller cannot create a stamp",
    "caller cannot fill",
    "caller claims",
    "caller claims in vain",
    "caller creates stamps",
    "caller creates the function's stamp",
    "caller creates the tag's stamp",
    "caller drops",
    "caller fills",
    "caller fills, and the command is lost",
    "caller is refused",
    "caller joins or leads",
    "caller loads",
    "caller loads what is not kept",
    "caller loads, which raises",
    "caller loads, with no lease",
    "caller looks up",
    "caller looks up, and the answer is lost",
    "caller reads F",
    "caller reads K",
    "caller reads KFT",
    "caller reads N",
    "caller reads T",
    "caller reads the function's stamp",
    "caller reads the stamps",
    "caller reads the tag's stamp",
    "caller releases",
    "caller renews",
    "caller settles",
    "caller supersedes",
    "cannot put",
    "cannot set",
    "clear: UNLINK F",
    "clear: UNLINK K",
    "clear: UNLINK T",
    "evict the function's stamp",
    "evict the key",
    "evict the tag's stamp",
    "expire a dead owner's placeholder",
    "expire a placeholder",
    "expire a plain",
    "expire a value",
    "expire the function's stamp",
    "expire the tag's stamp",
    "memory is free",
    "memory is full",
    "put: SET the value",
    "put: reads the stamps",
    "the source changes",
    "time passes",
}


@cache
def searched(name: str) -> Found:
    return search(Protocol(**SEARCHES[name][1]))


@pytest.mark.parametrize("name", SEARCHES)
def test_every_promise_holds_in_every_interleaving(name, record_property):
    found = searched(name)
    record_property("states", found.states)
    print(f"{name}: {found.states} states, {sum(found.met.values())} transitions")
    assert not found.broken, "\n".join([found.broken, *found.trace])
    assert found.states >= SEARCHES[name][0]


def test_every_transition_of_the_model_is_tried(capsys):
    met: Counter[str] = Counter()
    for name in SEARCHES:
        met += searched(name).met
    with capsys.disabled():
        print(f" [{sum(searched(name).states for name in SEARCHES)} states, {sum(met.values())} transitions] ", end="")
    assert set(met) == TRANSITIONS


# -- what would be wrong -----------------------------------------------------------------------------------------------

# A defect, what comes of it, the number of steps of the shortest way to it, and where it shows.
DEFECTS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("missing stamps are equal", "stale entry", 5, options(*TWO, rounds=("tag",))),
    ("stamps are made at the fill", "stale entry", 5, options(*TWO, rounds=("tag",))),
    ("a missing stamp is valid", "stale entry", 2, options(*TWO, rounds=("tag",))),
    ("stamps are not in the header", "stale entry", 2, options(*TWO, rounds=("function",))),
    ("a fill does not compare", "late fill", 5, options(*TWO, rounds=("key",))),
    ("an invalidation leaves placeholders", "stale entry", 6, options(*TWO, rounds=("key",))),
    ("an invalidation writes a value", "cannot be invalidated", 3, options(*TWO, rounds=("key",), full=1)),
    ("an invalidation writes a value", "orphan", 4, options(*TWO, rounds=("key",), fleet=True)),
    ("ids are used again", "late fill", 6, options(*TWO, rounds=("key",))),
    ("a value keeps the id of its lease", "goes back", 7, options(*TWO, rounds=("key",))),
    ("two round trips", "two loads at a time", 8, options(*TWO, rounds=("key",), fleet=True)),
    ("the placeholder is set without NX", "two loads at a time", 14, options(*TWO, trip="pipeline", fleet=True)),
    ("a hit forgets its placeholder", "orphan", 5, options(*TWO, trip="pipeline", fleet=True, expire=1)),
    (
        "a release does not compare",
        "two loads at a time",
        10,
        options(*THREE, rounds=("key",), fleet=True, outcomes="fill raise"),
    ),
    ("a failed load leaves its placeholder", "stuck", 3, options(*TWO, fleet=True, outcomes="fill raise")),
    ("a fleet does not wait", "two loads at a time", 5, options(*TWO, fleet=True)),
    ("a fleet does not claim", "two loads at a time", 4, options(*TWO, rounds=("tag",), fleet=True)),
    ("what was found is shared", "stale read", 12, options(*MIXED, rounds=("tag",), fleet=True)),
    ("who gave up waiting is joined", "orphan", 10, options(*SAME, fleet=True, outcomes="fill raise", give_up=1)),
    ("joiners compare ids alone", "stale read", 9, options(*SAME, rounds=("tag",))),
    ("joiners take missing stamps for equal", "stale read", 9, options(*SAME, rounds=("tag",))),
    ("whoever comes joins", "stale read", 9, options(*SAME, rounds=("key",))),
    ("a taken placeholder joins", "orphan", 10, options(*SAME, rounds=("key",), fleet=True)),
    ("a refresh takes the lease that stands", "late fill", 4, options("refresh@0", "refresh@1")),
    # No defect but a limit: this is what the promise is taken back for.
    ("a failover takes no promise back", "stale entry", 3, options(*TWO, rounds=("key",), failover=1)),
]


@pytest.mark.parametrize(
    ("defect", "broken", "steps", "where"), DEFECTS, ids=[f"{row[0]}: {row[1]}" for row in DEFECTS]
)
def test_a_protocol_with_a_defect_is_found_out(defect, broken, steps, where):
    found = search(Protocol(**where, defect=defect))
    print("\n".join([f"{defect}: {found.broken}", *found.trace]))
    assert found.broken == broken
    assert len(found.trace) - 1 == steps, "a shorter way, or a longer one"
    assert search(Protocol(**where)).broken == "", "and it is the defect alone"


def test_the_table_has_every_defect_that_the_model_can_have():
    source = Path(__file__).with_name("protocol.py").read_text(encoding="utf-8")
    compared = re.findall(r"defect (?:==|!=|not in|in) (\([^)]*\)|\"[^\"]*\")", source)
    named = {name for text in compared for name in re.findall(r'"([^"]+)"', text)}
    assert named == {defect for defect, *_ in DEFECTS}
