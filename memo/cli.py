"""The `memo` command: shows people what memo does; no other module needs it, and it keeps nothing when it ends."""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from . import __version__
from .decorator import cache_aside
from .stats import FunctionStats
from .stores import MemoryStore

__all__ = ["main"]

INTERRUPTED: Final = 130
"""128 + SIGINT: what a shell reports of a command that Ctrl-C ended."""

PIPE_CLOSED: Final = 141
"""128 + SIGPIPE: likewise, of one whose reader went away."""

THREADS: Final = 8

_NOT_SOURCES: Final = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})

_BRANCHES: Final = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.Assert,
    ast.comprehension,
    ast.match_case,
)

_HELP: Final = """\
example:
  memo demo --limit 50
      reads 50 files of Python's standard library through one cached function,
      twice, and shows what the second time costs; then what an invalidation
      does, and what eight threads do that ask for the same thing at once
"""

_DEMO_HELP: Final = """\
what runs, in short:
  @cache_aside(ttl=600)
  def measure(path): ...      # parses one file, counts what is in it

  measure(path)               # the first time: parses
  measure(path)               # then: from memory
  measure.invalidate(path)    # until someone says that it has changed

examples:
  memo demo                   every file, some seconds
  memo demo --limit 50        the first 50 files
  memo demo --json            the same numbers, for programs
"""


# What the demo measures: the user's side of the cache. Nothing in this part knows of memo.


@dataclass(frozen=True)
class Measure:
    """What one source file holds; `complexity` is McCabe's, of the most complex function."""

    lines: int
    functions: int
    classes: int
    complexity: int
    hardest: str


def measure(path: str) -> Measure:
    """Parse one file and count what is in it; of a file that this Python cannot parse only the lines."""
    source = Path(path).read_bytes()
    functions = classes = complexity = 0
    hardest = ""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        tree = ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions += 1
            found = 1 + sum(map(_decisions, ast.walk(node)))
            if found > complexity:
                complexity, hardest = found, node.name
    return Measure(source.count(b"\n"), functions, classes, complexity, hardest)


