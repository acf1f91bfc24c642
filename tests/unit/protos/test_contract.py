"""The contract on the wire is in shape, documented, and the same in the committed stubs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

STUBS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def protos(project_root: Path) -> Path:
    return project_root / "protos"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a tool of this environment."""
    tool = Path(sys.executable).parent / str(command[0])
    return subprocess.run([tool, *command[1:]], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("check", [("lint",), ("format", "-d", "--exit-code")], ids=["lint", "format"])
def test_protos_are_in_shape(protos: Path, check: tuple[str, ...]) -> None:
    outcome = run("buf", *check, cwd=protos)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_committed_stubs_are_those_of_the_protos(protos: Path, tmp_path: Path) -> None:
    outcome = run("python", protos / "generate.py", tmp_path, cwd=protos)
    assert outcome.returncode == 0, outcome.stderr
    assert stubs(tmp_path) == stubs(protos), "stale stubs: run `make protos`"


def test_every_message_field_enum_value_and_method_is_documented(protos: Path, tmp_path: Path) -> None:
    nameless = [name for file in described(protos, tmp_path) for name in undocumented(file)]
    assert nameless == []


def test_stubs_import_as_the_package_that_is_shipped(protos: Path) -> None:
    for path in protos.glob("headrace/v1/*.proto"):
        assert import_module(f"headrace.v1.{path.stem}_pb2").DESCRIPTOR.package == "headrace.v1"


def stubs(directory: Path) -> dict[str, str]:
    found = (path for pattern in STUBS for path in directory.glob(f"headrace/v1/{pattern}"))
    return {path.name: path.read_text() for path in found}


def described(protos: Path, scratch: Path) -> list[descriptor_pb2.FileDescriptorProto]:
    """All our files as descriptors that keep their comments."""
    image = scratch / "image.binpb"
    files = [str(path) for path in protos.glob("headrace/v1/*.proto")]
    arguments = [f"--proto_path={protos}", "--include_source_info", f"--descriptor_set_out={image}"]
    outcome = run("python", "-m", "grpc_tools.protoc", *arguments, *files, cwd=protos)
    assert outcome.returncode == 0, outcome.stderr
    return list(descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file)


def undocumented(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments}
    for path, name in declared(file):
        if path not in commented:
            yield f"{file.name}: {name}"


def declared(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Paths (as SourceCodeInfo counts them) and names of all that a file declares."""
    for number, message in enumerate(file.message_type):
        yield from declared_in_message((4, number), message)
    for number, enum in enumerate(file.enum_type):
        yield from declared_in_enum((5, number), enum)
    for number, service in enumerate(file.service):
        yield (6, number), service.name
        for each, method in enumerate(service.method):
            yield (6, number, 2, each), f"{service.name}.{method.name}"


def declared_in_message(
    path: tuple[int, ...], message: descriptor_pb2.DescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, message.name
    for number, field in enumerate(message.field):
        yield (*path, 2, number), f"{message.name}.{field.name}"
    for number, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from declared_in_message((*path, 3, number), nested)
    for number, enum in enumerate(message.enum_type):
        yield from declared_in_enum((*path, 4, number), enum)


def declared_in_enum(
    path: tuple[int, ...], enum: descriptor_pb2.EnumDescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, enum.name
    for number, value in enumerate(enum.value):
        yield (*path, 2, number), f"{enum.name}.{value.name}"
