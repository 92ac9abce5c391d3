"""The cache-aside algorithm for several ids at once, without I/O: it runs the lookups of `aside` side by side and
bundles what they ask for; this module decides nothing that `aside` decides.

Each id is a call of its own to the algorithm: its key, its lease, its flight, its outcome. What is new is the order:

1. One read for all ids. What is there is a hit and needs nothing more.
2. The others register their flights. Where another call is loading an id already, this one is going to wait for it.
3. One take for all own ids, then one call of the function with those that are still missing, then one fill.
4. The own flights settle. Only then does the caller wait for the ids of others:

   a. A wants 1 and 2, and registers 1   b. B wants 2 and 1, and registers 2   c. A finds 2 taken, B finds 1 taken
   d. A loads 1 and settles it, B loads 2 and settles it   e. each waits for what has been settled. If they waited
   before they loaded, each would wait for the other for ever.

5. An id whose load died is looked up again, by the same rules: a second call of the function, for those that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import pairwise
from types import CoroutineType
from typing import Any, Final, final

from . import aside
from .aside import Call, Fill, Load, Plan, Read, Release, Take, Wait
from .entry import MISSING
from .flight import Flight, Outcome, inside
from .policy import NotKept, Policy

__all__ = ["Batch", "Bulk", "ManyPolicy", "Several", "answers", "chained", "lookup", "picked", "refresh", "weave"]

_LEFT_OUT: Final = NotKept("left_out")

Steps = Generator[Any, Any, Outcome]


class ManyPolicy(Policy):
    """The freshness options of a function of many ids, whose result may leave an id out."""

    __slots__ = ()

    def judge(self, value: Any) -> Any:
        """Do what `Policy.judge` does; an id that was left out has no result to keep."""
        return _LEFT_OUT if value is MISSING else super().judge(value)


class Batch:
    """One call for several ids.

    Args:
        space: where their results live.
        keys: by id, in the order of the call; ids that have one key share their result.
        call: makes the arguments of the function for a list of ids.
        fly: makes the flight of one id: given this batch, its key and the id.
        tags: returns the tags of an id's call.
    """

    __slots__ = ("_fly", "_tags", "call", "flights", "ids", "keys", "origin", "space", "values")

    def __init__(
        self,
        space: Any,
        keys: dict[Any, Any],
        call: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]],
        fly: Callable[[Batch, Any, Any], Any],
        tags: Callable[[Any], tuple[str, ...]] | None = None,
    ) -> None:
        self.space = space
        self.keys = keys
        self.call = call
        self.ids: dict[Any, Any] = {}  # by key, the first that has it: it is the one that the function is asked for
        for each, key in keys.items():
            self.ids.setdefault(key, each)
        self.values: dict[Any, Any] = {}  # by key, the hits
        self.flights: dict[Any, Any] = {}  # by key, the others; their order is that of the ids
        self.origin = inside.get()  # the load within which this call is made
        self._fly = fly
        self._tags = tags

    def calls(self) -> list[tuple[Any, tuple[str, ...]]]:
        """Return the keys, each with the tags of its call."""
        tags = None if self.space.local else self._tags  # in memory an entry is found without them
        return [(key, () if tags is None else tags(each)) for key, each in self.ids.items()]

    def depart(self, keys: Sequence[Any]) -> None:
        """Make the flights of some keys."""
        for key in keys:
            self.flights[key] = self._fly(self, key, self.ids[key])

    def settle(self, outcome: Outcome) -> None:
        """Settle every flight that is still open: nobody is going to load it."""
        for flight in list(self.flights.values()):
            if flight.outcome is None or flight.wakers:
                flight.settle(outcome)

    def result(self) -> dict[Any, Any]:
        """Return the values by id, in the order of the call, without those that were left out."""
        values = {**self.values, **{key: flight.outcome.value for key, flight in self.flights.items()}}
        found = {each: values[key] for each, key in self.keys.items()}
        return {each: value for each, value in found.items() if value is not MISSING}


@final
class Bulk:
    """Do something to several keys at once: `space.<verb>_many(items, *options)`; the answer is a list."""

    __slots__ = ("items", "options", "verb")

    def __init__(self, verb: str, items: list[Any], *options: Any) -> None:
        self.verb = verb
        self.items = items
        self.options = options


@final
class Several:
    """A `Call`, a `Load` or a `Wait` of several flights; the answer is a list of Outcomes, or of a Wait's answers.

    A Load without commands is that of a refresh.
    """

    __slots__ = ("commands", "flights", "kind")

    def __init__(self, kind: type, flights: list[Any], commands: list[Any]) -> None:
        self.kind = kind
        self.flights = flights
        self.commands = commands


def lookup(plan: Plan, batch: Batch, inline: bool) -> Generator[Bulk | Several, list[Any], Outcome | None]:
    """Look several ids up; return the first outcome that is an error, None if there is none."""
    if not batch.ids:
        return None
    absent = {}
    for key, reading in zip(batch.ids, (yield Bulk("look", batch.calls())), strict=True):
        if reading.value is MISSING:
            absent[key] = reading
        else:
            plan.counters.hits.tick()
            batch.values[key] = reading.value
    batch.depart(list(absent))
    lookups = {}
    for key, reading in absent.items():
        flight = batch.flights[key]
        lookups[flight] = aside.lookup(plan, flight, reading, inline)
    return (yield from weave(lookups))


def refresh(plan: Plan, batch: Batch, inline: bool) -> Generator[Bulk | Several, list[Any], Outcome | None]:
    """Load several ids whatever is there, in the place of flights that may be there; return what `lookup` does."""
    if not batch.ids:
        return None
    batch.depart(list(batch.ids))
    flights = list(batch.flights.values())
    if inline:
        return (yield from weave({flight: aside.refresh(plan, flight) for flight in flights}))
    return _failure((yield Several(Load, flights, [])))


def weave(running: Mapping[Any, Steps]) -> Generator[Bulk | Several, list[Any], Outcome | None]:
    """Run the steps of several flights side by side, and settle each flight as soon as its steps have ended.

    What can go on without waiting goes on first, so that nobody waits while others wait for what he has begun.

    Returns:
        The first outcome that is an error, in the order of the flights; None: there is none. One that has failed
        waits for nobody: the caller is going to raise that error in any case.
    """
    open_: dict[Any, Any] = {}  # the command at which each flight stands
    news: dict[Any, Any] = dict.fromkeys(running)
    failed = False
    try:
        while True:
            for flight, answer in news.items():
                try:
                    open_[flight] = running[flight].send(answer)
                except StopIteration as stop:  # noqa: PERF203 - it ends one of many
                    open_.pop(flight, None)
                    flight.settle(stop.value)
                    failed = failed or stop.value.error is not None
            kinds = {type(command) for command in open_.values()}
            if not kinds or (failed and kinds == {Wait}):
                break
            kind = [each for each in _ORDER if each in kinds][0]  # noqa: RUF015 - no generator is left for the collector
            group = {flight: command for flight, command in open_.items() if type(command) is kind}
            news = dict(zip(group, (yield _together(kind, group)), strict=True))
    finally:
        for steps in running.values():
            steps.close()
    return _failure([flight.outcome for flight in running])


def _failure(outcomes: Iterable[Outcome | None]) -> Outcome | None:
    for outcome in outcomes:
        if outcome is not None and outcome.error is not None:
            return outcome
    return None


_ORDER: Final = (Read, Take, Fill, Release, Call, Load, Wait)


def _together(kind: type, group: dict[Any, Any]) -> Bulk | Several:
    if kind is Read:
        return Bulk("look", [(flight.key, flight.tags) for flight in group])
    if kind is Take:
        renew = next(iter(group.values())).renew  # a batch is a lookup or a refresh as a whole
        return Bulk("take", [(flight.key, flight.tags) for flight in group], renew)
    if kind is Fill:
        return Bulk("fill", [(f.key, fill.lease, fill.value, fill.ttl, f.tags) for f, fill in group.items()])
    if kind is Release:
        return Bulk("release", [(flight.key, each.lease, each.remove) for flight, each in group.items()])
    return Several(kind, list(group), list(group.values()))


def chained(flights: list[Flight]) -> Flight:
    """Return a flight within which is whoever is within the load of all of these: each becomes the next one's parent.

    The load of several ids is inside of all their flights, and `Flight.parent` is a chain. Nobody is within them yet.
    """
    for outer, inner in pairwise(flights):
        inner.parent = outer
    return flights[-1]


def answers(name: str, flights: list[Any], result: Any) -> list[Outcome]:
    """Return the outcomes that the function's result has for the ids of these flights; MISSING: it left the id out.

    Raises:
        TypeError: the result is no mapping.
        Exception: whatever a mapping of the user's raises.
    """
    found = picked(name, result, [flight.args[0] for flight in flights])
    return [Outcome(found.get(flight.args[0], MISSING)) for flight in flights]


def picked(name: str, result: Any, ids: list[Any]) -> dict[Any, Any]:
    """Return what a function has found of the ids that it was asked for, in their order.

    Raises:
        TypeError: the result is no mapping.
    """
    if not isinstance(result, Mapping):
        if isinstance(result, CoroutineType):
            result.close()  # else Python warns that it was never awaited
        raise TypeError(
            f"{name} returned a {type(result).__name__}: a function of many ids returns a mapping, such as a dict, "
            f"from each id that it has found to its value"
        )
    return {each: value for each in ids if (value := result.get(each, MISSING)) is not MISSING}
