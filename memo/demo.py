"""What `memo demo` shows: one cached function at work, in numbers; it never prints and knows nothing of terminals."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import __version__
from .background import background
from .decorator import cache_aside
from .errors import StoreError
from .stats import FunctionStats
from .stores import MemoryStore, PickleFileStore, Store
from .stores.logfile import LOCKS

__all__ = ["Measure", "again", "measure", "run", "sources"]

THREADS: Final = 8

SLOW: Final = 0.1
"""Seconds that a source takes to answer where the demo needs a slow one."""

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


def run(folder: Path, files: list[Path], watched: Iterable[Path], file: str | None = None) -> dict[str, Any]:
    """Run all parts of the demo; return what they found, ready for JSON.

    Args:
        folder: where the files are; they are named from there.
        files: what is read, at least one.
        watched: the same files, for the long part: whoever yields them sees how far that is.
        file: path of the file that the results are kept in; None: one that is gone afterwards.

    Raises:
        OptionError: there can be no such file.
        StoreError: it must not be used; the second process failed.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # what Python says of its own sources is not our subject
        store = _store(file, stack)
        cached = _cached(store)
        passes = []
        for name, each_file in (("cold", watched), ("warm", files)):
            found, numbers = _pass(name, cached, each_file)
            if name == "cold" and numbers["hits"]:
                numbers |= {"pass": "kept"}  # by an earlier run, in a file of the user's
            passes.append({**numbers, "entries": store.stats().size})
        if isinstance(store, PickleFileStore):
            passes.append(_restarted(store, files, cached.stats()))
        hardest = max(range(len(files)), key=lambda index: found[index].complexity)
        return {
            "memo": __version__,
            "python": platform.python_version(),
            "passes": passes,
            "file_size": store.stats().file_size if isinstance(store, PickleFileStore) else None,
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
            "stale": _stale(),
        }


def _store(file: str | None, stack: contextlib.ExitStack) -> Store:
    """Return the store of the first part, which is closed with the stack."""
    if file is None:
        if not LOCKS:
            return MemoryStore(max_size=None)
        file = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="memo-demo-")), "demo.memo")
    store = PickleFileStore(file)
    stack.callback(store.close)
    return store


def _cached(store: Store) -> Any:
    return cache_aside(ttl=600, store=store, namespace="memo.demo.measure")(measure)


def _pass(name: str, cached: Any, files: Iterable[Path]) -> tuple[list[Measure], dict[str, Any]]:
    """Ask for each of the files once; return the answers, and what the cache has done."""
    before, started = cached.stats(), time.perf_counter()
    found = [cached(str(path)) for path in files]
    seconds = time.perf_counter() - started
    return found, {"pass": name, "process": os.getpid(), **_compared(before, cached.stats(), seconds)}


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


# The second process.

_AGAIN: Final = "import sys; sys.path[:] = sys.argv[1:]; from memo.demo import again; again()"
"""What it runs: with this process's path, so that it finds the same modules whatever lies in the current folder."""


def _restarted(store: PickleFileStore, files: list[Path], stats: FunctionStats) -> dict[str, Any]:
    """Ask for each of the files in a Python process of its own, which finds the file of this one."""
    wanted = json.dumps({"file": store.path, "files": list(map(str, files))})
    done = subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-c", _AGAIN, *sys.path], input=wanted, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StoreError(f"the second process failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    numbers: dict[str, Any] = json.loads(done.stdout)
    if stats.loads:  # it has never loaded, and so does not know what that would have taken
        numbers["seconds_saved"] = numbers["hits"] * stats.load_seconds / stats.loads
    return numbers


def again() -> None:
    """Do what the second process does: what is wanted comes from standard input, and what came of it goes out."""
    wanted = json.load(sys.stdin)
    started = time.perf_counter()
    with contextlib.closing(PickleFileStore(wanted["file"])) as store:
        cached = _cached(store)
        opened = time.perf_counter() - started
        _, numbers = _pass("restart", cached, map(Path, wanted["files"]))
        numbers["seconds"] += opened
        json.dump({**numbers, "entries": store.stats().size}, sys.stdout)


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
        time.sleep(SLOW)
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


def _stale() -> dict[str, Any]:
    """Let a result grow old, and ask for it: the old one is served at once, and a new one is loaded behind it."""
    clock, numbers = _Clock(), itertools.count(1)
    store = MemoryStore(cleanup_interval=None, clock=clock)

    @cache_aside(ttl=60, stale_while_revalidate=600, store=store, namespace="memo.demo.edition")
    def edition() -> int:
        time.sleep(SLOW)
        return next(numbers)

    loaded, load_seconds = _timed(edition)
    clock.now += 90
    served, serve_seconds = _timed(edition)
    background.drain(timeout=60)
    after, next_seconds = _timed(edition)
    return {
        "loaded": loaded,
        "load_seconds": load_seconds,
        "served_when_stale": served,
        "serve_seconds": serve_seconds,
        "refreshes": edition.stats().refreshes,
        "served_next": after,
        "next_seconds": next_seconds,
    }


class _Clock:
    """A clock that stands still until it is moved, so that nobody has to wait for a ttl to be over."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


def _timed(function: Callable[[], int]) -> tuple[int, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started
