"""Why an item could not be encoded.

    TextError
    ├── InvalidText      the text is no Unicode that UTF-8 can carry
    ├── TemplateFailed   the template refused the conversation, broke, or there is none
    ├── TooLong          more ids than the caller allows
    ├── TimedOut         its time ran out, and the process that worked on it was ended
    ├── Overloaded       too much is waiting, or the pool is closing
    └── ProcessLost      the processes that worked on it died, twice

A message is a sentence for the caller; it never holds the text.
"""

from __future__ import annotations


class TextError(Exception):
    """The root; `str()` of it is the sentence."""


class InvalidText(TextError):
    """The text is no Unicode that UTF-8 can carry."""


class TemplateFailed(TextError):
    """The template refused the conversation, broke, or there is none."""


class TooLong(TextError):
    """More ids than the caller allows."""


class TimedOut(TextError):
    """Its time ran out, and the process that worked on it was ended."""


class Overloaded(TextError):
    """Too much is waiting, or the pool is closing; nothing was done, so it may be tried again."""


class ProcessLost(TextError):
    """The processes that worked on it died, twice."""


class CannotStart(Exception):
    """The pool's processes cannot load the tokenizer; the message is one line for the operator."""
