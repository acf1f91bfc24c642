"""Token ids to text as they come: what was emitted never changes, whatever follows.

The deltas of a stream, put together, are exactly what `tokenizers` decodes from all its ids at once. A
token may end inside a character: its bytes are held back until the character is complete or cannot
become so. Decoding a token costs the same wherever in the stream it stands.
"""

import codecs
from collections.abc import Iterable

from services.common.text.pieces import Piece, TokenTable

_Utf8 = codecs.getincrementaldecoder("utf-8")


class IncrementalDecoder:
    """Decodes one stream.

    To go on with a stream that another process began, give it the ids that were already delivered: the
    next `push` returns exactly what it would have returned there.
    """

    def __init__(
        self, table: TokenTable, *, skip_special_tokens: bool = True, delivered: Iterable[int] = ()
    ) -> None:
        """Args:
        skip_special_tokens: leave special tokens out of the text.
        delivered: the ids whose text was already emitted.
        """
        self._table = table
        self._skip_special_tokens = skip_special_tokens
        self._joiner = _ByteLevelJoiner() if table.byte_level else _CharacterJoiner(table)
        for token_id in delivered:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        piece = self._table.piece(token_id)
        if piece is None or (piece.special and self._skip_special_tokens):
            return ""
        return self._joiner.add(piece, token_id)

    def finish(self) -> str:
        """The rest at the end of the stream: U+FFFD for what never became a character. Call it once."""
        return self._joiner.finish()


class _ByteLevelJoiner:
    """Joins bytes across tokens into UTF-8, with U+FFFD where they are none.

    Most streams never end a token inside a character, and need no decoder.
    """

    def __init__(self) -> None:
        self._utf8: codecs.IncrementalDecoder | None = None
        self._pending = False

    def add(self, piece: Piece, token_id: int) -> str:
        if piece.text is not None and not self._pending:
            return piece.text
        if self._utf8 is None:
            self._utf8 = _Utf8(errors="replace")
        decoded = self._utf8.decode(piece.data)
        self._pending = self._utf8.getstate()[0] != b""
        return decoded

    def finish(self) -> str:
        return "" if self._utf8 is None else self._utf8.decode(b"", final=True)


class _CharacterJoiner:
    """Joins characters, and runs of byte tokens.

    `tokenizers` turns a whole run into U+FFFD, one a byte, when any of it is invalid; so nothing of a run
    is certain before it ends.
    """

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._run = bytearray()
        self._leading = table.spaces.strip_chars  # spaces still to take off the beginning
        self._first_token = table.spaces.first_token_only

    def add(self, piece: Piece, token_id: int) -> str:
        text = piece.text
        if text is None:
            self._run += piece.data
            return ""
        if self._first_token:
            text = self._table.spelling(token_id).replace(self._first_token, "")
            self._first_token = ""
        return self._without_leading(self.finish() + text)

    def finish(self) -> str:
        if not self._run:
            return ""
        run = bytes(self._run)
        self._run.clear()
        try:
            return self._without_leading(run.decode("utf-8"))
        except UnicodeDecodeError:
            return self._without_leading("\ufffd" * len(run))

    def _without_leading(self, text: str) -> str:
        while self._leading and text:
            if text[0] != " ":
                self._leading = 0
                break
            text, self._leading = text[1:], self._leading - 1
        return text
