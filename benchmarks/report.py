"""From tables to text, to the figures that memo must reach and to a plot; this module measures nothing."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .cases import Table

__all__ = [
    "FIGURES",
    "FILE_FIGURES",
    "FILE_PANELS",
    "MEMO",
    "PANELS",
    "REDIS_FIGURES",
    "REDIS_PANELS",
    "Figure",
    "Panel",
    "figures",
    "heading",
    "plot",
    "text",
]

MEMO = "memo"

Tables = dict[str, Table]


def heading(
    title: str, versions: Sequence[str], absent: Sequence[str], date: str, load: float, also: Sequence[str] = ()
) -> str:
    """Return what a reader must know to judge the numbers."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    lines = [
        f"{title}, {date}",
        f"{python}, {machine}, load average {load:.1f} at the start",
        *also,
        "versions: " + ", ".join(versions),
        *(f"MISSING: {each}" for each in absent),
        "In parentheses: memo / peer. Below 1 memo is faster or smaller (for throughput: above 1).",
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _cell(table: Table, name: str, column: str) -> str:
    value, ours = table.value(name, column), table.value(MEMO, column)
    if value is None:
        return "-"
    if name == MEMO or not ours or not value:
        return _number(value)
    return f"{_number(value)} ({ours / value:.2f}x)"


