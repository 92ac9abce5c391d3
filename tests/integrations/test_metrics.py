"""Counters that go on for ever: what becomes of functions that are gone, and of readers that overtake each other."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

from memo import stats
from memo.integrations.metrics import METRICS, Totals
from memo.stats import FunctionCounters, FunctionStats


def only(rows: dict[str, FunctionStats]) -> FunctionStats:
    (row,) = rows.values()
    return row


def test_what_a_function_that_is_gone_had_counted_stays(product):
    totals, kept = Totals(), product()
    before = totals.read()
    del kept
    gc.collect()
    assert stats.functions() == []
    assert totals.read() == before
    assert totals.read() == before  # and is not added again
    assert only(before).hits == 1


def test_the_next_function_of_that_name_goes_on_from_there(product):
    totals = Totals()
    for number in range(1, 6):
        kept = product()
        assert only(totals.read()).hits == number
        del kept
        gc.collect()


def test_what_was_counted_after_the_last_look_goes_with_the_function(product):
    """The known limit: nothing holds the counters of a function that is gone."""
    totals, kept = Totals(), product()
    totals.read()
    kept("more"), kept("more")
    del kept
    gc.collect()
    assert only(totals.read()).hits == 1


def test_no_value_of_any_metric_ever_goes_down(product):
    totals = Totals()
    last: dict[tuple[str, str, str], float] = {}
    living = []
    for step in range(30):
        living.append(product())
        if step % 3 == 2:
            del living[step % 2]
            gc.collect()
        rows = totals.read()
        now = {
            (metric.name, name, label): value
            for metric in METRICS
            for name, row in rows.items()
            for label, value in metric.values(row).items()
        }
        assert all(now[series] >= value for series, value in last.items())
        last = now
    assert [value for (metric, _, label), value in last.items() if (metric, label) == ("calls", "hit")] == [30]


def test_totals_keep_no_function_and_no_counters_alive(product):
    totals, kept = Totals(), product()
    counters = weakref.ref(stats.functions()[0])
    totals.read()
    del kept
    gc.collect()
    assert counters() is None
    totals.read()
    assert totals._alive == {}


def test_a_reader_that_is_overtaken_leaves_no_older_numbers_behind(monkeypatch):
    """What must not be: 1. A reads 0   2. a hit   3. B reads 1 and says so   4. A writes down 0   5. the function goes.

    Its last known number would be 0 then. So B has to wait until A is done.
    """
    totals = Totals()
    counters = FunctionCounters("app.f")
    a_has_read, b_has_read = threading.Event(), threading.Event()
    snapshot = FunctionCounters.snapshot

    def slowly(self):
        taken = snapshot(self)
        if threading.current_thread() is a:
            a_has_read.set()
            b_has_read.wait(0.2)  # with the lock, B cannot: this is how long a failure has to show itself
        return taken

    monkeypatch.setattr(FunctionCounters, "snapshot", slowly)
    results = []

    def read_b():
        results.append(totals.read()["app.f"].hits)
        b_has_read.set()

    a, b = threading.Thread(target=totals.read), threading.Thread(target=read_b)
    a.start()
    assert a_has_read.wait(30)
    counters.hits.tick()
    b.start()
    a.join(30)
    b.join(30)
    assert results == [1]
    del counters
    gc.collect()
    assert totals.read()["app.f"].hits == 1


def test_every_number_that_is_counted_is_exported():
    row = FunctionStats(1, 2, 3, 4.0, 5, 6, uncached_by={"none": 7}, stale_hits=8, refreshes=9, errors={"read": 10})
    exported = sorted(value for metric in METRICS for value in metric.values(row).values())
    assert exported == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_the_library_does_not_need_the_clients():
    code = """if True:
        import sys
        import memo
        import memo.integrations

        clients = [name for name in sys.modules if name.startswith(("prometheus_client", "opentelemetry"))]
        sys.exit(bool(clients))
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_has_several_values_only_by_a_label(metric):
    row = FunctionStats(1, 2, 3, 4.0, 5, 6, uncached_by={"none": 1, "ttl": 1}, errors={"read": 1, "fill": 1})
    assert (list(metric.values(row)) == [""]) == (metric.label is None)
