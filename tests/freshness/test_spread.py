"""Jitter and early refresh: random on purpose, so what is tested is the distribution, with a seed."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memo import DEFAULT, MemoryStore, cache_aside
from memo.background import background
from memo.entry import Life
from memo.policy import Policy

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def _seeded():
    state = random.getstate()
    random.seed(20261122)
    print("seed 20261122")
    yield
    random.setstate(state)


def kolmogorov(samples, distribution):
    """The largest distance between the samples' distribution and the expected one, times the root of their number."""
    ordered = sorted(samples)
    count = len(ordered)
    distance = max(
        max(abs(distribution(x) - number / count), abs(distribution(x) - (number + 1) / count))
        for number, x in enumerate(ordered)
    )
    return distance * math.sqrt(count)


def policy(**options):
    return Policy(**{"ttl": 60, "cache_none": False, "cache_if": None, "name": "f", **options})


@pytest.mark.parametrize(("took", "beta"), [(0.5, 1.0), (2.0, 1.0), (1.0, 3.0)])
def test_refresh_times_have_the_distribution_of_the_paper(took, beta):
    """XFetch: a read at t refreshes if t - took * beta * log(random) >= end: with exp(-(end - t) / (took * beta))."""
    early = [policy(early_refresh=beta).life(60, None, took).early for _ in range(20_000)]
    assert kolmogorov(early, lambda x: 1 - math.exp(-x / (took * beta))) < 1.63  # 1 % of honest samples exceed it
    # The same against the formula itself, with a draw at the read, as the paper has it.
    for before in (0.25, 1.0, 2.5):
        drawn = sum(-took * beta * math.log(1 - random.random()) >= before for _ in range(20_000))
        ours = sum(each >= before for each in early)
        assert abs(drawn - ours) < 5 * math.sqrt(20_000 * 0.25)


def test_an_early_refresh_is_never_before_the_fill():
    assert {policy(early_refresh=1_000).life(0.001, None, 5.0).early for _ in range(100)} == {0.001}


def test_a_load_that_took_no_time_is_never_refreshed_early():
    assert policy(early_refresh=1).life(60, None, 0.0).early == 0.0


def test_jitter_shortens_by_a_share_that_is_spread_evenly():
    ttls = [policy(jitter=0.2).life(60, None, 1.0) for _ in range(20_000)]
    assert 48 < min(ttls) < 48.1
    assert 59.9 < max(ttls) <= 60
    assert kolmogorov(ttls, lambda x: (x - 48) / 12) < 1.63
    assert statistics.mean(ttls) == pytest.approx(54, abs=0.1)


@given(
    jitter=st.floats(0, 1),
    ttl=st.floats(0.001, 1e9),
    stale=st.floats(0.001, 1e6) | st.just(0),
    error=st.floats(0.001, 1e6) | st.just(0),
    beta=st.floats(0, 1_000),
    took=st.floats(0, 1e6),
)
def test_a_life_is_in_order_whatever_the_options(jitter, ttl, stale, error, beta, took):
    one = policy(jitter=jitter, stale_while_revalidate=stale, stale_if_error=error, early_refresh=beta)
    life = one.life(ttl, None, took)
    if one.windows:
        assert isinstance(life, Life)
        assert 0 <= life.early <= life.ttl <= ttl
        assert life.kept == max(stale, error) >= life.stale == stale
        assert life.ttl > 0
    else:
        assert 0 < life <= ttl
    assert one.life(DEFAULT, None, took) is None
    assert one.life(None, ttl, took) is None


def test_what_was_stored_together_does_not_expire_together(clock):
    store = MemoryStore(clock=clock, cleanup_interval=None)
    f = cache_aside(store=store, ttl=100, jitter=0.5)(lambda x: x)
    for x in range(200):
        f(x)
    left = [len(store.keys()) for _ in range(10) if clock.advance(10) or True]
    assert left[:4] == [200] * 4
    assert left[9] == 0
    assert 40 < left[6] < 160
    assert left == sorted(left, reverse=True)


def test_a_result_that_is_due_is_served_and_refreshed_behind(clock, monkeypatch):
    store = MemoryStore(clock=clock, cleanup_interval=None)
    calls = []
    f = cache_aside(store=store, ttl=100, early_refresh=1)(lambda x: calls.append(x) or len(calls))
    monkeypatch.setattr(Policy, "life", lambda self, ttl, default_ttl, took: Life(100.0, 30.0))
    assert f(7) == 1
    clock.advance(69.9)
    assert f(7) == 1
    assert background.drain(PATIENCE)
    assert len(calls) == 1
    clock.advance(0.2)
    assert store.get(f.key_for(7)) == 1
    assert f.ttl_left(7) == pytest.approx(29.9)
    assert f(7) == 1
    assert background.drain(PATIENCE)
    assert f(7) == 2
    stats = f.stats()
    assert (stats.hits, stats.misses, stats.stale_hits, stats.refreshes, stats.loads) == (3, 1, 0, 1, 2)


def test_nothing_is_due_without_early_refresh(clock):
    store = MemoryStore(clock=clock, cleanup_interval=None)
    f = cache_aside(store=store, ttl=100)(lambda x: x)
    f(7)
    clock.advance(99.999)
    f(7)
    assert f.stats().refreshes == 0


def test_an_entry_without_windows_in_a_function_with_them_is_a_plain_hit(clock):
    store = MemoryStore(clock=clock, cleanup_interval=None)
    f = cache_aside(store=store, ttl=lambda value: None if value == "for ever" else 10, early_refresh=1)(lambda x: x)
    assert [f("for ever"), f("for ever")] == ["for ever"] * 2
    clock.advance(1_000_000)
    assert f("for ever") == "for ever"
    assert (f.stats().hits, f.stats().refreshes) == (2, 0)


def test_a_slower_load_is_refreshed_earlier(clock, monkeypatch):
    """What is measured is the function's own time."""
    seen = []
    life = Policy.life
    monkeypatch.setattr(
        Policy, "life", lambda self, ttl, default, took: seen.append(took) or life(self, ttl, default, took)
    )
    times = iter([1.0, 3.5, 10.0, 10.25])
    monkeypatch.setattr("memo.drivers.time.perf_counter", lambda: next(times))
    f = cache_aside(store=MemoryStore(clock=clock, cleanup_interval=None), ttl=100, early_refresh=1)(lambda x: x)
    f(1), f(2)
    assert seen == [2.5, 0.25]
