"""The `memo` command: shows people what memo does and what its files hold; no other module needs it."""

from __future__ import annotations

import json
import math
import os
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TextIO

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from . import __version__, demo
from .errors import OptionError, StoreError
from .report import duration
from .stores.inspection import FileContents, FileEntry, inspect_file
from .stores.patterns import compile_pattern
from .urls import file_path

__all__ = ["console", "main", "present", "present_file"]

INTERRUPTED: Final = 130
"""128 + SIGINT: what a shell reports of a command that Ctrl-C ended."""

PIPE_CLOSED: Final = 141
"""128 + SIGPIPE: likewise, of one whose reader went away."""

WIDTH: Final = 80
"""No line is longer than this, however wide the terminal is."""

# A line with only \b keeps click from filling the paragraph below it.
_STORY: Final = """\
memo keeps the results of functions, and forgets them when you say so.

\b
  @cache_aside(ttl=600)
  def measure(path): ...      # parses one file, counts what is in it

\b
  measure(path)               # the first time: parses
  measure(path)               # then: from memory
  measure.invalidate(path)    # until someone says that it has changed

The commands show what that is worth. `memo COMMAND --help` says more of each.
"""

_EXAMPLES: Final = """\
\b
Examples:
  memo demo                   see a cache at work, in some seconds
  memo demo --limit 50        the same, in one
  memo demo --help            what is shown there
  memo inspect cache.memo     what a file of cached results holds
"""

_DEMO: Final = """\
See a cache at work, on the sources of Python's standard library.

\b
What is shown, one after the other:
  passes      every file is parsed through one cached function: cold, then
              warm, and once more by another Python process, which finds
              the results in the file that the first one has left
  edit        a copy of a file is edited: nothing changes until the function
              is told to invalidate its result
  stampede    eight threads ask for one absent key at once: one of them loads
  stale       a result is past its ttl: it is served at once, and a new one
              is loaded behind it

The long part has a progress bar where standard error is a terminal. Nothing is kept, and no file but temporary ones is
written, unless --file says where: then a second run within ten minutes starts warm, too.
"""

_DEMO_EXAMPLES: Final = """\
\b
Examples:
  memo demo                   every file, some seconds
  memo demo --limit 50        the first 50 files
  memo demo --file demo.memo  keep the results, for a second run, and to look
                              at them: memo inspect demo.memo
  memo demo --json            the same numbers, for programs
  memo demo --json >demo.json
"""

_INSPECT: Final = """\
List what a file of cached results holds: FILE is the path that a PickleFileStore was given, or its URL.

\b
Of each entry:
  key         as the store's keys() has it; below it the function, where the
              key does not begin with its name, and the tags
  age         since it was written
  left        until its ttl is over; "stale" in a window after that
  size        what it takes in the file

No value is unpickled, so nothing in the file can run, and no secret is needed. The file is neither locked nor changed,
and may be in use.
"""

_INSPECT_EXAMPLES: Final = """\
\b
Examples:
  memo inspect cache.memo
  memo inspect file:///var/cache/app.memo --sort size
  memo inspect cache.memo --pattern "user:*" --limit 100
  memo inspect cache.memo --json
"""

SHOWN: Final = 20
"""Entries in a table where nobody says how many."""

_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


@click.group(help=_STORY, epilog=_EXAMPLES, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="memo", message="%(prog)s %(version)s")
def _memo() -> None:
    pass


@_memo.command("demo", help=_DEMO, epilog=_DEMO_EXAMPLES, short_help="See a cache at work, cold, warm, and in a crowd.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Read the first N files only.")
@click.option("--file", metavar="PATH", help="Keep the results in this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in the place of tables; times in seconds.")
def _demo(limit: int | None, file: str | None, as_json: bool) -> None:
    folder = Path(sysconfig.get_path("stdlib"))
    files = demo.sources(folder)[:limit]
    if not files:
        raise click.ClickException(f"this Python's standard library ({folder}) has no source files to read")
    with closing(_watched(files)) as watched:
        try:
            result = demo.run(folder, files, watched, file)
        except (OptionError, StoreError) as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    _show(lambda screen: present(result, screen))