def text(table: Table, notes: dict[str, str]) -> str:
    """Return a table as text."""
    rows = [
        ("", *table.columns),
        *((name, *(_cell(table, name, each) for each in table.columns)) for name in table.rows),
    ]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [f"{table.case}: {table.title}" + (" (more is better)" if table.more_is_better else "")]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        note = notes.get(row[0], "")
        lines.append(f"  {'  '.join(cells)}{f'  {note}' if note else ''}".rstrip())
    for remark in table.remarks:
        lines += textwrap.wrap(" ".join(remark.split()), 118, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


# -- what memo must reach ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One figure: what it is, its limit, how it is read from the tables, and whether more than the limit is good."""

    name: str
    limit: float
    read: Callable[[Tables], float | None]
    unit: str = "x"
    more_is_better: bool = False

    def within(self, value: float) -> bool:
        """Return whether a number is as good as the limit."""
        return value >= self.limit if self.more_is_better else value <= self.limit


def _versus(title: str, column: str, peer: str, ours: str = MEMO) -> Callable[[Tables], float | None]:
    def read(tables: Tables) -> float | None:
        table = tables.get(title)
        mine, theirs = (table.value(ours, column), table.value(peer, column)) if table else (None, None)
        return mine / theirs if mine is not None and theirs else None

    return read


def _hot(tables: Tables) -> float | None:
    table = tables.get("hot")
    many, few = (table.value(MEMO, f"{size} entries") for size in ("1,000,000", "1,000")) if table else (None, None)
    return many / few if many and few else None


def _pause(tables: Tables) -> float | None:
    table = tables.get("pauses")
    return table.value(MEMO, "no dict resized") if table and "1,000,000" in table.title else None


_TTL_CACHE = "cachetools TTLCache, lock"

FIGURES = (
    Figure("sync hit / lru_cache(typed=True)", 4.2, _versus("hit", "int", "lru_cache typed")),
    Figure("sync hit / cachebox", 0.80, _versus("hit", "int", "cachebox TTLCache")),
    Figure("sync hit / moka-py", 0.75, _versus("hit", "int", "moka-py")),
    Figure("sync hit / cachetools TTLCache with a lock", 0.33, _versus("hit", "int", _TTL_CACHE)),
    Figure("method hit / cachetools cachedmethod", 0.70, _versus("method", "int", "cachetools cachedmethod")),
    Figure("async hit / async-lru with ttl", 0.45, _versus("async", "hit", "async-lru")),
    Figure("async hit / cashews", 0.03, _versus("async", "hit", "cashews mem://")),
    Figure("async hit / aiocache", 0.03, _versus("async", "hit", "aiocache memory")),
    Figure("miss with fill / cachetools TTLCache with a lock", 1.0, _versus("miss", "far from full", _TTL_CACHE)),
    Figure("fill at capacity / cachetools TTLCache with a lock", 1.0, _versus("miss", "at capacity", _TTL_CACHE)),
    Figure("bytes per entry / cachetools TTLCache", 1.0, _versus("memory", "bytes", _TTL_CACHE)),
    Figure("one hot key, 1,000,000 entries / 1,000 entries", 1.5, _hot),
    Figure("longest insert at 1,000,000 entries, no dict resized", 1.0, _pause, " ms"),
)


# -- and with a file ---------------------------------------------------------------------------------------------------


def _highest(title: str) -> Callable[[Tables], float | None]:
    def read(tables: Tables) -> float | None:
        table = tables.get(title)
        return max(each for each in table.rows[MEMO] if each is not None) if table else None

    return read


def _opening(tables: Tables) -> float | None:
    table = tables.get("open")
    value = table.value(MEMO, "100,000 entries") if table else None
    return None if value is None else value / 1e3


def _four_to_one(tables: Tables) -> float | None:
    table = tables.get("processes")
    four, one = (table.value(MEMO, each) for each in ("four processes", "one process")) if table else (None, None)
    return four / one if four is not None and one else None


_SIGNED, _DISKCACHE = "memo with a secret", "diskcache"

FILE_FIGURES = (
    Figure("set of a small dict / diskcache", 0.3, _versus("small", "set", _DISKCACHE)),
    Figure("get of a small dict / diskcache", 0.8, _versus("small", "get", _DISKCACHE)),
    Figure("set with a secret / diskcache", 1.0, _versus("small", "set", _DISKCACHE, _SIGNED)),
    Figure("get with a secret / diskcache", 1.0, _versus("small", "get", _DISKCACHE, _SIGNED)),
    Figure("set of 1 MB / diskcache", 0.4, _versus("large", "set", _DISKCACHE)),
    Figure("get of 1 MB / diskcache", 0.8, _versus("large", "get", _DISKCACHE)),
    Figure("decorated hit / diskcache's memoize", 0.6, _versus("decorated", "hit", _DISKCACHE)),
    Figure("opening 100,000 live records, and one get", 1.0, _opening, " s"),
    Figure("index per key, beside the key's text", 120.0, _highest("index"), " bytes"),
    Figure("records lost by four writing processes", 0.0, _highest("lost"), ""),
    Figure("rate of four writing processes / of one", 0.5, _four_to_one, more_is_better=True),
    Figure(
        "rate of four writing processes / diskcache's four",
        3.0,
        _versus("processes", "four processes", _DISKCACHE),
        more_is_better=True,
    ),
)


# -- and with a Redis server -------------------------------------------------------------------------------------------


def _longest(case: str, column: str) -> Callable[[Tables], float | None]:
    def read(tables: Tables) -> float | None:
        table = tables.get(case)
        found = [table.value(each, column) for each in table.rows] if table else []
        return max((each for each in found if each is not None), default=None)

    return read


_BARE = "redis-py"

REDIS_FIGURES = (
    Figure("sync hit / redis-py's GET and json.loads", 1.15, _versus("sync", "hit", _BARE)),
    Figure("sync hit / dogpile.cache", 1.0, _versus("sync", "hit", "dogpile.cache")),
    Figure("async hit / redis-py's GET and json.loads", 1.2, _versus("async", "hit", _BARE)),
    Figure("async hit / cashews", 1.0, _versus("async", "hit", "cashews")),
    Figure("async hit / aiocache", 1.0, _versus("async", "hit", "aiocache")),
    Figure("manager's hit / redis-py's GET and json.loads", 1.1, _versus("managers", "sync", _BARE)),
    Figure("async manager's hit / redis-py's GET and json.loads", 1.1, _versus("managers", "async", _BARE)),
    Figure("miss with fill / redis-py's GET and SET", 1.3, _versus("sync", "miss with fill", _BARE)),
    Figure("async miss with fill / redis-py's GET and SET", 1.3, _versus("async", "miss with fill", _BARE)),
    Figure("100 hits at once / redis-py's MGET and json.loads", 1.2, _versus("many", "sync", _BARE)),
    Figure("100 async hits at once / redis-py's MGET and json.loads", 1.2, _versus("many", "async", _BARE)),
    Figure("longest call at a server that hangs, timeout 250 ms", 300.0, _longest("hung", "longest"), " ms"),
    Figure("longest call when the breaker is open", 1.0, _longest("hung", "longest, breaker open"), " ms"),
    Figure("longest call that waits, timeout 20 ms", 70.0, _longest("asked", "longest"), " ms"),
)


def figures(tables: Sequence[Table], expected: Sequence[Figure]) -> tuple[str, bool]:
    """Return the figures as text, and whether all that were measured are within their limits."""
    named: Tables = {}
    for table in tables:
        hot = table.case == "scale" and "hot" in table.title
        named["hot" if hot else table.case] = table
    rows, good = [("figure (memo / peer)", "limit", "measured", "ok")], True
    for figure in expected:
        value = figure.read(named)
        measured = "not measured" if value is None else f"{value:.3f}{figure.unit}"
        ok = "-" if value is None else "yes" if figure.within(value) else "NO"
        good = good and ok != "NO"
        sign = ">=" if figure.more_is_better else "<="
        rows.append((figure.name, f"{sign} {figure.limit:.2f}{figure.unit}", measured, ok))
    widths = [max(len(row[index]) for row in rows) for index in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ), good


# -- the plot ----------------------------------------------------------------------------------------------------------

Panel = tuple[str, str, str]  # case, column and title

PANELS: tuple[Panel, ...] = (
    ("hit", "int", "hit of a sync function"),
    ("method", "int", "hit of a method"),
    ("async", "hit", "hit of an async function"),
    ("miss", "far from full", "miss with fill"),
    ("miss", "at capacity", "fill at capacity"),
    ("memory", "bytes", "memory per entry"),
)
FILE_PANELS: tuple[Panel, ...] = (
    ("small", "set", "set of a small dict"),
    ("small", "get", "get of a small dict"),
    ("large", "set", "set of 1 MB"),
    ("large", "get", "get of 1 MB"),
    ("decorated", "hit", "hit of a decorated function"),
    ("decorated", "miss with fill", "miss with fill"),
)
REDIS_PANELS: tuple[Panel, ...] = (
    ("sync", "hit", "hit of a sync function"),
    ("async", "hit", "hit of an async function"),
    ("sync", "miss with fill", "miss with fill, sync"),
    ("async", "miss with fill", "miss with fill, async"),
    ("managers", "sync", "hit of a manager"),
    ("many", "sync", "100 hits at once"),
)
_WIDTH, _LEFT, _BAR, _ROW = 760, 200, 470, 20


def plot(tables: Sequence[Table], panels: Sequence[Panel], date: str) -> str:
    """Return bars as SVG, a panel for each of the main cases, shorter is better."""
    named = {table.case: table for table in tables if table.case != "scale"}
    body, top = [], 34
    for case, column, title in panels:
        table = named.get(case)
        if table is None:
            continue
        found = [(name, value) for name in table.rows if (value := table.value(name, column)) is not None]
        longest = max(value for _, value in found)
        body.append(f'<text x="16" y="{top + 20}" class="title">{escape(f"{title}, {table.unit}")}</text>')
        top += 30
        for name, value in sorted(found, key=lambda pair: pair[1]):
            kind = "memo" if name.startswith(MEMO) else "peer"
            width = max(1.0, _BAR * value / longest)
            body += [
                f'<text x="{_LEFT - 8}" y="{top + 14}" class="name {kind}-name">{escape(name)}</text>',
                f'<rect x="{_LEFT}" y="{top + 3}" width="{width:.1f}" height="{_ROW - 6}" class="{kind}"/>',
                f'<text x="{_LEFT + width + 6:.1f}" y="{top + 14}" class="value">{_number(value)}</text>',
            ]
            top += _ROW
        top += 8
    style = (
        "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.name{text-anchor:end}.memo-name{font-weight:bold}"
        ".memo{fill:#c2410c}.peer{fill:#94a3b8}.head{font-size:14px;font-weight:bold}.value{fill:#555}"
    )
    height = top + 12
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="memo beside other libraries">',
            f"<style>{style}</style>",
            f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="16" y="22" class="head">memo beside others, {escape(date)} (shorter is better)</text>',
            *body,
            "</svg>",
            "",
        ]
    )
