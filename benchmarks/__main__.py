"""Runs the race and prints it; a full run also writes the dated table and the plot of the docs."""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .cases import CASES, Effort, Table, run
from .contestants import ASYNC, METHOD, SYNC, Contestant, missing, version
from .report import MEMO, figures, heading, plot, text

FULL = Effort(
    rounds=60,
    fills=25,
    processes=3,
    scale=(1_000, 10_000, 100_000, 1_000_000),
    pauses=1_000_000,
    entries=(131_072, 163_840, 196_608, 229_376),
)
QUICK = Effort(rounds=10, fills=4, processes=1, scale=(1_000, 10_000), pauses=50_000, entries=(65_536, 98_304))

DOCS = Path("docs")
BEGIN, END = "<!-- results: written by `python -m benchmarks` -->", "<!-- end of results -->"


def _arguments() -> argparse.Namespace:
    names = list(dict.fromkeys(each.name for each in (*SYNC, *METHOD, *ASYNC)))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a short run with small stores: less exact, writes nothing"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[*CASES, *names],
        help=f"a case ({', '.join(CASES)}) or a contestant to race against; may be repeated; writes nothing",
    )
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for; return 1 if a figure is missed."""
    arguments = _arguments()
    only = arguments.only or []
    cases = [case for case in CASES if case in only] or list(CASES)
    rivals = [name for name in only if name not in CASES]
    everyone = {each.name: each for each in (*SYNC, *METHOD, *ASYNC)}
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
    parts = [heading(list(versions), absent, date, os.getloadavg()[0])]
    print(parts[0], flush=True)
    gc.collect()
    gc.freeze()  # what was imported is no part of anyone's garbage
    tables: list[Table] = []
    members = {"method": METHOD, "async": ASYNC}
    for case in cases:
        notes = {each.name: each.note for each in members.get(case, SYNC)}
        for table in run(case, QUICK if arguments.quick else FULL, allowed):
            tables.append(table)
            parts.append(text(table, notes))
            print("", parts[-1], sep="\n", flush=True)
    summary, good = figures(tables)
    parts.append(summary)
    print("", summary, sep="\n")
    if not arguments.quick and not only:
        _write("\n\n".join(parts), plot(tables, date), date)
    return 0 if good else 1


def _write(results: str, svg: str, date: str) -> None:
    """Write the dated table and the plot, and put the table into the page of the docs."""
    (DOCS / f"performance-{date}.txt").write_text(f"{results}\n", encoding="utf-8")
    (DOCS / "performance.svg").write_text(svg, encoding="utf-8")
    page = DOCS / "performance.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n```text\n{results}\n```\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
