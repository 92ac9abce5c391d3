"""What every decorated function's cache has done, for a person to act on: it reads counters and never changes any.

A report holds names of functions and numbers. No argument, key or value gets into the counters, so none gets in here.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from . import stats
from .stats import FunctionStats

__all__ = ["Report", "added", "by_name", "duration", "report"]

WIDTH: Final = 80
"""Columns of the table: what the narrowest terminal in common use has."""

NOTABLE: Final = 0.1
"""The share of a function's loads from which on it is worth a word that their results were not stored."""

ENOUGH_CALLS: Final = 100
"""How many calls there must be before a low hit ratio means something."""

_EMPTY: Final = """\
memo: no decorated function is alive in this process. Put @cache_aside on one,
import the module that it is in, call it, and look again."""

_TITLES: Final = ("function", "calls", "hit ratio", "mean load", "time saved")

# By reason, as in `FunctionStats.uncached_by`. "error" is not here: it comes with an error of the kind "policy".
_UNCACHED: Final = {
    "none": "results were None and not kept: cache_none=True keeps them",
    "cache_if": "results were not kept because of cache_if: see whether it refuses more than is meant",
    "ttl": "results were not kept because ttl= gave 0 or less: see whether it does so more often than is meant",
    "left_out": "ids were not in what the function returned, and are asked for each time: cache_none=True keeps a None",
}

# By kind, as in `FunctionStats.errors`.
_ERRORS: Final = {
    "policy": "a function given as option raised, and the result was not kept: mend it",
    "read": "a lookup in the store failed, and the function was called: see that the store is well",
    "take": "a lookup in the store failed, and the function was called: see that the store is well",
    "fill": "a result was not kept because the store or its serializer failed: see that both can take it",
    "release": "the store failed to give up a lease: see that it is well",
    "load": "the function raised, and an older result was served: mend what makes it raise",
    "refresh": "a refresh in the background failed: mend what makes the function raise",
    "logging": "a handler of the logger 'memo' raised, and the line was lost: mend the handler",
}