def _decisions(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return int(isinstance(node, _BRANCHES))


def sources(folder: Path) -> list[Path]:
    """Return the Python files of a standard library, without tests and installed packages, in a fixed order."""
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return [folder / path for path in sorted(found) if _NOT_SOURCES.isdisjoint(path.parts)]


# The demo.


def demo(folder: Path, files: list[Path], progress: TextIO | None) -> dict[str, Any]:
    """Run all parts of the demo; return what they found, ready for JSON.

    Args:
        folder: where the files are; they are named from there.
        files: what is read, at least one.
        progress: where a line that overwrites itself goes; None: nowhere.
    """
    store = MemoryStore(max_size=None)
    cached = cache_aside(ttl=600, store=store, namespace="memo.demo.measure")(measure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python says of its own sources is not our subject
        passes, found = [], []
        for name in ("cold", "warm"):
            before, started = cached.stats(), time.perf_counter()
            found = [cached(str(path)) for path in _shown(files, name, progress)]
            seconds = time.perf_counter() - started
            passes.append({"pass": name, **_compared(before, cached.stats(), seconds), "entries": store.stats().size})
        hardest = max(range(len(files)), key=lambda index: found[index].complexity)
        return {
            "memo": __version__,
            "python": platform.python_version(),
            "passes": passes,
            "found": {
                "files": len(files),
                "lines": sum(each.lines for each in found),
                "functions": sum(each.functions for each in found),
                "classes": sum(each.classes for each in found),
                "hardest": {
                    "file": files[hardest].relative_to(folder).as_posix(),
                    "function": found[hardest].hardest,
                    "complexity": found[hardest].complexity,
                },
            },
            "edit": _edit(cached, files[hardest]),
            "stampede": _stampede(),
        }


def _shown(files: list[Path], name: str, progress: TextIO | None) -> Iterator[Path]:
    if progress is None:
        yield from files
        return
    try:
        for number, path in enumerate(files, 1):
            if number % 25 == 1:
                progress.write(f"\r{name}: file {number} of {len(files)} ")
                progress.flush()
            yield path
    finally:
        progress.write(f"\r{'':40}\r")
        progress.flush()


def _compared(before: FunctionStats, after: FunctionStats, seconds: float) -> dict[str, Any]:
    hits, misses = after.hits - before.hits, after.misses - before.misses
    return {
        "files": hits + misses,
        "seconds": seconds,
        "hits": hits,
        "misses": misses,
        "hit_ratio": hits / (hits + misses),
        "seconds_saved": after.time_saved - before.time_saved,
    }


def _edit(cached: Any, original: Path) -> dict[str, Any]:
    """Change a temporary copy of a file behind the cache's back, then say so."""
    with tempfile.TemporaryDirectory(prefix="memo-demo-") as folder:
        copy = Path(folder, original.name)
        copy.write_bytes(original.read_bytes())
        before = cached(str(copy))
        with copy.open("ab") as file:
            file.write(b"\n\ndef added_by_memo_demo():\n    return None\n")
        unaware = cached(str(copy))
        invalidated = cached.invalidate(str(copy))
        after = cached(str(copy))
        cached.invalidate(str(copy))
    return {
        "file": original.name,
        "functions_before": before.functions,
        "functions_after_edit": unaware.functions,
        "invalidated": invalidated,
        "functions_after_invalidation": after.functions,
    }


def _stampede() -> dict[str, Any]:
    """Let threads ask for one absent key at the same moment; the source takes a while to answer."""
    start = threading.Barrier(THREADS)
    answers: list[Any] = []

    @cache_aside(ttl=600, store=MemoryStore(cleanup_interval=None), namespace="memo.demo.slow")
    def slow(question: str) -> object:
        time.sleep(0.1)
        return object()

    def ask() -> None:
        start.wait()
        answers.append(slow("the same"))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"threads": THREADS, "loads": slow.stats().loads, "distinct_answers": len(set(map(id, answers)))}


# The command.


def report(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that a person reads, none longer than 80 columns."""
    found, edit, stampede = result["found"], result["edit"], result["stampede"]
    yield f"memo {result['memo']}: the sources of Python {result['python']} through one cached function"
    yield ""
    yield f"{'pass':6}{'files':>7}{'time':>11}{'hits':>8}{'misses':>8}{'hit ratio':>12}{'saved':>11}{'entries':>9}"
    for each in result["passes"]:
        yield (
            f"{each['pass']:6}{each['files']:>7}{_duration(each['seconds']):>11}{each['hits']:>8}{each['misses']:>8}"
            f"{each['hit_ratio']:>12.1%}{_duration(each['seconds_saved']):>11}{each['entries']:>9}"
        )
    yield ""
    yield f"found: {found['lines']:,} lines, {found['functions']:,} functions, {found['classes']:,} classes"
    hardest = f"{found['hardest']['function']}() in {found['hardest']['file']}"
    yield f"most complex: {hardest:.46} (complexity {found['hardest']['complexity']})"
    yield ""
    yield f"edit a copy of {edit['file']:.40}, adding one function:"
    yield f"  before the edit           {edit['functions_before']:>5} functions"
    yield f"  after it                  {edit['functions_after_edit']:>5} functions   from memory: nobody said a word"
    yield f"  invalidate(path)          {edit['invalidated']!s:>5}"
    yield f"  the next call             {edit['functions_after_invalidation']:>5} functions   read again"
    yield ""
    yield f"stampede: {stampede['threads']} threads ask for one absent key at the same moment:"
    yield f"  loads                     {stampede['loads']:>5}"
    yield f"  distinct answers          {stampede['distinct_answers']:>5}"


def _duration(seconds: float) -> str:
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.2f} s"
    return f"{seconds * 1_000:.1f} ms" if seconds >= 0.001 else f"{seconds * 1_000_000:.0f} us"


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a whole number of at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="memo",
        description="One decorator that keeps a function's results: see what it does.",
        epilog=_HELP,
        formatter_class=layout,
    )
    parser.add_argument("--version", action="version", version=f"memo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    shown = commands.add_parser(
        "demo",
        help="analyse Python's standard library, cold and warm",
        description="Analyse the sources of Python's standard library through one cached function.",
        epilog=_DEMO_HELP,
        formatter_class=layout,
    )
    shown.add_argument("--limit", type=_count, metavar="N", help="read the first N files only (default: all)")
    shown.add_argument("--json", action="store_true", help="print one JSON object in the place of tables")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code.

    Args:
        argv: the arguments; None: those that the process was given.

    Raises:
        SystemExit: with 2 if the arguments are not allowed, with 0 after `--help` and `--version`.
    """
    try:
        options = _parser().parse_args(argv)
        folder = Path(sysconfig.get_path("stdlib"))
        files = sources(folder)[: options.limit]
        if not files:
            print("memo: this Python's standard library has no source files to read", file=sys.stderr)
            return 1
        result = demo(folder, files, sys.stderr if sys.stderr.isatty() else None)
        for line in [json.dumps(result, indent=2)] if options.json else report(result):
            print(line)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes once more at exit: into nothing, so that it has nothing to complain of.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return 0
