"""Profiles for Hypothesis, and a clean process-wide state for every test."""

from __future__ import annotations

import gc
import os
import re
import sys
import threading

import pytest
from hypothesis import HealthCheck, settings

from memo import config, places
from memo.flight import inside
from memo.testing import ManualClock

pytest.register_assert_rewrite("race")  # in shared/: so that a failure shows both sides

_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("quick", max_examples=100, stateful_step_count=40, derandomize=True, database=None, **_COMMON)
settings.register_profile("nightly", max_examples=5_000, stateful_step_count=80, **_COMMON)

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
settings.load_profile("nightly" if NIGHTLY else "quick")


def pytest_report_header() -> str:
    return f"memo profile: {'nightly' if NIGHTLY else 'quick'}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Several processes can share the tests only if they call them alike: without an object's address."""
    plain = re.sub(r" at 0x[0-9a-f]+", "", item.nodeid)
    if hasattr(item, "_nodeid"):
        item._nodeid = plain
    else:  # from pytest 9.2 on
        item._id = type(item._id).parse(plain)


def pytest_collection_finish() -> None:
    """Many tests ask the collector for all that is gone: let it not look at thousands of collected tests each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _left_alone_by_the_collector() -> None:
    """So let it not look either at what the tests before have left: reports, examples, modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1_000.0)


@pytest.fixture
def untraced():
    """Measure no coverage: its own lock survives neither an exception at any moment nor a fork beside threads."""
    trace, hook = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    yield
    threading.settrace(hook)  # type: ignore[arg-type]
    sys.settrace(trace)


@pytest.fixture(autouse=True)
def _fresh_default_store():
    """Stores that were made for a name or a URL do not outlive the test, nor does what was configured."""
    config._stores.clear()
    yield
    assert places._layers == []  # whatever the test has disabled or overridden is over
    if config._said is not config._NOTHING:
        config.configure()
    config._current, config._said = None, config._NOTHING
    config._asked.clear()
    config._stores.clear()
    assert inside.get() is None  # no test leaves this thread within a load that is over
