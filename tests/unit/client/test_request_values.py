"""Values of options that no request can carry."""

from __future__ import annotations

from math import inf, nan

import pytest
from headrace.client import build_request


@pytest.mark.parametrize("seconds", [inf, -inf, nan, 1e300])
def test_a_deadline_that_is_no_time_is_refused_by_name(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^completion_deadline_s: "):
        build_request("x", completion_deadline_s=seconds)


@pytest.mark.parametrize(("option", "allowed"), [("latency_class", "interactive"), ("cache_scope", "tenant")])
def test_a_name_that_nothing_has_is_refused_with_those_that_are(option: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: 'quick' is not one of {allowed}, "):
        build_request("x", **{option: "quick"})
