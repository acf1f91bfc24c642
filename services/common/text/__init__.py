"""Text from token ids as they come, and stop strings in it: pure, with no I/O and no gRPC."""

from services.common.text.byte_level import ByteLevelFacts, byte_level_facts
from services.common.text.incremental import IncrementalDecoder
from services.common.text.pieces import TokenTable, UnsupportedTokenizer
from services.common.text.stops import StopMatch, StopMatcher, StopOutcome

__all__ = [
    "ByteLevelFacts",
    "IncrementalDecoder",
    "StopMatch",
    "StopMatcher",
    "StopOutcome",
    "TokenTable",
    "UnsupportedTokenizer",
    "byte_level_facts",
]
