"""The page of settings shows every setting of every service as it is now."""

from __future__ import annotations

from docs.settings_page import PAGE, described, page, settings_classes
from services.common.settings import ServiceSettings, variable


def test_committed_page_is_that_of_the_settings() -> None:
    assert PAGE.read_text() == page(), "stale page: run `make docs`"


def test_every_setting_says_what_it_is() -> None:
    for kind in settings_classes().values():
        for name, field in kind.model_fields.items():
            assert described(kind, name) or field.annotation.__doc__, f"{kind.service}: {name}"


def test_every_setting_of_a_service_stands_on_the_page_once() -> None:
    shown = page()
    for kind in settings_classes().values():
        for name in kind.model_fields.keys() - ServiceSettings.model_fields.keys():
            assert shown.count(f"| `{variable(kind, name)}` |") == 1
