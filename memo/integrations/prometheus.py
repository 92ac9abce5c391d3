"""memo's counters for Prometheus, read at each scrape; it never exports anything but names and numbers.

>>> from prometheus_client import CollectorRegistry, generate_latest
>>> registry = CollectorRegistry()
>>> collector = register(registry)
>>> "# TYPE memo_calls_total counter" in generate_latest(registry).decode()
True
"""

from __future__ import annotations

from collections.abc import Iterator

from .metrics import METRICS, Metric, Totals

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        'memo.integrations.prometheus needs prometheus-client: python -m pip install "memo-cache[prometheus]"'
    ) from error

__all__ = ["MemoCollector", "register"]


class MemoCollector(Collector):
    """The counters of all decorated functions of this process, as a collector for a registry of prometheus_client.

    Every metric is a counter named `memo_..._total` and has the label `function`, the qualified name.
    """

    def __init__(self) -> None:
        self._totals = Totals()

    def describe(self) -> list[CounterMetricFamily]:
        """Return the metrics without values, by which a registry knows their names."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the metrics with what has been counted until now."""
        rows = self._totals.read()
        for metric in METRICS:
            family = _family(metric)
            for name, row in rows.items():
                for value, count in metric.values(row).items():
                    family.add_metric([name] if metric.label is None else [name, value], count)
            yield family


def register(registry: CollectorRegistry = REGISTRY) -> MemoCollector:
    """Have a registry, and so all that scrape it, see memo's counters.

    Args:
        registry: the client's own default, or another.

    Returns:
        The collector, which `registry.unregister` takes away again.

    Raises:
        ValueError: the registry has one already.
    """
    collector = MemoCollector()
    registry.register(collector)
    return collector


def _family(metric: Metric) -> CounterMetricFamily:
    name = f"memo_{metric.name}" + ("_seconds" if metric.unit == "s" else "")
    return CounterMetricFamily(name, metric.help, labels=["function", *([metric.label] if metric.label else [])])
