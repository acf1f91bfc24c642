"""What a service's /metrics say."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

TIMEOUT_S = 5.0


def scrape(url: str) -> list[Sample]:
    """All samples. Blocks for TIMEOUT_S at most; raises OSError."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return [sample for family in families for sample in family.samples]


def total(samples: Iterable[Sample], name: str, **labels: str) -> float:
    """The sum over all samples of a name that have these labels."""
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())
