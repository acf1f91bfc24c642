"""A model as a directory in Hugging Face's layout, and what the services ask of it."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from services.common.models.errors import ModelDamaged, ModelNotFound
from services.common.models.manifest import read_manifest, sha256_of


@dataclass(frozen=True)
class ModelDirectory:
    """A directory with config.json and tokenizer.json, and with the weights where they are needed.

    What is derived from the files is read once, at the first use.

    Raises, from every property that reads a file:
        ModelNotFound: the file is not there.
        ModelDamaged: it is no JSON, or not of the expected form.
    """

    path: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self._required_json("config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json; empty where there is none."""
        return self._optional_json("generation_config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json; empty where there is none."""
        return self._optional_json("tokenizer_config.json")

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer.json"

    @cached_property
    def tokenizer_json(self) -> bytes:
        """The bytes of tokenizer.json."""
        return self._bytes("tokenizer.json")

    @cached_property
    def chat_template(self) -> str | None:
        """The jinja2 source of the model's default chat template; None for a model without one."""
        separate = self.path / "chat_template.jinja"
        if separate.is_file():
            return separate.read_text(encoding="utf-8")
        template = self.tokenizer_config.get("chat_template")
        if isinstance(template, list):  # several by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return template if isinstance(template, str) else None

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that templates may name: bos_token, eos_token, unk_token, pad_token."""
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        values = {name: self.tokenizer_config.get(name) for name in names}
        texts = {name: v.get("content") if isinstance(v, dict) else v for name, v in values.items()}
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: generation_config.json's, else config.json's; may be none."""
        for source in (self.generation_config, self.config):
            if (value := source.get("eos_token_id")) is not None:
                return self._ids(value)
        return ()

    @cached_property
    def context_length(self) -> int:
        """Tokens, prompt and answer together."""
        value = self.config.get("max_position_embeddings")
        if not isinstance(value, int):
            raise ModelDamaged(f"{self.path / 'config.json'} lacks max_position_embeddings; add it")
        return value

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the embedding; the tokenizer may use fewer."""
        value = self.config.get("vocab_size")
        if not isinstance(value, int):
            raise ModelDamaged(f"{self.path / 'config.json'} lacks vocab_size; add it")
        return value

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The *.safetensors files in the order of their names: those of the index where there is one."""
        name = "model.safetensors.index.json"
        if index := self._optional_json(name):
            return tuple(self.path / file for file in sorted(self._files_of(index.get("weight_map"), name)))
        return tuple(sorted(self.path.glob("*.safetensors")))

    @cached_property
    def tokenizer_digest(self) -> bytes:
        """SHA-256 of tokenizer.json, 32 bytes."""
        return hashlib.sha256(self.tokenizer_json).digest()

    @cached_property
    def template_digest(self) -> bytes:
        """SHA-256 of the chat template and the special tokens it may name, 32 bytes; of "" without one."""
        if self.chat_template is None:
            return hashlib.sha256(b"").digest()
        value = {"template": self.chat_template, "special_tokens": self.special_tokens}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()

    @cached_property
    def weights_digest(self) -> bytes:
        """SHA-256 over config.json and the content of every weight file, 32 bytes.

        Reads all weights unless this cache wrote them: its manifest knows their digests.
        """
        manifest = read_manifest(self.path)
        known = {name: record.sha256 for name, record in manifest.files.items()} if manifest else {}
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in self.weight_files:
            digest.update(f"\0{path.name}\0{known.get(path.name) or sha256_of(path)}".encode())
        return digest.digest()

    def check(self, *, weights: bool) -> None:
        """Raise what is wrong with the directory now rather than at the first request."""
        if not self.config:
            raise ModelDamaged(f"{self.path / 'config.json'} is empty; download the model again")
        if not self.tokenizer_path.is_file():
            raise ModelNotFound(f"{self.path} has no tokenizer.json; save the model's fast tokenizer there")
        missing = [file.name for file in self.weight_files if not file.is_file()]
        if weights and (missing or not self.weight_files):
            what = missing[0] if missing else "*.safetensors"
            raise ModelNotFound(f"{self.path} has no {what}; Headrace loads weights from safetensors")

    def _ids(self, value: object) -> tuple[int, ...]:
        ids = value if isinstance(value, list) else [value]
        if not all(type(each) is int and each >= 0 for each in ids):
            raise ModelDamaged(f"{self.path}: eos_token_id must be an id or a list of ids, not {value!r}")
        return tuple(ids)

    def _files_of(self, weight_map: object, name: str) -> set[str]:
        listed = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        files = {file for file in listed if isinstance(file, str)}
        if not all(isinstance(file, str) for file in listed):
            raise ModelDamaged(f"{self.path / name} lacks the files of the weights; download it again")
        return files

    def _required_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self._bytes(name))
        except (ValueError, RecursionError) as error:
            raise ModelDamaged(f"{self.path / name} is no JSON ({error}); download it again") from error
        if not isinstance(value, dict):
            raise ModelDamaged(f"{self.path / name} holds no JSON object; download it again")
        return value

    def _optional_json(self, name: str) -> dict[str, Any]:
        return self._required_json(name) if (self.path / name).is_file() else {}

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ModelNotFound(f"{self.path} has no readable {name} ({reason})") from error
