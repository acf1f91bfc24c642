"""Stop strings in text that comes in pieces (Aho and Corasick, 1975).

The text of a stream may only be emitted as far as it cannot become part of a stop string. The automaton's
state is the longest suffix of the text that begins a stop string: that much is held back, no more. Each
character costs amortised constant time, however many stop strings there are.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class StopMatch(NamedTuple):
    """A stop string was found."""

    text: str
    """The stop string."""
    token_index: int
    """The index of the token whose text completed it."""


class StopOutcome(NamedTuple):
    """What one piece of text led to."""

    text: str
    """Safe to emit; never a part of a stop string."""
    match: StopMatch | None
    """Set when a stop string is complete: the stream ends here and what follows is discarded."""


class StopMatcher:
    """Finds the stop string that is complete first; of several complete at once the longest.

    Push the text of one token at a time. To go on with a stream that another process began, push the
    texts of the delivered tokens again, from index 0.
    """

    def __init__(self, stops: Sequence[str], *, next_index: int = 0) -> None:
        """Args:
        stops: the stop strings; may be none.
        next_index: the index of the token whose text is pushed first.

        Raises:
            ValueError: a stop string is empty.
        """
        self._next_index = next_index
        self._automaton = _Automaton(stops)
        self._state = 0
        self._held = ""
        self._match: StopMatch | None = None

    def push(self, text: str) -> StopOutcome:
        """Take the text of the next token, which may be empty. After a match nothing more is emitted."""
        index, self._next_index = self._next_index, self._next_index + 1
        if self._match is not None:
            return StopOutcome("", self._match)
        if self._state == 0 and self._automaton.first_characters.isdisjoint(text):
            return StopOutcome(text, None)
        return self._search(text, index)

    def finish(self, text: str = "") -> StopOutcome:
        """Take what the decoder had left, which belongs to the last token, and give up what is held back."""
        self._next_index -= 1
        outcome = self.push(text)
        if outcome.match is not None:
            return outcome
        held, self._held, self._state = self._held, "", 0
        return StopOutcome(outcome.text + held, None)

    def _search(self, text: str, index: int) -> StopOutcome:
        automaton, state = self._automaton, self._state
        for offset, character in enumerate(text, start=1):
            state = automaton.step(state, character)
            if found := automaton.complete[state]:
                return self._stop(found, self._held + text[:offset], index)
        return self._hold_back(self._held + text, state)

    def _stop(self, found: str, text: str, index: int) -> StopOutcome:
        self._match = StopMatch(found, index)
        self._held = ""
        return StopOutcome(text.removesuffix(found), self._match)

    def _hold_back(self, text: str, state: int) -> StopOutcome:
        self._state = state
        safe = len(text) - self._automaton.depth[state]
        self._held = text[safe:]
        return StopOutcome(text[:safe], None)


class _Automaton:
    """States are prefixes of stop strings; 0 is the empty one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self.depth = [0]
        self.complete = [""]  # the longest stop string that the state ends with
        for stop in stops:
            self._insert(stop)
        self.first_characters = frozenset(self._next[0])
        self._link()

    def step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(character, 0)

    def _insert(self, stop: str) -> None:
        if not stop:
            raise ValueError("a stop string is empty")
        state = 0
        for character in stop:
            state = self._next[state].get(character) or self._append(state, character)
        self.complete[state] = stop

    def _append(self, state: int, character: str) -> int:
        child = len(self._next)
        self._next[state][character] = child
        self._next.append({})
        self._fallback.append(0)
        self.depth.append(self.depth[state] + 1)
        self.complete.append("")
        return child

    def _link(self) -> None:
        """Breadth first: the fallback of a state is the longest proper suffix that is a state too."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, child in self._next[state].items():
                self._fallback[child] = self.step(self._fallback[state], character)
                self.complete[child] = self.complete[child] or self.complete[self._fallback[child]]
                waiting.append(child)
