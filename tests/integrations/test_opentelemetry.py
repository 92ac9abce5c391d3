"""The counters as OpenTelemetry sees them: through its SDK and a reader in memory."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from memo import cache_aside
from memo.integrations.metrics import METRICS
from memo.integrations.opentelemetry import instrument

ATTRIBUTES = {"memo.calls": "memo.result", "memo.uncached_results": "memo.reason", "memo.errors": "error.type"}


def opened(**options):
    reader = InMemoryMetricReader(**options)
    return MeterProvider(metric_readers=[reader], shutdown_on_exit=False), reader


@pytest.fixture
def provider_and_reader():
    provider, reader = opened()
    yield provider, reader
    provider.shutdown()


@pytest.fixture
def provider(provider_and_reader):
    return provider_and_reader[0]


@pytest.fixture
def reader(provider_and_reader):
    return provider_and_reader[1]


def metrics(reader):
    data = reader.get_metrics_data()
    if data is None:
        return []
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    assert {scope.scope.name for scope in scopes} <= {"memo"}
    return [metric for scope in scopes for metric in scope.metrics]


def values(reader):
    """What was collected: by metric, and there by its one more attribute."""
    found = {}
    for metric in metrics(reader):
        for point in metric.data.data_points:
            attributes = dict(point.attributes)
            assert attributes.pop("code.function.name")
            label = attributes.pop(ATTRIBUTES[metric.name]) if metric.name in ATTRIBUTES else None
            assert attributes == {}
            series = found.setdefault(metric.name.removeprefix("memo."), {})
            assert label not in series, "two points of one series"
            series[label] = point.value
    return found


def test_a_collection_has_every_counter_of_a_function(provider, reader, counters, full):
    instrument(provider)
    assert values(reader) == full


def test_the_next_collection_has_what_was_counted_since(provider, reader, counters, full):
    instrument(provider)
    values(reader)
    counters.hits.tick()
    counters.error("fill", RuntimeError(), "advice")
    full["calls"]["hit"] += 1
    full["errors"]["fill"] = 1
    assert values(reader) == full


def test_what_a_collection_says_of_a_function_is_what_its_stats_say(provider, reader):
    @cache_aside
    def function(x):
        return x

    instrument(provider)
    for x in (1, 1, 1, 2):
        function(x)
    found, stats = values(reader), function.stats()
    assert found["calls"] == {"hit": stats.hits, "miss": stats.misses} == {"hit": 2, "miss": 2}
    assert found["load_time"][None] == pytest.approx(stats.load_seconds)


def test_names_units_and_kinds_follow_the_conventions(provider, reader, counters):
    instrument(provider)
    found = metrics(reader)
    assert len(found) == len(METRICS)
    for metric in found:
        assert re.fullmatch(r"memo\.[a-z]+(_[a-z]+)*", metric.name)
        assert metric.unit == "s" if metric.name == "memo.load_time" else re.fullmatch(r"\{[a-z]+\}", metric.unit)
        assert re.fullmatch(r"[A-Z].+\.", metric.description)
        assert metric.data.is_monotonic
        assert metric.data.aggregation_temporality == AggregationTemporality.CUMULATIVE
        assert {point.attributes["code.function.name"] for point in metric.data.data_points} == {"app.full"}


def test_a_reader_of_differences_gets_differences(counters):
    provider, reader = opened(preferred_temporality={ObservableCounter: AggregationTemporality.DELTA})
    instrument(provider)
    assert values(reader)["calls"] == {"hit": 7, "miss": 6}
    counters.hits.tick()
    assert values(reader)["calls"] == {"hit": 1, "miss": 0}
    provider.shutdown()


def test_functions_of_one_name_are_added_up(provider, reader, product):
    kept = [product(), product()]
    instrument(provider)
    assert values(reader)["calls"] == {"hit": 2, "miss": 2}
    assert len(kept) == 2


def test_no_argument_key_value_or_error_text_is_exported(provider, reader, product, counters):
    kept = product()
    instrument(provider)
    assert "hunter2-canary" not in reader.get_metrics_data().to_json()
    assert kept.stats().hits == 1


def test_doing_it_again_changes_nothing(provider, reader, counters, full, caplog):
    instrument(provider)
    instrument(provider)
    assert values(reader) == full
    assert caplog.records == []


def test_two_providers_see_the_same(provider, reader, counters, full):
    second, its_reader = opened()
    for each in (provider, second):
        instrument(each)
    assert values(reader) == values(its_reader) == full
    second.shutdown()


@pytest.mark.parametrize("order", ["before", "after"])
def test_without_a_provider_it_is_the_global_one_whenever_that_is_set(order):
    """In a process of its own, since a process sets the global provider once."""
    code = f"""if True:
        from opentelemetry.metrics import set_meter_provider
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        import memo
        from memo.integrations.opentelemetry import instrument

        reader = InMemoryMetricReader()
        {"instrument()" if order == "before" else ""}
        set_meter_provider(MeterProvider(metric_readers=[reader]))
        {"instrument()" if order == "after" else ""}

        @memo.cache_aside
        def square(x):
            return x * x

        square(2), square(2)
        data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
        (calls,) = [metric for metric in data.metrics if metric.name == "memo.calls"]
        print(sorted((dict(p.attributes)["memo.result"], p.value) for p in calls.data.data_points))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[('hit', 1), ('miss', 1)]\n"
    assert done.stderr == ""


def test_without_the_library_the_import_says_what_to_install(import_without):
    with pytest.raises(ImportError, match=r'needs opentelemetry-api: python -m pip install "memo-cache\[opentel'):
        import_without("memo.integrations.opentelemetry", "opentelemetry.metrics")
