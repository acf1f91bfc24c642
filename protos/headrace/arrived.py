"""What of an answer has arrived, and what of the next event is news.

The rest of an answer is asked for by what is here, so that nothing comes twice. Where nothing is left of it
in the mesh, the whole is made again: then what comes must be what was here, and is left out so far.
"""

from __future__ import annotations

from array import array

import grpc

from headrace import errors
from headrace.v1 import router_pb2


class Arrived:
    """Tokens and text of one answer."""

    def __init__(self) -> None:
        self.ids = array("I")
        self.text_bytes = 0
        self._again = False
        self._text_at = 0

    def __len__(self) -> int:
        return len(self.ids)

    def from_the_start(self) -> None:
        """What comes from now on begins with the first token."""
        self._again, self._text_at = True, 0

    def from_here(self) -> None:
        """What comes from now on begins where this ends."""
        self._again = False

    def news(self, delta: router_pb2.Delta) -> router_pb2.Delta | None:
        """The part of an event that has not arrived; None when all of it has.

        Raises:
            StreamLost: a token is missing, or one that was made again is another.
        """
        known = len(self.ids) - delta.index if delta.token_ids else 0
        if known < 0:
            raise _lost(f"expected token {len(self.ids)}, got {delta.index}", "GAP")
        if self._again:
            delta = self._beyond(delta, known)
        elif known:
            if known < len(delta.token_ids):
                raise _lost(f"expected token {len(self.ids)}, got {delta.index}", "GAP")
            return None
        self.ids.extend(delta.token_ids)
        self.text_bytes += len(delta.text.encode())
        return delta if delta.token_ids or delta.text else None

    def _beyond(self, delta: router_pb2.Delta, known: int) -> router_pb2.Delta:
        same = list(delta.token_ids[:known])
        if same != self.ids[delta.index : delta.index + len(same)].tolist():
            raise _lost("nothing was left of it, and made again it is another", "DIVERGED")
        text = delta.text.encode()
        had = min(len(text), max(0, self.text_bytes - self._text_at))
        self._text_at += len(text)
        return router_pb2.Delta(
            index=delta.index + len(same),
            text=text[had:].decode(errors="replace"),
            token_ids=delta.token_ids[len(same) :],
            logprobs=delta.logprobs[len(same) :],
        )


def _lost(message: str, reason: str) -> errors.StreamLost:
    return errors.StreamLost(f"the answer broke off: {message}", code=grpc.StatusCode.ABORTED, reason=reason)