@_memo.command("inspect", help=_INSPECT, epilog=_INSPECT_EXAMPLES, short_help="List what a file of a store holds.")
@click.argument("file", metavar="FILE")
@click.option("--pattern", default="*", metavar="GLOB", help="List keys that match: *, ? and [...] stand for others.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help=f"List N entries; else {SHOWN}, as JSON all.")
@click.option(
    "--sort",
    type=click.Choice(["key", "age", "size"]),
    default="key",
    help="By key (if nothing is said), the oldest or the largest first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; times in seconds, sizes in bytes.")
def _inspect(file: str, pattern: str, limit: int | None, sort: str, as_json: bool) -> None:
    try:
        found = inspect_file(file_path(file, "FILE=") if file.lower().startswith("file:") else file)
    except (OptionError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{file!r} cannot be read: {error.strerror}") from None
    matches = compile_pattern(pattern).match
    listed = sorted((entry for entry in found.entries if matches(entry.key)), key=_ORDERS[sort])
    if as_json:
        shown = listed[:limit]
        fields = {**vars(found), "entries": len(found.entries), "matching": len(listed)}
        click.echo(json.dumps({**fields, "keys": [entry.to_dict() for entry in shown]}, indent=2))
        return
    _show(lambda screen: present_file(found, listed, limit or SHOWN, screen))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code.

    Args:
        arguments: None: those that the process was given.

    Returns:
        0; 1 if there is nothing to show, or a file cannot be read; 2 for arguments that are not allowed; 130 after
        Ctrl-C; 141 if the reader of the output went away.
    """
    try:
        with _memo.make_context("memo", list(sys.argv[1:] if arguments is None else arguments)) as context:
            _memo.invoke(context)
    except click.exceptions.Exit as ended:  # after --help and --version
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes once more at exit: into nothing, so that it has nothing to complain of.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return 0


# What a person sees.


def console(file: TextIO) -> Console:
    """Return a console at most `WIDTH` wide, without any colour or style where NO_COLOR is set."""
    made = Console(
        file=file,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )
    made.width = min(made.width, WIDTH) if made.is_terminal else WIDTH
    return made


def _show(printing: Callable[[Console], None]) -> None:
    """Write what is printed to standard output, in one piece and without the blanks that tables end in."""
    screen = console(sys.stdout)
    with screen.capture() as captured:
        printing(screen)
    lines = [line.rstrip() for line in captured.get().split("\n")]
    click.echo("\n".join(lines), nl=False, color=True)  # there are no codes in it but those that fit its reader


def _watched(files: list[Path]) -> Generator[Path, None, None]:
    """Yield the files behind a progress bar that is gone afterwards; without one where nobody looks."""
    if not sys.stderr.isatty():
        yield from files
        return
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("files"))
    progress = Progress(*columns, console=console(sys.stderr), transient=True)
    try:
        progress.start()  # in here, since an interruption in the middle of it must give the cursor back, too
        task = progress.add_task("", total=len(files))
        for path in files:
            yield path
            progress.advance(task)
    finally:
        progress.stop()


def present(result: dict[str, Any], screen: Console) -> None:
    """Print what the demo found, for a person.

    Args:
        result: of `demo.run`.
        screen: at least `WIDTH` wide, if its lines are not to be folded.
    """
    found, edit, stampede, stale = (result[part] for part in ("found", "edit", "stampede", "stale"))
    hardest = f"{found['hardest']['function']}() in {found['hardest']['file']}"
    screen.print(
        f"memo {result['memo']}: the sources of Python {result['python']} through one cached function\n", style="bold"
    )
    screen.print(_passes(result["passes"]))
    if result["file_size"] is not None:
        screen.print(f"\nrestart: a second Python process over the same file ({decimal(result['file_size'])})")
    screen.print(
        f"\nfound: {found['lines']:,} lines, {found['functions']:,} functions, {found['classes']:,} classes\n"
        f"most complex: {hardest:.46} (complexity {found['hardest']['complexity']})\n"
    )
    screen.print(f"edit: a copy of {edit['file']:.40} gets one more function", style="bold")
    screen.print(
        f"  before the edit         {edit['functions_before']:>7} functions\n"
        f"  after it                {edit['functions_after_edit']:>7} functions   from the cache: nobody said a word\n"
        f"  invalidate(path)        {edit['invalidated']!s:>7}\n"
        f"  the next call           {edit['functions_after_invalidation']:>7} functions   read again\n"
    )
    screen.print(f"stampede: {stampede['threads']} threads ask for one absent key at the same moment", style="bold")
    screen.print(
        f"  loads                   {stampede['loads']:>7}\n"
        f"  distinct answers        {stampede['distinct_answers']:>7}\n"
    )
    screen.print("stale: a result of 90 seconds, with ttl=60 and stale_while_revalidate=600", style="bold")
    screen.print(
        f"  the first call          {duration(stale['load_seconds']):>11}   edition {stale['loaded']}\n"
        f"  the call after 90 s     {duration(stale['serve_seconds']):>11}   edition {stale['served_when_stale']}\n"
        f"  loads behind it         {stale['refreshes']:>7}\n"
        f"  the next call           {duration(stale['next_seconds']):>11}   edition {stale['served_next']}"
    )


def _passes(passes: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=0, pad_edge=False, header_style="bold")
    table.add_column("pass", min_width=7)
    for name, width in (
        ("files", 7),
        ("time", 11),
        ("hits", 8),
        ("misses", 8),
        ("hit ratio", 12),
        ("saved", 11),
        ("entries", 9),
    ):
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    for each in passes:
        table.add_row(
            each["pass"],
            f"{each['files']}",
            duration(each["seconds"]),
            f"{each['hits']}",
            f"{each['misses']}",
            f"{each['hit_ratio']:.1%}",
            duration(each["seconds_saved"]),
            f"{each['entries']}",
        )
    return table


# What a person sees of a file.

_ORDERS: Final[dict[str, Callable[[FileEntry], Any]]] = {
    "key": lambda entry: entry.key,
    "age": lambda entry: (-entry.age, entry.key),
    "size": lambda entry: (-entry.size, entry.key),
}


def present_file(found: FileContents, listed: Sequence[FileEntry], limit: int, screen: Console) -> None:
    """Print what a file holds, for a person.

    Args:
        found: of `inspect_file`.
        listed: those of its entries that are asked for, in order.
        limit: how many of them to print.
        screen: at least `WIDTH` wide.
    """
    encoding = screen.encoding
    screen.print(_cut(_escaped(found.path, encoding), WIDTH, tail=True), style="bold", soft_wrap=True)
    signed = "signed: what is listed here was not verified" if found.signed else "not signed"
    live, garbage = decimal(found.live_size), decimal(found.garbage_size)
    lines = [
        ("format", f"{found.version}", signed),
        ("size", decimal(found.file_size), f"{live} live, {garbage} garbage"),
        ("entries", f"{len(found.entries):,}", f"{found.expired:,} more expired"),
        ("torn", f"{found.torn:,}", "stretches whose writer was killed"),
        ("damaged", f"{found.damaged:,}", "unreadable stretches: nothing before them is served"),
    ]
    if found.unread_size:
        lines.append(("unread", decimal(found.unread_size), "at the end: a process may be writing it"))
    for name, number, meaning in lines:
        screen.print(f"  {name:<8}{number:>12}   {meaning}")
    if not listed:
        screen.print("\nno entries" if not found.entries else "\nno entry matches")
        return
    table = Table(box=None, padding=0, pad_edge=False, header_style="bold")
    table.add_column("key", width=_KEY, no_wrap=True)
    for name, width in ("age", 9), ("left", 9), ("size", WIDTH - _KEY - 18):
        table.add_column(name, width=width, justify="right", no_wrap=True)
    for entry in listed[:limit]:
        key = _cut(_escaped(entry.key, encoding), _KEY)
        table.add_row(key, _span(entry.age), _span(entry.left) if entry.left > 0 else "stale", decimal(entry.size))
        for name, text in _below(entry):
            table.add_row(_cut(f"    {name}: {_escaped(text, encoding)}", _KEY))
    screen.print()
    screen.print(table)
    if len(listed) > limit:
        screen.print(f"\n{len(listed) - limit:,} more: --limit lists them")


_KEY: Final = 50
"""Columns of the keys."""


def _below(entry: FileEntry) -> Iterator[tuple[str, str]]:
    if not entry.key.startswith(entry.function):
        yield "function", entry.function
    if entry.tags:
        yield "tags", ", ".join(entry.tags)


def _escaped(text: str, encoding: str) -> str:
    """Return a text without anything that a terminal obeys or cannot show; a file may hold any text."""
    plain = "".join(
        each if each.isprintable() and each != "\\" else each.encode("unicode_escape").decode() for each in text
    )
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def _cut(text: str, width: int, tail: bool = False) -> str:
    """Return a text that takes no more columns than `width`; what is left of a longer one is its start or its tail."""
    if cell_len(text) <= width:
        return text
    if tail:
        return "..." + set_cell_size(text[::-1], width - 3)[::-1]
    return set_cell_size(text, width - 3) + "..."


def _span(seconds: float) -> str:
    """Return a time that people wait for, in the largest unit that fits."""
    if seconds == math.inf:
        return "never"
    for unit, name in (86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"):
        if seconds >= unit:
            return f"{seconds / unit:,.{int(unit > 1 and seconds < 10 * unit)}f} {name}"
    return "< 1 s"
