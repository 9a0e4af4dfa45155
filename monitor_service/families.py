"""Metric families of one scrape."""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric


class Families:
    """Families named `sgg_…`, each with the label `run`.

    Example: `families.gauge("queue_groups", "Groups on a stream", 3, stream="prompts")`
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, GaugeMetricFamily] = {}
        self._counters: dict[str, CounterMetricFamily] = {}

    def gauge(self, name: str, text: str, value: float, **labels: str) -> None:
        """Add a value to `sgg_<name>`. All of one name have the same text and labels."""
        full = f"sgg_{name}"
        if full not in self._gauges:
            self._gauges[full] = GaugeMetricFamily(full, text, labels=["run", *labels])
        self._gauges[full].add_metric([self._run, *labels.values()], value)

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        """The same for a number that only rises: `sgg_<name>_total`."""
        full = f"sgg_{name}"
        if full not in self._counters:
            self._counters[full] = CounterMetricFamily(full, text, labels=["run", *labels])
        self._counters[full].add_metric([self._run, *labels.values()], value)

    def __iter__(self) -> Iterator[Metric]:
        yield from self._gauges.values()
        yield from self._counters.values()
