"""Locks and state that survive `os.fork`; this module knows nothing of what they guard.

A child of fork has one thread, and a lock that another thread held at that moment would stay locked in it for ever. So
every lock of memo is made here: all of them are taken before a fork and released on both sides, and what a child must
not inherit is dropped in it. The few under which another one may be taken are called outer and come first; else no code
of memo takes one of these locks while it holds another.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

__all__ = ["LOCKED", "fork_safe_lock", "in_child", "lock_within"]

LOCKED: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether there is no GIL that makes a few bytecodes without a call one step for all other threads."""

# Weakly, by id. Plain dicts, because a list of their values is made in one step while other threads make locks.
_outer: dict[int, weakref.ref[Any]] = {}
_inner: dict[int, weakref.ref[Any]] = {}
_held: list[Any] = []  # the locks that the fork in progress has taken; used by the forking thread alone
_callbacks: list[Callable[[], object]] = []


def fork_safe_lock(outer: bool = False) -> threading.RLock:
    """Return a new re-entrant lock that no fork can leave locked in the child.

    Args:
        outer: an inner lock, and no outer one, may be taken while it is held.
    """
    lock = threading.RLock()
    locks, ident = _outer if outer else _inner, id(lock)
    locks[ident] = weakref.ref(lock, partial(locks.pop, ident))
    return lock


def lock_within() -> threading.Lock:
    """Return a new lock, not re-entrant, to be held only within one of `fork_safe_lock`: no fork finds it held."""
    return threading.Lock()


def in_child(callback: Callable[[], object]) -> None:
    """Have `callback` called in every child of fork, after the locks are free again."""
    _callbacks.append(callback)


def _before() -> None:
    for reference in [*_outer.values(), *_inner.values()]:
        lock = reference()
        if lock is not None:
            lock.acquire()
            _held.append(lock)


def _release() -> None:
    while _held:
        _held.pop().release()


def _after_in_child() -> None:
    _release()
    errors = []
    for callback in _callbacks:
        try:
            callback()
        except Exception as error:  # noqa: BLE001, PERF203 - what the others drop must not stay because of one
            errors.append(error)
    if errors:
        raise errors[0]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_after_in_child)
