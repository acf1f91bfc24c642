"""Greedy ids of an independent implementation: `transformers` on the same weights, in fp32.

Generating them takes minutes on two busy cores, so those of the default model are kept in
`tests/data/smollm2_greedy.json`; `python -m tests.support.reference` makes that file afresh, and a test
makes some of its entries again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LEGITIMATE_GAP = 1e-4
RECORDED = Path(__file__).parent.parent / "data" / "smollm2_greedy.json"
_DATA = RECORDED.parent
TOKENS = 32


class ReferenceOutput(NamedTuple):
    """Greedy continuation of one prompt, with the gap between the two best logits at each position."""

    prompt_ids: list[int]
    ids: list[int]
    gaps: list[float]


class Comparison(NamedTuple):
    """How ids compare with the reference's."""

    equal: bool
    legitimate: bool
    position: int


def mt_bench_prompts() -> list[str]:
    """First turns of 40 MT-bench questions."""
    lines = (_DATA / "mt_bench_40.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def chat_ids(model_directory: Path, prompt: str) -> list[int]:
    """The prompt as a conversation, rendered and encoded by `transformers`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    conversation = [{"role": "user", "content": prompt}]
    encoded = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def greedy(model_directory: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[ReferenceOutput]:
    """Continues each prompt on its own, until the model's own end or `max_tokens`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    return [_continue(model, list(ids), max_tokens) for ids in prompts]


def compare(reference: ReferenceOutput, ids: Sequence[int]) -> Comparison:
    """Finds the first difference; it is legitimate where the reference itself was undecided."""
    for position, expected in enumerate(reference.ids):
        if position >= len(ids) or ids[position] != expected:
            return Comparison(False, reference.gaps[position] < LEGITIMATE_GAP, position)
    return Comparison(len(ids) == len(reference.ids), False, len(reference.ids))


def _continue(model: object, prompt_ids: list[int], max_tokens: int) -> ReferenceOutput:
    import torch

    with torch.inference_mode():
        output = model.generate(  # type: ignore[attr-defined]
            torch.tensor([prompt_ids]),
            do_sample=False,
            max_new_tokens=max_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best_two = [logits[0].topk(2).values for logits in output.logits]
    gaps = [float(first - second) for first, second in best_two]
    return ReferenceOutput(prompt_ids, output.sequences[0, len(prompt_ids) :].tolist(), gaps)


def recorded() -> list[ReferenceOutput]:
    """The kept outputs for the default model, in the order of `mt_bench_prompts`."""
    return [ReferenceOutput(**entry) for entry in json.loads(RECORDED.read_text())["outputs"]]


def record() -> None:
    """Makes the file of kept outputs afresh."""
    import torch
    import transformers

    from services.common.models import resolve

    model = resolve("default")
    outputs = greedy(model.path, [chat_ids(model.path, prompt) for prompt in mt_bench_prompts()], TOKENS)
    made_by = {"transformers": transformers.__version__, "torch": torch.__version__, "dtype": "float32"}
    entries = ",\n".join(json.dumps(output._asdict()) for output in outputs)
    header = json.dumps({"model": model.name, **made_by})[:-1]
    RECORDED.write_text(f'{header}, "outputs": [\n{entries}\n]}}\n')


if __name__ == "__main__":
    record()
