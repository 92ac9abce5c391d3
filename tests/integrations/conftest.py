"""Counters whose numbers are all different, and nothing else in the process that is counted."""

from __future__ import annotations

import importlib
import logging
import sys

import pytest

from memo import cache_aside, stats

SECRET = "hunter2-canary"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No function is decorated but those of the test."""
    monkeypatch.setattr(stats, "_functions", {})


@pytest.fixture
def counters(caplog):
    """Of a function `app.full`, to which everything happened that is counted."""
    caplog.set_level(logging.CRITICAL, "memo")
    made = stats.FunctionCounters("app.full")
    for counter, times in (
        (made.hits, 7),
        (made.misses, 6),
        (made.waits, 5),
        (made.stale, 4),
        (made.refreshes, 3),
        (made.refused, 2),
    ):
        for _ in range(times):
            counter.tick()
    made.durations += [0.25] * 9
    for reason in ("none", "ttl", "ttl"):
        made.uncached(reason)
    for kind in ("load", "load", "read"):
        made.error(kind, RuntimeError(SECRET), "advice")
    return made


@pytest.fixture
def full():
    """What `counters` has to show: by metric, and there by its one more label."""
    return {
        "calls": {"hit": 7, "miss": 6},
        "loads": {None: 9},
        "load_time": {None: 2.25},
        "waits": {None: 5},
        "stale_hits": {None: 4},
        "refreshes": {None: 3},
        "refused_fills": {None: 2},
        "uncached_results": {"none": 1, "ttl": 2},
        "errors": {"load": 2, "read": 1},
    }


@pytest.fixture
def product():
    """Make a decorated function of the one name that all of them have, and call it so that it has one hit."""

    def make():
        @cache_aside
        def made(x):
            return SECRET

        made(SECRET), made(SECRET)
        return made

    return make


@pytest.fixture
def import_without(monkeypatch):
    """Import a module of memo where a library is not installed."""

    def run(module, library):
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, library, None)
        importlib.import_module(module)

    return run
