"""The terminal of `headrace up`: an answer streams to standard output while news come on standard error."""

from __future__ import annotations

from services.cli import output


class Screen:
    """Keeps news from running into the line that an answer is writing."""

    def __init__(self) -> None:
        self._in_a_line = False

    def write(self, text: str) -> None:
        """A piece of the answer."""
        if text:
            print(text, end="", flush=True)
            self._in_a_line = not text.endswith("\n")

    def say(self, line: str) -> None:
        """News, on a line of its own."""
        if self._in_a_line:
            self.write("\n")
        output.note(line)
