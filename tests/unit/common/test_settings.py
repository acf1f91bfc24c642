from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from services.common.settings import (
    Address,
    ListenAddress,
    ServiceSettings,
    SettingsError,
    load_or_exit,
    unknown_variables,
)


class Bounds(BaseModel, extra="forbid"):
    """A group of settings."""

    at_most: int = 1


class ExampleSettings(ServiceSettings):
    """Settings of a service that exists only here."""

    service: ClassVar[str] = "example"
    count: int = Field(default=1, ge=1, description="how many")
    names: list[str] = Field(default=[], description="which")
    bounds: Bounds = Field(default=Bounds(), description="how far")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADRACE_CONFIG", "HEADRACE_COUNT", "HEADRACE_EXAMPLE_COUNT"):
        monkeypatch.delenv(name, raising=False)


def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(content)
    monkeypatch.setenv("HEADRACE_CONFIG", str(path))


def test_each_source_beats_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ExampleSettings.load([]).count == 1
    configuration(tmp_path, monkeypatch, "[mesh]\ncount = 2\n")
    assert ExampleSettings.load([]).count == 2
    configuration(tmp_path, monkeypatch, "[mesh]\ncount = 2\n[example]\ncount = 3\n")
    assert ExampleSettings.load([]).count == 3
    monkeypatch.setenv("HEADRACE_COUNT", "4")
    assert ExampleSettings.load([]).count == 4
    monkeypatch.setenv("HEADRACE_EXAMPLE_COUNT", "5")
    assert ExampleSettings.load([]).count == 5
    assert ExampleSettings.load(["--count", "6"]).count == 6


def test_a_wrong_value_is_one_line_with_setting_value_and_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_EXAMPLE_COUNT", "0")
    with pytest.raises(SystemExit) as ended:
        load_or_exit(ExampleSettings, [])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("HEADRACE_EXAMPLE_COUNT", "--count", "'0'", "greater than or equal to 1"):
        assert part in line


def test_every_wrong_setting_has_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_EXAMPLE_COUNT", "0")
    monkeypatch.setenv("HEADRACE_EXAMPLE_BOUNDS", '{"at_most": "x"}')
    with pytest.raises(SystemExit):
        load_or_exit(ExampleSettings, [])
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("headrace: HEADRACE_EXAMPLE_COUNT ")
    assert second.startswith("headrace: HEADRACE_EXAMPLE_BOUNDS ")


def test_a_variable_that_sets_nothing_is_known() -> None:
    given = ["HEADRACE_EXAMPLE_COUNT", "HEADRACE_EXAMPLE_CUONT", "HEADRACE_OTHER_X", "HEADRACE_COUNT", "PATH"]
    assert unknown_variables(ExampleSettings, given) == ["HEADRACE_EXAMPLE_CUONT"]


def test_a_wrong_setting_of_a_group_is_named_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_EXAMPLE_BOUNDS", '{"at_most": "x"}')
    with pytest.raises(SettingsError, match=r"^HEADRACE_EXAMPLE_BOUNDS \(--bounds\.at-most\) = 'x': "):
        ExampleSettings.load([])
    monkeypatch.setenv("HEADRACE_EXAMPLE_BOUNDS", '{"at_least": 1}')
    with pytest.raises(SettingsError, match=r"^bounds\.at_least is not a setting of example$"):
        ExampleSettings.load([])


def test_a_group_that_is_no_json_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_EXAMPLE_BOUNDS", "x")
    with pytest.raises(SettingsError, match=r"^HEADRACE_EXAMPLE_BOUNDS: is not JSON$"):
        ExampleSettings.load([])


@pytest.mark.parametrize("wrong", ["--cuont=3", "cuont", "--count"])
def test_a_flag_that_is_none_is_one_line_that_says_where_all_are(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_or_exit(ExampleSettings, [wrong])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.count("\n") == 1
    assert wrong.partition("=")[0] in told
    assert "`python -m services.example --help` lists all" in told


def test_a_misspelt_setting_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration(tmp_path, monkeypatch, "[example]\ncuont = 3\n")
    with pytest.raises(SettingsError, match="cuont is not a setting of example"):
        ExampleSettings.load([])


@pytest.mark.parametrize("content", ["[example\n", "example = 3\n", "[exmaple]\ncount = 3\n", "count = 3\n"])
def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    configuration(tmp_path, monkeypatch, content)
    with pytest.raises(SettingsError, match="HEADRACE_CONFIG"):
        ExampleSettings.load([])


def test_a_missing_mesh_secret_names_the_setting() -> None:
    with pytest.raises(SettingsError, match="HEADRACE_EXAMPLE_MESH_SECRET_FILE"):
        ExampleSettings.load([]).mesh_secret()


def test_the_file_can_be_named_by_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration(tmp_path, monkeypatch, "[example]\ncount = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("[example]\ncount = 9\n")
    assert ExampleSettings.load([f"--config={other}"]).count == 9


GOOD = [
    "127.0.0.1:1",
    "router-1.mesh:65535",
    "my_host:50061",
    "[::1]:50051",
    "dns:///mesh:50062",
    "unix:/run/a.sock",
]
BAD = [
    "nonsense",
    ":::",
    "host:99999",
    "host:-1",
    "host:",
    ":50051",
    "host:http",
    "::1:50051",
    "host:٣",
    "unix:",
    "",
]


@pytest.mark.parametrize("address", GOOD)
def test_an_address_is_host_and_port_or_a_socket(address: str) -> None:
    for kind in (Address, ListenAddress):
        assert TypeAdapter(kind).validate_python(address) == address


@pytest.mark.parametrize("address", BAD)
def test_what_is_no_address_is_refused(address: str) -> None:
    for kind in (Address, ListenAddress):
        with pytest.raises(ValidationError, match="host:port"):
            TypeAdapter(kind).validate_python(address)


def test_only_who_listens_may_take_any_port() -> None:
    assert TypeAdapter(ListenAddress).validate_python("127.0.0.1:0") == "127.0.0.1:0"
    with pytest.raises(ValidationError, match="1 to 65535"):
        TypeAdapter(Address).validate_python("127.0.0.1:0")
