"""The default model, against implementations that are not ours."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from services.common.models import ModelDirectory
from services.common.models.manifest import has_same_content

pytestmark = pytest.mark.smollm2
GOLDEN = Path(__file__).parents[2] / "data" / "smollm2_ids.json"


def test_ids_are_those_of_llama_cpp(smollm2: ModelDirectory) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2.tokenizer_path))
    for case in json.loads(GOLDEN.read_text())["cases"]:
        assert tokenizer.encode(case["text"]).ids == case["ids"], case["text"]


def test_transformers_loads_the_tokenizer_and_agrees(smollm2: ModelDirectory) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2.path)
    for case in json.loads(GOLDEN.read_text())["cases"]:
        assert theirs(case["text"])["input_ids"] == case["ids"], case["text"]
    assert theirs.eos_token_id in smollm2.eos_ids


def test_the_cached_files_are_what_was_written(smollm2: ModelDirectory) -> None:
    assert has_same_content(smollm2.path)
    assert (smollm2.context_length, smollm2.vocab_size, smollm2.eos_ids) == (8192, 49152, (2,))


def test_transformers_answers_in_a_sentence(smollm2: ModelDirectory) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.path)
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.bfloat16)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt: Any = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "The capital of France is Paris" in tokenizer.decode(output[0])
