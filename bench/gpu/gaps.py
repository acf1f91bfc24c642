"""What tracks of requests say: tokens a second while all of them decode, and the time between tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.gpu.drive import Track


class Window:
    """Seconds of time.perf_counter between which everything counts."""

    def __init__(self, begins_s: float, ends_s: float) -> None:
        self.begins_s = begins_s
        self.ends_s = ends_s

    @classmethod
    def of_decoding(cls, tracks: Sequence[Track]) -> Window:
        """From when the last one has its first token until the first one has its last."""
        begins_s, ends_s = max(each.token_s[0] for each in tracks), min(each.token_s[-1] for each in tracks)
        if begins_s >= ends_s:
            raise ValueError("one had its last token before another had its first: ask for longer outputs")
        return cls(begins_s, ends_s)

    @property
    def seconds(self) -> float:
        return self.ends_s - self.begins_s

    def tokens(self, tracks: Iterable[Track]) -> int:
        """Tokens that came after its beginning, until its end."""
        return sum(self.begins_s < at_s <= self.ends_s for track in tracks for at_s in track.token_s)

    def rate(self, tracks: Sequence[Track]) -> float:
        """Tokens a second."""
        return self.tokens(tracks) / max(self.seconds, 1e-9)

    def gaps_s(self, tracks: Iterable[Track]) -> list[float]:
        """Times between one token and the next, of those that came in the window."""
        return [
            later - earlier
            for track in tracks
            for earlier, later in zip(track.token_s, track.token_s[1:], strict=False)
            if self.begins_s < later <= self.ends_s
        ]
