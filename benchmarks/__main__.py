"""Runs a race and prints it; a full run also writes the dated table and the plot of the docs."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cases, file_cases, redis_cases
from .cases import Effort, Table
from .contestants import ASYNC, METHOD, SYNC, Contestant, missing, version
from .file_cases import FileEffort, file_system
from .file_contestants import DECORATED, INDEXED, SHARED, STORES
from .redis_cases import RedisEffort
from .redis_contestants import ASYNC as REDIS_ASYNC
from .redis_contestants import HUNG, MANAGERS, MANY
from .redis_contestants import SYNC as REDIS_SYNC
from .redis_server import setting
from .report import (
    FIGURES,
    FILE_FIGURES,
    FILE_PANELS,
    MEMO,
    PANELS,
    REDIS_FIGURES,
    REDIS_PANELS,
    Figure,
    Panel,
    figures,
    heading,
    plot,
    text,
)

DOCS = Path("docs")


@dataclass(frozen=True)
class Race:
    """What is raced, and what comes of it.

    Attributes:
        title: of the results.
        cases: by name.
        members: the contestants of each case.
        full: the effort of a run whose numbers count.
        quick: of one that shows that all works.
        figures: what memo must reach.
        panels: what is plotted.
        page: the name of the docs' files, without date and ending.
        command: what runs it.
        setting: returns what else a reader must know to judge the numbers.
    """

    title: str
    cases: Mapping[str, Callable[..., Any]]
    members: Mapping[str, Sequence[Contestant]]
    full: Any
    quick: Any
    figures: Sequence[Figure]
    panels: Sequence[Panel]
    page: str
    command: str
    setting: Callable[[], list[str]] = list

    def everyone(self) -> dict[str, Contestant]:
        """Return all contestants by name."""
        return {each.name: each for members in self.members.values() for each in members}


RACES = {
    "memory": Race(
        title="memo benchmarks",
        cases=cases.CASES,
        members={**dict.fromkeys(cases.CASES, SYNC), "method": METHOD, "async": ASYNC},
        full=Effort(
            rounds=60,
            fills=25,
            processes=3,
            scale=(1_000, 10_000, 100_000, 1_000_000),
            pauses=1_000_000,
            entries=(131_072, 163_840, 196_608, 229_376),
        ),
        quick=Effort(rounds=10, fills=4, processes=1, scale=(1_000, 10_000), pauses=50_000, entries=(65_536, 98_304)),
        figures=FIGURES,
        panels=PANELS,
        page="performance",
        command="python -m benchmarks",
    ),
    "file": Race(
        title="memo benchmarks of stores in files",
        cases=file_cases.CASES,
        members={
            **dict.fromkeys(file_cases.CASES, STORES),
            "decorated": DECORATED,
            "index": INDEXED,
            "processes": SHARED,
        },
        full=FileEffort(
            rounds=24,
            keys=2_000,
            large=10,
            again=20,
            opened=100_000,
            indexed=(88_000, 100_000),
            processes=3,
            written=5_000,
            writings=4,
        ),
        quick=FileEffort(
            rounds=3,
            keys=2_000,
            large=5,
            again=4,
            opened=10_000,
            indexed=(11_000, 20_000),
            processes=1,
            written=1_000,
            writings=1,
        ),
        figures=FILE_FIGURES,
        panels=FILE_PANELS,
        page="performance-file",
        command="python -m benchmarks file",
        setting=lambda: [f"file system of the temporary folder: {file_system()}; warm page cache"],
    ),
    "redis": Race(
        title="memo benchmarks of Redis",
        cases=redis_cases.CASES,
        members={"sync": REDIS_SYNC, "async": REDIS_ASYNC, "managers": MANAGERS, "many": MANY, "hung": HUNG},
        full=RedisEffort(rounds=1_500, calls=4, hung=1_000),
        quick=RedisEffort(rounds=300, calls=4, hung=100),
        figures=REDIS_FIGURES,
        panels=REDIS_PANELS,
        page="performance-redis",
        command="python -m benchmarks redis",
        setting=setting,
    ),
}


def _arguments() -> argparse.Namespace:
    names = list(dict.fromkeys(name for race in RACES.values() for name in [*race.cases, *race.everyone()]))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "race", nargs="?", choices=[*RACES], default="memory", help="the kind of store; default: memory"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short run with small stores: less exact, writes nothing"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=names,
        help="a case or a contestant to race against; may be repeated; writes nothing. "
        + "; ".join(f"cases of {name}: {', '.join(race.cases)}" for name, race in RACES.items()),
    )
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for; return 1 if a figure is missed."""
    arguments = _arguments()
    race, only = RACES[arguments.race], arguments.only or []
    chosen = [case for case in race.cases if case in only] or list(race.cases)
    rivals = [name for name in only if name not in race.cases]
    everyone = race.everyone()
    if strangers := [name for name in rivals if name not in everyone]:
        sys.exit(f"no part of the race {arguments.race!r}: {', '.join(strangers)}")
    reasons = {name: reason for name, each in everyone.items() if (reason := missing(each))}
    if MEMO in reasons:
        sys.exit(f"nothing to race: {reasons[MEMO]}")

    def allowed(contestants: Sequence[Contestant]) -> list[Contestant]:
        return [
            each
            for each in contestants
            if each.name not in reasons and (not rivals or each.name in rivals or each.name == MEMO)
        ]

    date = dt.datetime.now(dt.timezone.utc).date().isoformat()
    versions = dict.fromkeys(version(each) for each in everyone.values() if each.name not in reasons)
    absent = [f"{name}: {reason}" for name, reason in reasons.items()]
    parts = [heading(race.title, list(versions), absent, date, os.getloadavg()[0], race.setting())]
    print(parts[0], flush=True)
    gc.collect()
    gc.freeze()  # what was imported is no part of anyone's garbage
    tables: list[Table] = []
    for case in chosen:
        notes = {each.name: each.note for each in race.members[case]}
        for table in asyncio.run(race.cases[case](race.quick if arguments.quick else race.full, allowed)):
            tables.append(table)
            parts.append(text(table, notes))
            print("", parts[-1], sep="\n", flush=True)
    summary, good = figures(tables, race.figures)
    parts.append(summary)
    print("", summary, sep="\n")
    if not arguments.quick and not only:
        _write(race, "\n\n".join(parts), plot(tables, race.panels, date), date)
    return 0 if good else 1


def _write(race: Race, results: str, svg: str, date: str) -> None:
    """Write the dated table and the plot, and put the table into the page of the docs."""
    (DOCS / f"{race.page}-{date}.txt").write_text(f"{results}\n", encoding="utf-8")
    (DOCS / f"{race.page}.svg").write_text(svg, encoding="utf-8")
    page = DOCS / f"{race.page}.md"
    begin, end = f"<!-- results: written by `{race.command}` -->", "<!-- end of results -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n```text\n{results}\n```\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