@dataclass(frozen=True)
class Report:
    """What was counted for each decorated function; `str` of it is a table of 80 columns with advice below.

    Attributes:
        rows: the statistics by the function's qualified name, those that saved most time first.

    >>> counted = FunctionStats(90, 10, 10, 0.5, waits=0, refused_fills=0, uncached_by={"none": 4})
    >>> print(Report({"app.user": counted}))
    function                                 calls  hit ratio  mean load  time saved
    app.user                                   100      90.0%    50.0 ms      4.50 s
        not kept: none 4
    <BLANKLINE>
    What to look at:
    - app.user: 4 of 10 results were None and not kept: cache_none=True keeps them
    """

    rows: dict[str, FunctionStats]

    @property
    def advice(self) -> list[str]:
        """Sentences that say what to do about what the counters show, each with the name of its function."""
        return [f"{name}: {advice}" for name, row in self.rows.items() for advice in _advice(row)]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as dicts, lists, texts and numbers, ready for JSON; times are in seconds."""
        functions = {
            name: dataclasses.asdict(row)
            | {
                "calls": row.hits + row.misses,
                "hit_ratio": row.hit_ratio,
                "uncached": row.uncached,
                "mean_load_seconds": _mean(row),
                "time_saved": row.time_saved,
            }
            for name, row in self.rows.items()
        }
        return {"functions": functions, "advice": self.advice}

    def __str__(self) -> str:
        if not self.rows:
            return _EMPTY
        lines = list(_table(self.rows))
        if self.advice:
            lines += ["", "What to look at:"]
            for sentence in self.advice:
                lines += _wrapped(sentence, "- ", "  ")
        return "\n".join(lines)


def report() -> Report:
    """Return what all decorated functions that are alive have counted, those that saved most time first.

    Functions of one qualified name (a factory's products, a module that was loaded again) are added up. Reading changes
    no counter.

    Returns:
        A `Report`: print it, or take `rows` or `to_dict()`.

    >>> sorted(report().to_dict())
    ['advice', 'functions']
    """
    rows = by_name((counters.name, counters.snapshot()) for counters in stats.functions())
    # What saved nothing comes after: first what costs the most.
    order = sorted(rows, key=lambda name: (-rows[name].time_saved, -rows[name].load_seconds, name))
    return Report({name: rows[name] for name in order})


def by_name(parts: Iterable[tuple[str, FunctionStats]]) -> dict[str, FunctionStats]:
    """Return the statistics by name, those of one name added up."""
    rows: dict[str, FunctionStats] = {}
    for name, part in parts:
        rows[name] = added(rows[name], part) if name in rows else part
    return rows


def added(first: FunctionStats, second: FunctionStats) -> FunctionStats:
    """Return the sums of what two functions counted, or one function at two times.

    >>> one = FunctionStats(1, 2, 2, 0.5, waits=0, refused_fills=0, errors={"read": 1})
    >>> added(one, one).errors
    {'read': 2}
    """
    sums: dict[str, Any] = {}
    for field in dataclasses.fields(FunctionStats):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, dict):
            sums[field.name] = {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
        else:
            sums[field.name] = one + other
    return FunctionStats(**sums)


def duration(seconds: float) -> str:
    """Return a duration in the unit that fits.

    >>> duration(0.0000123), duration(0.25), duration(12.5), duration(7_200)
    ('12 us', '250.0 ms', '12.50 s', '2.0 h')
    """
    if seconds >= 3_600:
        return f"{seconds / 3_600:,.1f} h"
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.2f} s"
    return f"{seconds * 1_000:.1f} ms" if seconds >= 0.001 else f"{seconds * 1_000_000:.0f} us"


# The table.


def _table(rows: dict[str, FunctionStats]) -> Iterator[str]:
    cells = {name: _cells(row) for name, row in rows.items()}
    widths = [max(map(len, column)) for column in zip(_TITLES[1:], *cells.values(), strict=True)]
    space = WIDTH - sum(widths) - 2 * len(widths)

    def line(name: str, numbers: Iterable[str]) -> str:
        return f"{name:{space}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(numbers, widths, strict=True))

    yield line(_TITLES[0], _TITLES[1:])
    for name, row in rows.items():
        yield line(name if len(name) <= space else f"...{name[3 - space :]}", cells[name])
        if notes := "; ".join(_notes(row)):
            yield from _wrapped(notes, "    ", "    ")


def _cells(row: FunctionStats) -> tuple[str, ...]:
    mean = _mean(row)
    return (
        f"{row.hits + row.misses:,}",
        f"{row.hit_ratio:.1%}",
        "-" if mean is None else duration(mean),
        duration(row.time_saved),
    )


def _notes(row: FunctionStats) -> Iterator[str]:
    """Yield what happened beside hits and loads, if it did."""
    if row.refused_fills:
        yield f"refused fills {row.refused_fills:,}"
    for title, counts in (("not kept", row.uncached_by), ("errors", row.errors)):
        if counts:
            yield f"{title}: " + ", ".join(f"{key} {count:,}" for key, count in sorted(counts.items()))


def _mean(row: FunctionStats) -> float | None:
    return row.load_seconds / row.loads if row.loads else None


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


# The advice.


def _advice(row: FunctionStats) -> Iterator[str]:
    """Yield a sentence for each thing that somebody may want to change."""
    for kind, count in sorted(row.errors.items()):
        meaning = _ERRORS.get(kind, "the logger 'memo' says more of the first of them")
        yield f"{count:,} {kind} error{'' if count == 1 else 's'}: {meaning}"
    said = bool(row.errors)
    for reason, meaning in _UNCACHED.items():
        count = row.uncached_by.get(reason, 0)
        if count and count >= NOTABLE * row.loads:
            said = True
            yield f"{count:,} of {row.loads:,} {meaning}"
    if row.refused_fills and row.refused_fills >= NOTABLE * row.loads:
        said = True
        yield (
            f"{row.refused_fills:,} of {row.loads:,} fills were refused: it is invalidated while it loads; if that is "
            f"too often, invalidate the one call that changed in the place of a tag or of everything"
        )
    calls = row.hits + row.misses
    if calls >= ENOUGH_CALLS and row.hit_ratio < NOTABLE and not said:
        yield (
            f"{row.hits:,} of {calls:,} calls were hits: if most calls differ, ignore= or key= says what counts; if "
            f"not, the ttl is short for them or the store small"
        )
