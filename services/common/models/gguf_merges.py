"""The merges of a sentencepiece BPE vocabulary, which a GGUF file keeps only as scores.

Sentencepiece merges the neighbours whose joined piece has the best score; as ranked merges that is every
way to cut a piece into two other pieces, best joined score first (Hugging Face's own conversion does so).
"""

from collections.abc import Iterator


def merges_of_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every merge, best first. Time: vocabulary × piece length."""
    ranked = sorted(vocabulary.items(), key=lambda item: (-scores[item[1]], item[1]))
    return [merge for piece, _ in ranked for merge in _cuts(piece, vocabulary)]


def _cuts(piece: str, vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    halves = ((piece[:middle], piece[middle:]) for middle in range(1, len(piece)))
    known = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
    yield from sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
