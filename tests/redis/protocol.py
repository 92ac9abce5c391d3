"""The protocol by which decorated functions keep their results on a Redis server: its specification, and a model of it.

The model is a handful of pure functions over one immutable `World`: what the server holds, where every caller is and
what a writer does. It talks to no server and is not searched here: `test_protocol_model.py` does that.

WHAT STANDS WHERE. A function's key holds one of
  nothing;
  a placeholder, `#memo1-ID`, a lease and nothing else, which reads as absent everywhere (get, exists, ttl, keys, the
    answer of delete; increment starts anew) and lives for 600 s, in a fleet for 30
  a value, one header line and the serializer's payload after its line feed;
  something plain that `set` or another program has written: it has no header and so no id.
The header is ASCII, its fields are parted by single spaces, its first 19 bytes stand at fixed places, so that GETRANGE
0 18 is all that a script compares (the head) and SETRANGE 6 gives another kind and id without touching payload or time:
  `#memo1`      the format and its version; another version is not ours: absent, and may be overwritten
  kind          one character: a space for a value, `+` for one whose id is the lease of a fleet's one load (below:
                `r`), `-` for a placeholder
  ID            12 characters of base64url, 9 random bytes, drawn anew for every placeholder, every claim and every
                value that is stored: an id that has left the key never comes back
  key digest    12 characters of the whole key's; another one reads as absent (a crossed reply)
  stamps        12 characters each of the function's and of the tags', in order, parted by commas
  windows       `early,stale,kept` in whole milliseconds, as of `Life`, or `-`; no clock reading
  names         the function's and the tags', a JSON list, so that whoever knows only the key can find the stamps, and
                another function that renders the same key sees a miss
A stamp is a key of its own, `~fn:NAME` or `~tag:NAME` below the prefix, with 9 random bytes as text. It is made when it
is missing, never overwritten, and an invalidation of a tag or a function UNLINKs it. No command or script touches two
keys of which one is to be judged by the other, so in Cluster the entry and its stamps may be anywhere.

A VALUE IS VALID for a call if its key digest is the call's, if it names the call's own function and tags and no
others, and if each stamp that it records stands now. A missing stamp is never equal to anything, also not to a missing
one. So nothing about a stamp's age, eviction or loss can make an entry valid again.

1. LOOKUP, one round trip: [PTTL key, only where there are windows] MGET key function-stamp tag-stamps; SET key
`#memo1-<new id>` NX PX longest_load. It need not be atomic: other commands may come between any two, and in Cluster
the stamps are read apart, in any order; only the SET comes after the GET (and PTTL before it, so that no value is
judged by the time of its successor). What it means, in this order:
  the SET took place    absent, whatever was read before; the lease is that placeholder, and it is `taken`
  a valid value         PTTL > kept + early, or no end: served; down to kept - stale: served and refreshed; below that
                        absent, but served in the place of an error
  another value         dead, late or another function's: absent; its id is the lease
  a placeholder         absent; its id is the lease: in process mode the caller loads beside the other process, and the
                        first of them to fill wins. In fleet mode the caller waits: see 6
  plain                 absent; there is no id to hold, so the key is first claimed: see 5
  nothing, SET refused  something came or went in between, or is of another type: look up once more; the second time
                        claim it
  an error              the store failed: load, store nothing. If only the SET failed (no memory), what was read counts
Reads that are not going to load (peek, the look for what may be served in the place of an error, get, exists) send no
SET: a placeholder that nobody fills or releases would hold up a fleet.

2. MISSING STAMPS, one more round trip, after the lookup and before the load, never at the fill: SET stamp <new> NX PX
2 * longest_load; GET stamp, for each. What GET says is recorded. Nothing there (invalidated in between): record the
new one, which no server will ever hold, so that the entry is dead at birth. An error (no memory): give the lease back,
load, store nothing. A refresh behind callers goes on with what the lookup has read: id and stamps, and no further trip.

3. FILL, one round trip: for each stamp a script that lengthens its life, then a script that stores. The latter checks
one thing, that the head at the key is the lease, and sets header and payload with PX ttl + kept, or without an end. It
does not look at stamps: one that is gone or another leaves a dead entry, which nobody is served. The former does
nothing and answers 0 if the stamp is not the recorded one (never makes it), else lets it live for at least twice the
entry's time (PERSIST for an entry without end) and never shortens it; a 0 makes the fill's answer False as a refusal
does. If there is no memory the script UNLINKs the key where the lease stands: neither old value nor lease stays.

4. RELEASE compares the head in the same way. A result that is not kept: UNLINK, whatever the lease is, so that the
value that it would have replaced goes. A load that raised, or a fill that failed: only a placeholder or claim that this
caller has `taken` is given back (UNLINK; `r` becomes `v` again), since another process may be loading with the same id.

5. CLAIM, one round trip, where a lease of one's own is needed and something stands: if the head is still the one read
(or what stands still has none), put a placeholder with a new id there; where the value is valid and still served or
kept (a fleet's refresh), only its head is changed, to `r` and a new id, and it is served on. Not so any more: look up
again (a refresh behind callers: leave it to whoever was quicker). `take(renew=True)` is the same without the
comparison: of a value, dead or alive, the id is changed (in a fleet to `r`); in the place of anything else comes a
placeholder. All leases taken before are void, so no load that began before a refresh fills; the stamps are read in the
same round trip. Nobody joins a refresh that has superseded a flight unless its lease is the one that he reads.

6. FLEET. A load begins only with a lease that this call has itself taken or claimed; the server lets one have it at a
time. Who reads someone else's placeholder, or a valid value of kind `r` that may not be served, looks up again and
again, with pauses, until a value is there (it is his alone, like every find of a second look: `Found`), or the SET
takes place, or his wait is over: then he loads by himself, with the id that stands. A dead value is claimed by
whoever comes first, `r` or not: its owner's fill could only be dead. A valid one of kind `r` is served without a
refresh. The owner's death costs the others at most the rest of the placeholder's life or their own wait; its fill,
if it was only slow, is refused. Who never heard that its SET took place remembers the id, as a process does: whoever
reads it there first, of its callers, has `taken` it.

7. JOINING in a process. A flight carries from its registration on the lease that it is going to load with (none while
it waits for the fleet, and none that others see if it has given up: it would not release what another has taken), from
`begun` on also its final stamps. A caller compares what its own lookup read:
  the same id, not begun                           join
  the same id, begun, all stamps there and equal   join
  another id, this caller's SET, a fleet           take its place: it waits for this lease, or its own is void
  another id, not begun                            join: its load begins later than this call
  anything else                                    unsure: look up once more, and if still unsure take its place
Unsure is also whose own SET took place, but for a fleet: if its answer was slow, others may have loaded with that
lease, something may have voided it, and the flight's may be a later one. Who finds no flight there asks whether another
load of the process can have borrowed its lease (`alone`), and if so looks once more before it loads. Who has joined
with a lease of his own gives that back when the flight has landed, in case it has not filled the key.
A caller that has looked up anew (a fleet's wait, a claim in vain) and whose flight no longer stands in the table goes
through this again. That, and the place taken, are one step each under the flights' lock.

8. WRITES. `put` of a decorated function: read the stamps, make those that are missing, SET header and payload with a
new id, unconditionally. `set` and the managers: SET of the plain payload. delete, invalidate, patterns, clear: UNLINK
of whatever stands, placeholders too (SCAN first; a key that SCAN does not give was absent for a moment after the
invalidation had begun, so every lease of it was taken after the source had changed). All of them void every lease of
the key at once, since its id has gone. invalidate_tags, invalidate_all: UNLINK of the stamp; leases stand, and what
they fill is dead. None of the invalidations needs memory.

WHAT A LOAD MEETS WHEN AN INVALIDATION OVERTAKES IT
  before the lookup's SET     nothing: the load begins later
  key, before the fill        the id is gone; the fill is refused
  tag, while its stamp was missing and had not been made: nothing; made, or read: the entry is dead at birth
  any, after the fill         the value is gone, or dead
  callers that come after it  read another id or another stamp, and so do not join

WHERE THE STORE DOES LESS THAN THIS, which costs a load or a stored result and never a stale read:
  1  nothing, SET refused, for the second time: no lease, and the result is not stored
  3  the scripts that lengthen stamps' lives come behind the one that stores, and do not compare; a process sends them
     with the first fill, and again when a quarter of that life is over; a fill for which there is no memory
     leaves the older value where it is, and gives back what the caller has `taken`
  6  whoever waits without a limit of his own waits for one and the same lease for 30 seconds, then loads with it
  4  a lease that others have borrowed, beside which a stamp went meanwhile, is given back by nobody if all of them fail
  7  a flight has its lease from `begun` on; in a fleet whoever has `taken` takes the place of any flight there

AFTER A FAILOVER THAT LOSES THE LAST WRITE every invalidation since (and with) that write may not have been made, and
is only as good as the entries' ttl; the others hold, and so does everything that is invalidated afterwards. After a
restart with older data the same is true of all writes that it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

F, T = 0, 1  # the function's stamp and the tag's
STAMPS: Final = ("function", "tag")


class Placeholder(NamedTuple):
    """A lease at a key where no value is."""

    id: int
    owned: bool = True  # False: whoever took it is dead, or never heard that it had got it


class Value(NamedTuple):
    """What a fill or `put` of a decorated function has stored, and the part of its header that decides."""

    id: int
    version: int  # of the source, when it was loaded: the payload
    stamps: tuple[int | None, ...]
    age: int = 0  # FRESH, DUE or KEPT
    claimed: bool = False  # its id is the lease of a fleet's one load
    owned: bool = True  # as a placeholder's, if it is claimed


class Plain(NamedTuple):
    """What a plain `set` has stored: no header, no id."""

    id: None = None


FRESH, DUE, KEPT = 0, 1, 2  # served; served and refreshed; kept for errors only
Stored = Placeholder | Value | Plain | None


class Caller(NamedTuple):
    """One caller: where it is in the algorithm, and what it knows."""

    at: str = "idle"
    turns: int = 1  # lookups that it has left
    floor: int = 0  # nothing older may be returned to it
    asked: str = ""  # the parts of its round trip that have not reached the server
    head: Stored = None
    taken: bool = False  # the placeholder is one that this call has made, so that no one else waits for less
    refused: str = ""  # why the server made no placeholder: "stands" or "full"
    stamps: tuple[int | None, ...] = (None, None)
    lease: int | None = None
    registered: bool = False  # its flight is joined by others of its process, unless it has been replaced
    begun: bool = False
    version: int = -1
    outcome: str = ""  # what followers are told: "value", "error" or "found"
    behind: bool = False  # it has been served, and refreshes
    waits: int = -1  # the caller whose flight it has joined
    doubted: int = -1  # the caller whose flight it was unsure about
    # What nobody in the real world knows:
    void: bool = False  # something has rightly taken its lease away
    doomed: bool = False  # or a stamp that it is going to record
    alone: bool = False  # it loads without a lease or after its wait was over: not counted as the fleet's one load


class Writer(NamedTuple):
    """One who changes the source and then invalidates."""

    round: int = 0
    step: str = "change"
    stamps: tuple[int | None, ...] = (None, None)


class World(NamedTuple):
    """Everything there is."""

    ids: int  # as many have been drawn; renumbered in every state, so that equal states are one
    source: int
    floor: int  # the version of the source when the latest invalidation returned
    key: Stored
    stamps: tuple[int | None, ...]
    full: bool  # the server has no memory left for any command that may need some
    left: tuple[int, ...]  # how often each of MISHAPS may still happen
    flights: tuple[int | None, ...]  # for each process the caller whose flight is registered
    callers: tuple[Caller, ...]
    writer: Writer
    before: tuple[Stored, tuple[int | None, ...], int] | None  # the server before its last write, and the floor then


MISHAPS: Final = ("evict", "expire", "flush", "age", "full", "lost", "kill", "give up", "failover")


class Broken(Exception):
    """A promise that does not hold: its name is the first argument."""


class Protocol:
    """What may happen to a handful of actors.

    Args:
        callers: each "lookup" or "refresh", "@" and the number of its process.
        rounds: how the writer invalidates, once for each change of the source: "key", "tag", "function", "pattern",
            "clear", "put" or "set".
        trip: which commands reach the server in one step: "one" (a round trip), "pipeline" (a command), or "apart" (the
            stamps are read by commands of their own, in any order).
        fleet: as of `single_flight="fleet"`.
        outcomes: of loads: "fill", "nothing" (not kept), "raise".
        defect: what is wrong with this protocol; "": nothing.
        starts: what stands at the key in the beginning.
        turns: lookups that each caller makes.
        mishaps: how often each of MISHAPS may happen.
    """

    def __init__(
        self,
        callers: tuple[str, ...],
        rounds: tuple[str, ...] = (),
        trip: str = "one",
        fleet: bool = False,
        outcomes: str = "fill",
        defect: str = "",
        starts: tuple[str, ...] = ("empty", "warm"),
        turns: int = 1,
        **mishaps: int,
    ) -> None:
        self.kinds = [spec.partition("@")[0] for spec in callers]
        self.process = [int(spec.partition("@")[2]) for spec in callers]
        self.peers = [self.process.count(number) > 1 for number in self.process]
        self.rounds = rounds
        self.trip = trip
        self.fleet = fleet
        self.outcomes = outcomes.split()
        self.defect = defect
        self.turns = turns
        self.starting = starts
        names = {name.replace(" ", "_"): name for name in MISHAPS}
        assert mishaps.keys() <= names.keys(), mishaps
        self.allowed = tuple(mishaps.get(name, 0) for name in names)
        self.exact = not (mishaps.get("failover"))

    # -- the server ----------------------------------------------------------------------------------------------------

    def starts(self) -> Iterator[tuple[str, World]]:
        idle = tuple(Caller(turns=self.turns) for _ in self.kinds)
        nobody = (None,) * (max(self.process) + 1)
        for name in self.starting:
            key, stamps = {
                "empty": (None, (None, None)),
                "warm": (Value(0, 0, (1, 2)), (1, 2)),
                "dead": (Value(0, 0, (1, 3)), (1, 2)),
                "due": (Value(0, 0, (1, 2), DUE), (1, 2)),
                "kept": (Value(0, 0, (1, 2), KEPT), (1, 2)),
                "plain": (Plain(), (1, None)),
                "bare": (None, (1, 2)),
            }[name]
            yield name, World(4, 0, 0, key, stamps, False, self.allowed, nobody, idle, Writer(), None)

    def valid(self, stored: Stored, stamps: tuple[int | None, ...]) -> bool:
        """Whether it is a value that nothing has invalidated, as far as its stamps tell."""
        if type(stored) is not Value:
            return False
        defect = self.defect
        for recorded, now in zip(stored.stamps, stamps, strict=True):
            if recorded == now and (now is not None or defect == "missing stamps are equal"):
                continue
            if now is None and defect == "a missing stamp is valid":
                continue
            if defect == "stamps are not in the header":
                continue
            return False
        return True

    def write(self, world: World, key: Stored, stamps: tuple[int | None, ...], **others: Any) -> World:
        """The server after a write."""
        if world.left[-1] and (key, stamps) != (world.key, world.stamps):
            others["before"] = (world.key, world.stamps, world.floor)
        return world._replace(key=key, stamps=stamps, **others)

    def without_key(self, world: World) -> World:
        """Something rightly takes away what stands at the key: every lease of it is void."""
        if world.key is None:
            return world
        callers = tuple(
            caller if caller.lease is None and caller.head is None else caller._replace(void=True)
            for caller in world.callers
        )
        return self.write(world, None, world.stamps, callers=callers)

    def without_stamp(self, world: World, which: int) -> World:
        """Something rightly takes away a stamp: every load that is going to record it is doomed."""
        gone = world.stamps[which]
        if gone is None:
            return world
        callers = tuple(
            caller._replace(doomed=True) if caller.stamps[which] == gone else caller for caller in world.callers
        )
        stamps = (None, world.stamps[1]) if which == F else (world.stamps[0], None)
        return self.write(world, world.key, stamps, callers=callers)

    def create_stamp(self, world: World, which: int) -> World:
        """SET NX of a stamp."""
        if world.stamps[which] is not None:
            return world
        new = world.ids
        stamps = (new, world.stamps[1]) if which == F else (world.stamps[0], new)
        return self.write(world, world.key, stamps, ids=new + 1)

    def mishaps(self, world: World) -> Iterator[tuple[str, World]]:
        """What befalls the server and the callers' processes."""
        left = dict(zip(MISHAPS, world.left, strict=True))

        def spent(name: str) -> World:
            at = MISHAPS.index(name)
            return world._replace(left=(*world.left[:at], world.left[at] - 1, *world.left[at + 1 :]))

        key = world.key
        lock = type(key) is Placeholder or (type(key) is Value and key.claimed)
        if left["evict"]:
            if key is not None:
                yield "evict the key", self.without_key(spent("evict"))
            for which in (F, T):
                if world.stamps[which] is not None:
                    yield f"evict the {STAMPS[which]}'s stamp", self.without_stamp(spent("evict"), which)
        if lock and not key.owned:  # type: ignore[union-attr]
            # Time passes by itself: what stands for a dead owner ends.
            yield "expire a dead owner's placeholder", self.without_key(world)
        elif left["expire"]:
            if key is not None:
                yield f"expire a {type(key).__name__.lower()}", self.without_key(spent("expire"))
            for which in (F, T):
                if world.stamps[which] is not None:
                    yield f"expire the {STAMPS[which]}'s stamp", self.without_stamp(spent("expire"), which)
        if left["flush"] and (key is not None or world.stamps != (None, None)):
            yield (
                "FLUSHALL, or a restart",
                self.without_stamp(self.without_stamp(self.without_key(spent("flush")), F), T),
            )
        if left["age"] and type(key) is Value and key.age < KEPT:
            yield "time passes", spent("age")._replace(key=key._replace(age=key.age + 1))
        if left["full"]:
            yield "memory is full" if not world.full else "memory is free", spent("full")._replace(full=not world.full)
        if left["kill"]:
            for number in sorted(set(self.process)):
                mine = [at for at, process in enumerate(self.process) if process == number]
                if all(world.callers[at].at in ("idle", "done") for at in mine):
                    continue
                held = {world.callers[at].lease for at in mine if world.callers[at].taken} - {None}
                killed = spent("kill")
                if lock and key.id in held:  # type: ignore[union-attr]
                    killed = killed._replace(key=key._replace(owned=False))  # type: ignore[union-attr]
                flights = tuple(None if at == number else flight for at, flight in enumerate(world.flights))
                callers = tuple(Caller("done", 0) if at in mine else caller for at, caller in enumerate(world.callers))
                yield "a process is killed", killed._replace(flights=flights, callers=callers)
        if left["give up"]:
            for at, caller in enumerate(world.callers):
                if caller.at == "wait" or caller.at == "poll":
                    tired = Caller("look", caller.turns, caller.floor, "KFTN", alone=True, registered=caller.registered)
                    yield "a wait is over", self.with_caller(spent("give up"), at, tired)
        if left["failover"] and world.before is not None:
            old, stamps, floor = world.before
            if self.defect == "a failover takes no promise back":
                floor = world.floor
            callers = tuple(caller._replace(floor=min(caller.floor, floor)) for caller in world.callers)
            yield (
                "a failover loses the last write",
                spent("failover")._replace(key=old, stamps=stamps, floor=floor, callers=callers, before=None),
            )

    # -- a caller ------------------------------------------------------------------------------------------------------

    @staticmethod
    def with_caller(world: World, at: int, caller: Caller) -> World:
        callers = world.callers
        return world._replace(callers=(*callers[:at], caller, *callers[at + 1 :]))

    def steps(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """What a caller may do next."""
        caller = world.callers[at]
        name = caller.at
        if name == "idle":
            caller = Caller("look", caller.turns, world.floor, "KFTN")
            if self.kinds[at] == "refresh":
                flights = self.registered_flight(world, at)
                caller = caller._replace(at="renew", asked="", registered=True)
                world = world._replace(flights=flights)
                if self.peers[at]:
                    yield "supersedes", self.with_caller(world, at, caller)
                    return
                yield from self.renew(self.with_caller(world, at, caller), at)
                return
            yield from self.look(self.with_caller(world, at, caller), at)
        elif name in ("look", "poll"):
            yield from self.look(world, at)
        elif name == "join":
            yield "joins or leads", self.join(world, at)
        elif name in ("claim", "renew", "read stamps", "create", "get", "load", "fill", "release", "drop", "settle"):
            yield from getattr(self, name.replace(" ", "_"))(world, at)
        else:
            assert name in ("wait", "done"), name

    def parts(self, asked: str) -> list[str]:
        """Which parts of a lookup may reach the server next: (K)ey, (F)unction's and (T)ag's stamp, (N)X."""
        if self.trip == "one" and self.defect != "two round trips":
            return [asked]
        if self.defect == "two round trips":
            return ["N"] if "N" in asked else ["KFT"]
        if self.trip == "pipeline":
            return ["KFT"] if "K" in asked else ["N"]
        return [part for part in asked if part != "N" or "K" not in asked]

    def look(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """The lookup's round trip, or a part of it."""
        caller = world.callers[at]
        polls = caller.at == "poll"
        for parts in self.parts(caller.asked):
            after, now = world, caller
            for part in parts:
                if part == "K":
                    now = now._replace(head=after.key)
                elif part == "N":
                    after, now = self.set_nx(after, now)
                else:
                    which = "FT".index(part)
                    stamps = (after.stamps[F], now.stamps[T]) if which == F else (now.stamps[F], after.stamps[T])
                    now = now._replace(stamps=stamps)
            asked = "".join(part for part in caller.asked if part not in parts)
            now = now._replace(asked=asked, at="poll" if polls else "look")
            after = self.with_caller(after, at, now)
            label = f"reads {parts}" if self.trip != "one" else "looks up"
            if asked:
                yield label, after
                continue
            yield label, self.judge(after, at)
            if world.left[MISHAPS.index("lost")]:
                spot = MISHAPS.index("lost")
                lost = after._replace(left=(*after.left[:spot], after.left[spot] - 1, *after.left[spot + 1 :]))
                if now.taken:
                    lost = lost._replace(key=lost.key._replace(owned=False))  # type: ignore[union-attr]
                yield f"{label}, and the answer is lost", self.unleased(lost, at)

    def set_nx(self, world: World, caller: Caller) -> tuple[World, Caller]:
        if world.full:
            return world, caller._replace(refused="full")
        if world.key is not None and self.defect != "the placeholder is set without NX":
            return world, caller._replace(refused="stands")
        if world.key is not None and caller.head is not None:
            return world, caller._replace(refused="stands")
        new = world.ids
        if self.defect == "ids are used again":
            new = next((other.lease for other in world.callers if other.lease is not None), new)
        world = self.write(world, Placeholder(new), world.stamps, ids=world.ids + 1)
        return world, caller._replace(lease=new, taken=True, void=False)

    def judge(self, world: World, at: int) -> World:
        """What a lookup's answers mean."""
        caller = world.callers[at]
        head = caller.head
        if caller.taken and self.defect == "a hit forgets its placeholder" and self.valid(head, caller.stamps):
            caller = caller._replace(taken=False, lease=None)
        if caller.taken:
            return self.absent(world, at, caller)
        if self.valid(head, caller.stamps) and head.age < KEPT:  # type: ignore[union-attr]
            return self.served(world, at, caller)
        if head is None and caller.refused == "stands":
            # It came or went in between: look again.
            if self.defect == "two round trips":
                return self.absent(world, at, caller)
            return self.again(world, at, caller)
        if head is None:
            return self.unleased(world, at)
        return self.absent(world, at, caller._replace(lease=head.id))

    def again(self, world: World, at: int, caller: Caller) -> World:
        """Look up once more, knowing nothing but what it has done."""
        kept = Caller(
            "look", caller.turns, caller.floor, "KFTN", registered=caller.registered, doubted=caller.doubted,
            alone=caller.alone, behind=caller.behind,
        )  # fmt: skip
        return self.with_caller(world, at, kept)

    def served(self, world: World, at: int, caller: Caller) -> World:
        """A value is returned; if it is due, the caller goes on as its refresh."""
        head = caller.head
        assert isinstance(head, Value)
        self.returned(at, head.version, caller.floor)
        if caller.registered:
            return self.settling(world, at, caller, "found" if self.defect != "what was found is shared" else "value")
        free = world.flights[self.process[at]] is None
        if head.age == DUE and free and not (self.fleet and head.claimed):
            world = world._replace(flights=self.registered_flight(world, at))
            step = "claim" if self.fleet else "load"
            return self.with_caller(
                world, at, caller._replace(at=step, lease=head.id, registered=True, behind=True, refused="")
            )
        return self.finished(world, at)

    def returned(self, at: int, version: int, floor: int) -> None:
        if version < floor:
            raise Broken("stale read", f"caller {at} is given version {version} and was promised {floor}")

    def unleased(self, world: World, at: int) -> World:
        """The store failed: load, and store nothing."""
        caller = world.callers[at]
        caller = caller._replace(at="load", lease=None, taken=False, head=None, alone=True, refused="", asked="")
        return self.with_caller(world, at, caller)

    def absent(self, world: World, at: int, caller: Caller) -> World:
        """Nothing was there to be served."""
        caller = caller._replace(at="join", refused="")
        world = self.with_caller(world, at, caller)
        if caller.alone or world.flights[self.process[at]] == at:
            return self.lead(world, at)
        return world if self.peers[at] else self.join(world, at)

    def registered_flight(self, world: World, at: int) -> tuple[int | None, ...]:
        mine = self.process[at]
        return tuple(at if number == mine else flight for number, flight in enumerate(world.flights))

    def join(self, world: World, at: int) -> World:
        """In the process: join the flight that stands at the key, take its place, or be the first."""
        caller = world.callers[at]
        other = world.flights[self.process[at]]
        if other is None:
            return self.take_off(world, at)
        flight = world.callers[other]
        same = flight.lease is not None and flight.lease == caller.lease
        if flight.alone and self.defect != "who gave up waiting is joined":
            same = False
        stamps = flight.stamps == caller.stamps and None not in caller.stamps
        if self.defect == "joiners compare ids alone":
            stamps = True
        if self.defect == "joiners take missing stamps for equal" and (
            all(mine in (None, its) for mine, its in zip(caller.stamps, flight.stamps, strict=True))
        ):
            stamps = True
        joins = False
        if self.defect == "whoever comes joins" or (same and (not flight.begun or stamps)):
            joins = True
        elif self.fleet and caller.taken and not same and self.defect != "a taken placeholder joins":
            return self.take_off(world, at)
        elif not flight.begun:
            joins = True
        if joins:
            waits = Caller("wait", caller.turns, caller.floor, waits=other)
            return self.with_caller(world, at, waits)
        if caller.doubted == other:
            return self.take_off(world, at)
        return self.again(world, at, caller._replace(doubted=other))

    def take_off(self, world: World, at: int) -> World:
        """Register the flight of this caller, in the place of any other."""
        caller = world.callers[at]._replace(registered=True, doubted=-1)
        return self.lead(self.with_caller(world._replace(flights=self.registered_flight(world, at)), at, caller), at)

    def lead(self, world: World, at: int) -> World:
        """Go on to the load, or in a fleet wait for another process's."""
        caller = world.callers[at]
        head = caller.head
        step = ""
        if not caller.taken:
            locked = type(head) is Placeholder or (
                type(head) is Value and head.claimed and self.valid(head, caller.stamps)
            )
            if self.fleet and not caller.alone and locked:
                if self.defect == "a fleet does not wait":
                    return self.to_stamps(world, at, caller)
                return self.with_caller(
                    world,
                    at,
                    Caller("poll", caller.turns, caller.floor, "KFTN", registered=True),
                )
            if type(head) is Plain or (self.fleet and not caller.alone and type(head) is Value):
                step = "claim"
                if self.defect == "a fleet does not claim" and type(head) is Value:
                    step = ""
        if step:
            return self.with_caller(world, at, caller._replace(at=step))
        return self.to_stamps(world, at, caller)

    def to_stamps(self, world: World, at: int, caller: Caller) -> World:
        missing = None in caller.stamps and self.defect not in (
            "stamps are made at the fill",
            "missing stamps are equal",
        )
        return self.with_caller(world, at, caller._replace(at="create" if missing else "load", head=None))

    def claim(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """Put a lease of one's own in the place of what was read, if that still stands."""
        caller, key = world.callers[at], world.key
        head = caller.head
        if world.full:
            yield "claims", self.unleased(world, at)
        elif (
            head != key
            and not (type(head) is Plain and type(key) is Plain)
            and (
                type(key) is not type(head) or key.id != head.id  # type: ignore[union-attr]
            )
        ):
            if caller.behind:
                yield "claims in vain", self.settling(world, at, caller, "found")
            else:
                yield "claims in vain", self.again(world, at, caller)
        else:
            new = world.ids
            keeps = self.valid(head, caller.stamps)
            lock: Stored = key._replace(id=new, claimed=True) if keeps else Placeholder(new)  # type: ignore[union-attr]
            callers = tuple(
                other._replace(void=True) if other.lease is not None and other.lease == caller.lease else other
                for other in world.callers
            )
            world = self.write(world, lock, world.stamps, ids=new + 1, callers=callers)
            caller = caller._replace(lease=new, taken=True, void=False)
            yield "claims", self.to_stamps(world, at, caller)

    def renew(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """Take a lease whatever stands at the key, and void any other."""
        caller, key = world.callers[at], world.key
        if world.full:
            yield "renews", self.unleased(world, at)
            return
        new = world.ids
        callers = tuple(other if other.lease is None else other._replace(void=True) for other in world.callers)
        if type(key) is Value:
            if self.defect == "a refresh takes the lease that stands":
                new = key.id
            lock: Stored = key._replace(id=new, claimed=self.fleet)
        else:
            lock = Placeholder(new)
        world = self.write(world, lock, world.stamps, ids=world.ids + 1, callers=callers)
        caller = caller._replace(at="read stamps", lease=new, taken=True)
        world = self.with_caller(world, at, caller)
        if self.trip == "one":
            yield "renews", next(self.read_stamps(world, at))[1]
        else:
            yield "renews", world

    def read_stamps(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        yield "reads the stamps", self.to_stamps(world, at, world.callers[at]._replace(stamps=world.stamps))

    def create(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """SET NX each stamp that is missing, then GET it."""
        caller = world.callers[at]
        if world.full:
            after = self.with_caller(world, at, caller._replace(at="release", outcome="alone"))
            yield "cannot create a stamp", after
            return
        if self.trip == "one":
            for which in (F, T):
                if caller.stamps[which] is None:
                    world = self.create_stamp(world, which)
            yield "creates stamps", self.got(world, at, F, T)
            return
        which = caller.stamps.index(None)
        yield (
            f"creates the {STAMPS[which]}'s stamp",
            self.with_caller(self.create_stamp(world, which), at, caller._replace(at="get")),
        )

    def get(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        which = world.callers[at].stamps.index(None)
        yield f"reads the {STAMPS[which]}'s stamp", self.got(world, at, which)

    def got(self, world: World, at: int, *asked: int) -> World:
        caller = world.callers[at]
        stamps = list(caller.stamps)
        ids = world.ids
        for which in asked:
            if stamps[which] is None:
                stamps[which] = world.stamps[which]
                if stamps[which] is None:  # invalidated already: record what no server will ever have
                    stamps[which] = ids
                    ids += 1
                    caller = caller._replace(doomed=True)
        return self.to_stamps(world._replace(ids=ids), at, caller._replace(stamps=tuple(stamps)))

    def load(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """Call the function: it reads the source."""
        caller = world.callers[at]
        for number, other in enumerate(world.callers):
            if (
                number == at
                or other.at not in ("fill", "drop", "release")
                or not (self.fleet or self.process[number] == self.process[at])
            ):
                continue
            if not any(one.void or one.doomed or one.alone for one in (caller, other)):
                raise Broken("two loads at a time", f"{number} and {at}")
        caller = caller._replace(begun=True, version=world.source, head=None)
        if caller.lease is None:
            caller = caller._replace(at="settle", outcome="value")
            yield "loads, with no lease", self.with_caller(world, at, caller)
            return
        for outcome in self.outcomes:
            step, told = {"fill": ("fill", "value"), "nothing": ("drop", "value"), "raise": ("release", "error")}[
                outcome
            ]
            label = {"fill": "loads", "nothing": "loads what is not kept", "raise": "loads, which raises"}[outcome]
            yield label, self.with_caller(world, at, caller._replace(at=step, outcome=told))

    def stands(self, world: World, caller: Caller) -> bool:
        return world.key is not None and world.key.id == caller.lease

    def fill(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """Store the result if the lease still stands."""
        caller = world.callers[at]
        stands = self.stands(world, caller)
        if world.left[MISHAPS.index("lost")]:
            spot = MISHAPS.index("lost")
            lost = world._replace(left=(*world.left[:spot], world.left[spot] - 1, *world.left[spot + 1 :]))
            yield "fills, and the command is lost", self.with_caller(lost, at, caller._replace(at="release"))
        if world.full:
            if stands:
                world = self.write(world, None, world.stamps)
            yield "cannot fill", self.settling(world, at, caller, "value")
            return
        if not stands and self.defect != "a fill does not compare":
            yield "is refused", self.settling(world, at, caller, "value")
            return
        if caller.void and self.exact:
            raise Broken("late fill", f"{at} fills although its lease was taken away")
        if type(world.key) is Value and world.key.version > caller.version and self.exact:
            raise Broken("goes back", f"{at} puts version {caller.version} in the place of {world.key.version}")
        stamps = caller.stamps
        if self.defect == "stamps are made at the fill":
            world = self.create_stamp(self.create_stamp(world, F), T)
            stamps = world.stamps
        new = caller.lease if self.defect == "a value keeps the id of its lease" else world.ids
        assert new is not None
        callers = tuple(
            other._replace(void=True) if number != at and other.lease == caller.lease else other
            for number, other in enumerate(world.callers)
        )
        if self.defect == "a value keeps the id of its lease":
            callers = world.callers
        world = self.write(world, Value(new, caller.version, stamps), world.stamps, ids=world.ids + 1, callers=callers)
        yield "fills", self.settling(world, at, caller, "value")

    def release(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """The load raised: give the lease back if it is one's own and still stands."""
        caller = world.callers[at]
        if caller.taken and (self.stands(world, caller) or self.defect == "a release does not compare"):
            key = world.key
            if type(key) is Value:
                key = key._replace(claimed=False)
            elif self.defect != "a failed load leaves its placeholder":
                key = None
            callers = tuple(
                other._replace(void=True) if number != at and other.lease == caller.lease else other
                for number, other in enumerate(world.callers)
            )
            world = self.write(world, key, world.stamps, callers=callers)
        if caller.outcome == "alone":
            yield "releases", self.unleased(world, at)
        else:
            yield "releases", self.settling(world, at, caller, caller.outcome)

    def drop(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """The result is not kept: neither the lease nor the value that it would have replaced stays."""
        caller = world.callers[at]
        if self.stands(world, caller) or self.defect == "a release does not compare":
            callers = tuple(
                other._replace(void=True) if number != at and other.lease == caller.lease else other
                for number, other in enumerate(world.callers)
            )
            world = self.write(world, None, world.stamps, callers=callers)
        yield "drops", self.settling(world, at, caller, "value")

    def settling(self, world: World, at: int, caller: Caller, outcome: str) -> World:
        """The server has answered; the process has not heard of it yet, if that matters to anyone."""
        version = caller.head.version if type(caller.head) is Value else caller.version
        caller = Caller(
            "settle", caller.turns, caller.floor, registered=caller.registered, begun=caller.begun, outcome=outcome,
            version=version, lease=caller.lease, stamps=caller.stamps, void=caller.void, doomed=caller.doomed,
            alone=caller.alone,
        )  # fmt: skip
        world = self.with_caller(world, at, caller)
        return world if self.peers[at] else next(self.settle(world, at))[1]

    def settle(self, world: World, at: int) -> Iterator[tuple[str, World]]:
        """Free the key in the process; those who have joined get the outcome or look again."""
        caller = world.callers[at]
        mine = self.process[at]
        if world.flights[mine] == at:
            world = world._replace(
                flights=tuple(None if number == mine else flight for number, flight in enumerate(world.flights))
            )
        for number, other in enumerate(world.callers):
            if other.doubted == at:
                world = self.with_caller(world, number, other._replace(doubted=-1))
            if other.waits != at:
                continue
            if caller.outcome == "found":
                world = self.again(world, number, other)
            else:
                if caller.outcome == "value":
                    self.returned(number, caller.version, other.floor)
                world = self.finished(world, number)
        yield "settles", self.finished(world, at)

    def finished(self, world: World, at: int) -> World:
        turns = world.callers[at].turns - 1
        return self.with_caller(world, at, Caller("idle" if turns else "done", turns))

    # -- the writer ----------------------------------------------------------------------------------------------------

    def writes(self, world: World) -> Iterator[tuple[str, World]]:
        """What the writer may do next."""
        number, step, stamps = world.writer
        if number == len(self.rounds):
            return
        how = self.rounds[number]
        over = Writer(number + 1)

        def done(after: World) -> World:
            return after._replace(writer=over, floor=world.source)

        def unlink_key() -> World:
            if self.defect == "an invalidation leaves placeholders" and type(world.key) is Placeholder:
                return world
            if self.defect == "an invalidation writes a value":
                if world.full:
                    raise Broken("cannot be invalidated", "the server has no memory for it")
                after = self.without_key(world)
                return self.write(after, Placeholder(world.ids), after.stamps, ids=world.ids + 1)
            return self.without_key(world)

        if step == "change":
            first = {"pattern": "scan", "clear": "KFT", "put": "stamps"}.get(how, "invalidate")
            yield "the source changes", world._replace(source=world.source + 1, writer=Writer(number, first))
        elif how == "key":
            yield "UNLINK the key", done(unlink_key())
        elif how in STAMPS:
            yield f"UNLINK the {how}'s stamp", done(self.without_stamp(world, STAMPS.index(how)))
        elif how == "pattern":
            if step == "unlink":
                yield "UNLINK the key that SCAN gave", done(unlink_key())
            elif world.key is None:
                yield "SCAN gives nothing", done(world)
            else:
                yield "SCAN gives the key", world._replace(writer=Writer(number, "unlink"))
        elif how == "clear":
            for part in step:
                after = unlink_key() if part == "K" else self.without_stamp(world, "FT".index(part))
                rest = step.replace(part, "")
                yield f"clear: UNLINK {part}", after._replace(writer=Writer(number, rest)) if rest else done(after)
        elif world.full:
            yield f"cannot {how}", world._replace(writer=over)
        elif how == "set":
            yield "SET a plain value", done(self.write(self.without_key(world), Plain(), world.stamps))
        elif step == "stamps":
            world = self.create_stamp(self.create_stamp(world, F), T)
            yield "put: reads the stamps", world._replace(writer=Writer(number, "put", world.stamps))
        else:
            after = self.without_key(world)
            value = Value(world.ids, world.source, stamps)
            yield "put: SET the value", done(self.write(after, value, after.stamps, ids=world.ids + 1))

    # -- the search ----------------------------------------------------------------------------------------------------

    def moves(self, world: World) -> Iterator[tuple[str, str, World | Broken]]:
        """Everything that may happen next: who does it, its name, and what the world is then."""
        for at in range(len(self.kinds)):
            yield from self.guarded(str(at), self.steps(world, at))
        yield from self.guarded("writer", self.writes(world))
        yield from self.guarded("server", self.mishaps(world))

    @staticmethod
    def guarded(who: str, steps: Iterator[tuple[str, World]]) -> Iterator[tuple[str, str, World | Broken]]:
        try:
            for label, after in steps:
                yield who, label, after
        except Broken as broken:
            yield who, "", broken

    def broken(self, world: World) -> str:
        """What is wrong with a state by itself."""
        key = world.key
        if self.valid(key, world.stamps) and key.version < world.floor:  # type: ignore[union-attr]
            return "stale entry"
        if self.fleet and self.exact and all(caller.at == "done" for caller in world.callers):
            if type(key) is Placeholder and key.owned:
                return "orphan"
            if type(key) is Value and key.claimed and key.owned:
                return "orphan"
        return ""
