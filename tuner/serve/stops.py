"""An answer's pieces of text up to a stop text: what is handed on is never taken back.

It holds back what may be the beginning of a stop text until the next tokens show whether it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuner.artifact.stream import Pieces
from tuner.template.tokens import Encoder


class Stopping:
    """Tokens in, text out. Once `stopped` is true a stop text was said: the answer is what came before it, and is over."""

    def __init__(self, encoder: Encoder, stops: Sequence[str] = ()):
        self._pieces, self._stops = Pieces(encoder), tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain after one more token; often empty."""
        return self._certain(self._pieces.add(token))

    def end(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        certain = self._certain(self._pieces.end())
        return certain if self.stopped else certain + self._held

    def _certain(self, piece: str) -> str:
        text = self._held + piece
        found = min((at for at in map(text.find, self._stops) if at >= 0), default=None)
        if found is not None:
            self.stopped = True
            return text[:found]
        held = self._may_begin_a_stop(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _may_begin_a_stop(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        return next((n for n in range(min(longest, len(text)), 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
