"""Every order in which a few actors can take their steps; what the actors are, and what must hold, say the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def schedules(make: Callable[[], list[Any]], preemptions: int) -> Iterator[None]:
    """Run every interleaving of the actors' steps, each with new actors, in which so many or fewer are preempted.

    An actor is an iterator: between two of its steps it yields None, or what says whether its wait is over.
    """
    prefix: list[int] = []
    while True:
        actors = make()
        waiting: dict[int, Any] = dict.fromkeys(range(len(actors)))
        trace: list[tuple[int, list[int]]] = []
        left, last = preemptions, None
        while waiting:
            enabled = [actor for actor, ready in waiting.items() if ready is None or ready()]
            assert enabled, f"everyone waits, after {[chosen for chosen, _ in trace]}"
            if last in enabled:
                enabled = [last, *(actor for actor in enabled if actor != last and left)]
            chosen = prefix[len(trace)] if len(trace) < len(prefix) else enabled[0]
            left -= last in enabled and chosen != last
            last = chosen
            trace.append((chosen, enabled))
            try:
                waiting[chosen] = next(actors[chosen])
            except StopIteration:
                del waiting[chosen]
            except AssertionError as error:
                raise AssertionError(f"{error}, by the schedule {[chosen for chosen, _ in trace]}") from None
        yield
        while trace:
            chosen, enabled = trace.pop()
            later = enabled[enabled.index(chosen) + 1 :]
            if later:
                prefix = [*(actor for actor, _ in trace), later[0]]
                break
        else:
            return
