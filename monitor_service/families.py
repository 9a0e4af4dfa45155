"""Metric families of one scrape."""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

_Family = GaugeMetricFamily | CounterMetricFamily


class Families:
    """Families named `sgg_…`, each with the label `run`.

    Example: `families.gauge("queue_groups", "Groups on a stream", 3, stream="prompts")`
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._families: dict[str, _Family] = {}

    def gauge(self, name: str, text: str, value: float, **labels: str) -> None:
        """Add a value to `sgg_<name>`. All of one name have the same text and labels."""
        self._add(GaugeMetricFamily, name, text, value, labels)

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        """The same for a number that only rises: `sgg_<name>_total`."""
        self._add(CounterMetricFamily, name, text, value, labels)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())

    def _add(
        self, kind: type[_Family], name: str, text: str, value: float, labels: dict[str, str]
    ) -> None:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = kind(f"sgg_{name}", text, labels=["run", *labels])
        family.add_metric([self._run, *labels.values()], value)
