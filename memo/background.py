"""Runs jobs behind their callers' backs: a few daemon threads, a bounded queue; it never knows what a job does.

A job that is not worth waiting for must never cost a caller anything: where the queue is full or no thread can be
started, it is not run. The threads are daemons, so that they delay no exit, and end when there is nothing to do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from contextvars import Context
from typing import Final

from .forks import fork_safe_lock, in_child
from .stats import logger

__all__ = ["Background", "background"]

WORKERS: Final = 4
"""Threads that run jobs at the same time."""

LONGEST: Final = 1_000
"""Jobs that may wait; more are declined."""


class Background:
    """A queue of jobs, each known by a mark: of two with equal marks the second is declined until the first is done."""

    def __init__(self) -> None:
        # Guards the fields below; not held while a job runs.
        self._lock = fork_safe_lock()
        self._forget()
        in_child(self._forget)

    def _forget(self) -> None:
        self._jobs: deque[tuple[Hashable, Callable[[], object]]] = deque()
        self._marks: set[Hashable] = set()  # of jobs that wait or run
        self._workers = 0
        self._idle = threading.Condition(self._lock)

    def submit(self, mark: Hashable, job: Callable[[], object]) -> bool:
        """Have a job run soon, in an empty context; return False, and do nothing, if that cannot be.

        Args:
            mark: what the job is about; there is at most one of a kind.
            job: is called without arguments; what it raises is logged.
        """
        with self._lock:
            if mark in self._marks or len(self._jobs) >= LONGEST:
                return False
            self._marks.add(mark)
            self._jobs.append((mark, job))
            if self._workers >= WORKERS:
                return True
            self._workers += 1
        try:
            threading.Thread(target=self._work, name="memo-refresh", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter is about to end
            with self._lock:
                self._workers -= 1
                self._idle.notify_all()
                if (mark, job) in self._jobs:  # else another worker has it
                    self._jobs.remove((mark, job))
                    self._marks.discard(mark)
                    return False
        return True

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._workers -= 1
                    self._idle.notify_all()
                    return
                mark, job = self._jobs.popleft()
            try:
                Context().run(job)
            except BaseException:  # noqa: BLE001 - one job's end is not the worker's
                logger.exception("a background job failed")
            with self._lock:
                self._marks.discard(mark)
            del mark, job  # nothing of the last one is kept while waiting for the lock

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until every job is done; return False if that takes longer than `timeout` seconds."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._workers, timeout)


background = Background()
"""The one queue of the process; a forked child begins with an empty one."""
