"""memo's counters for OpenTelemetry, by its API alone; it never exports anything but names and numbers.

>>> instrument()  # once, wherever the application sets up its metrics
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from .metrics import METRICS, Metric, Totals

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
except ImportError as error:
    raise ImportError(
        'memo.integrations.opentelemetry needs opentelemetry-api: python -m pip install "memo-cache[opentelemetry]"'
    ) from error

__all__ = ["instrument"]

FUNCTION: Final = "code.function.name"
"""The attribute that OpenTelemetry's conventions have for a qualified name."""

_ATTRIBUTES: Final = {"result": "memo.result", "reason": "memo.reason", "kind": "error.type"}


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Have a meter provider, and so all its readers, see memo's counters; doing it again changes nothing.

    Args:
        meter_provider: None: the global one, which may be set later too.
    """
    meter = (meter_provider or get_meter_provider()).get_meter("memo")
    totals = Totals()
    for metric in METRICS:
        meter.create_observable_counter(f"memo.{metric.name}", [_observer(metric, totals)], metric.unit, metric.help)


def _observer(metric: Metric, totals: Totals) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(options: CallbackOptions) -> Iterator[Observation]:
        for name, row in totals.read().items():
            for value, count in metric.values(row).items():
                attributes = {FUNCTION: name}
                if metric.label is not None:
                    attributes[_ATTRIBUTES[metric.label]] = value
                yield Observation(count, attributes)

    return observe
