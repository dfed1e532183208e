"""Reading what a metrics endpoint says, with the parser of the Prometheus project."""

import urllib.request
from collections.abc import Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Scrape:
    """One answer of an endpoint."""

    def __init__(self, text: str) -> None:
        self.text = text
        parsed = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        self.families: dict[str, Metric] = {one.name: one for one in parsed}
        self.samples = [sample for one in self.families.values() for sample in one.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name whose labels are or contain these."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str) -> list[Mapping[str, str]]:
        """The labels of every sample of that name."""
        return [sample.labels for sample in self.samples if sample.name == name]

    def exemplars(self, name: str) -> list[Any]:
        """The exemplars of the samples of that name."""
        return [
            sample.exemplar for sample in self.samples if sample.name == name and sample.exemplar
        ]


def scrape(url: str, accept: str = OPENMETRICS) -> Scrape:
    """Fetch and parse."""
    return Scrape(fetch(url, accept)[0])


def fetch(url: str, accept: str = OPENMETRICS) -> tuple[str, str]:
    """Body and content type."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]
