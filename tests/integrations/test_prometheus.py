"""The counters as Prometheus sees them: through a server of the client library, read with its own parsers."""

from __future__ import annotations

import re
import urllib.request

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from memo import cache_aside
from memo.integrations.metrics import METRICS
from memo.integrations.prometheus import MemoCollector, register
from memo.stats import FunctionCounters

LABELS = {"calls": "result", "uncached_results": "reason", "errors": "kind"}


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def scrape(registry):
    """Fetch /metrics from a server on a free port, as Prometheus does."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    url = f"http://127.0.0.1:{server.server_port}/metrics"

    def fetch(accept="text/plain"):
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read().decode()

    yield fetch
    server.shutdown()
    server.server_close()
    thread.join(30)


def values(text):
    """What was scraped: by metric, and there by its one more label; of all functions."""
    found = {}
    for family in parse(text):
        for sample in family.samples:
            assert sample.labels.pop("function")
            name = re.fullmatch(r"memo_(\w+?)(_seconds)?_total", sample.name)[1]
            label = sample.labels.pop(LABELS[name]) if name in LABELS else None
            assert sample.labels == {}
            assert label not in found.setdefault(name, {}), "two samples of one series"
            found[name][label] = sample.value
    return found


def hits(scrape):
    return values(scrape())["calls"]["hit"]


def test_a_scrape_has_every_counter_of_a_function(registry, scrape, counters, full):
    register(registry)
    assert values(scrape()) == full


def test_the_next_scrape_has_what_was_counted_since(registry, scrape, counters, full):
    register(registry)
    scrape()
    counters.hits.tick()
    counters.uncached("cache_if")
    full["calls"]["hit"] += 1
    full["uncached_results"]["cache_if"] = 1
    assert values(scrape()) == full


def test_what_a_scrape_says_of_a_function_is_what_its_stats_say(registry, scrape):
    @cache_aside
    def function(x):
        return None if x == 3 else x

    register(registry)
    for x in (1, 1, 1, 2, 3):
        function(x)
    stats = function.stats()
    found = values(scrape())
    assert found["calls"] == {"hit": stats.hits, "miss": stats.misses} == {"hit": 2, "miss": 3}
    assert found["loads"] == {None: stats.loads}
    assert found["load_time"][None] == pytest.approx(stats.load_seconds)
    assert found["uncached_results"] == stats.uncached_by == {"none": 1}


def test_names_types_and_units_follow_the_conventions(registry, scrape, counters):
    register(registry)
    families = list(parse(scrape()))
    assert len(families) == len(METRICS)
    for family in families:
        assert family.type == "counter"
        assert re.fullmatch(r"memo_[a-z]+(_[a-z]+)*", family.name)
        assert re.fullmatch(r"[A-Z].+\.", family.documentation)
        assert all(sample.name == f"{family.name}_total" for sample in family.samples)
        assert all(sample.labels["function"] == "app.full" for sample in family.samples)
    assert [family.name for family in families if "seconds" in family.name] == ["memo_load_time_seconds"]


def test_openmetrics_has_the_same(registry, scrape, counters):
    register(registry)
    text = scrape("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    strict = {(each.name, *each.labels.values()): each.value for f in parse_openmetrics(text) for each in f.samples}
    plain = {(each.name, *each.labels.values()): each.value for f in parse(scrape()) for each in f.samples}
    assert strict == plain != {}


def test_functions_have_their_own_series_and_those_of_one_name_share_them(registry, scrape, product):
    @cache_aside
    def other(): ...

    other()
    kept = [product(), product()]
    register(registry)
    found = {
        (sample.labels["function"].rpartition(".")[2], sample.labels["result"]): sample.value
        for family in parse(scrape())
        for sample in family.samples
        if family.name == "memo_calls"
    }
    assert found == {("made", "hit"): 2, ("made", "miss"): 2, ("other", "hit"): 0, ("other", "miss"): 1}
    assert len(kept) == 2


def test_any_name_gets_through(registry, scrape):
    names = {'a."quoted"', "a.back\\slash", "a.line\nbreak", "a.ære", "a.f.<locals>.<lambda>"}
    kept = [FunctionCounters(name) for name in names]
    register(registry)
    assert {sample.labels["function"] for family in parse(scrape()) for sample in family.samples} == names
    assert len(kept) == len(names)


def test_no_argument_key_value_or_error_text_is_exported(registry, scrape, product, counters):
    kept = product()
    register(registry)
    assert "hunter2-canary" not in scrape()
    assert kept.stats().hits == 1


def test_scraping_changes_no_counter(registry, scrape, product):
    kept = product()
    register(registry)
    before = kept.stats()
    scrape()
    assert kept.stats() == before


# The registry.


def test_a_registry_without_functions_is_fine(registry, scrape):
    register(registry)
    assert values(scrape()) == {}


def test_a_registry_takes_one_collector_and_gives_it_back(registry, scrape, counters):
    collector = register(registry)
    assert isinstance(collector, MemoCollector)
    with pytest.raises(ValueError, match="memo_calls"):
        register(registry)
    registry.unregister(collector)
    assert values(scrape()) == {}
    registry.register(MemoCollector())
    assert values(scrape())["loads"] == {None: 9}


def test_without_a_registry_it_is_the_clients_own(counters):
    collector = register()
    try:
        assert REGISTRY.get_sample_value("memo_loads_total", {"function": "app.full"}) == 9
    finally:
        REGISTRY.unregister(collector)


def test_registering_reads_no_counters(registry, monkeypatch):
    collector = MemoCollector()
    monkeypatch.setattr(collector, "_totals", None)
    registry.register(collector)
    assert collector in registry._collector_to_names


def test_without_the_library_the_import_says_what_to_install(import_without):
    with pytest.raises(ImportError, match=r'needs prometheus-client: python -m pip install "memo-cache\[prometheus\]"'):
        import_without("memo.integrations.prometheus", "prometheus_client")
