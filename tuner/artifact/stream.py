"""An answer as it comes: token ids into pieces of text whose join is exactly the whole answer's text.

It refuses nothing; text that a later token could still change is held back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.artifact.host import Hold, Seat
from tuner.template.tokens import Encoder

if TYPE_CHECKING:
    from tuner.artifact.decode import Decoder

HALF = "\N{REPLACEMENT CHARACTER}"  # what bytes of an unfinished character read as


class Pieces:
    """Tokens of one answer in, text that may be shown out. The join of all pieces is `encoder.decode` of all tokens."""

    def __init__(self, encoder: Encoder):
        self._decode = encoder.decode
        self._ids: list[int] = []
        self._shown = 0  # characters
        self._is_steady = decodes_steadily(encoder)

    def add(self, token: int) -> str:
        """What can be said now that this token has come; often one word, sometimes nothing."""
        self._ids.append(token)
        return self._more(self._decode(self._ids).rstrip(HALF)) if self._is_steady else ""

    def end(self) -> str:
        """What is left when the answer has ended."""
        return self._more(self._decode(self._ids))

    def _more(self, text: str) -> str:
        piece = text[self._shown :]
        self._shown += len(piece)
        return piece


def decodes_steadily(encoder: Encoder) -> bool:
    """Does a token leave the text before it as it is, unfinished characters aside? Not where a decoder tidies spaces or joins pieces of words."""
    decoder = encoder.tokenizer.decoder
    return decoder is None or _is_steady(json.loads(decoder.__getstate__()))


def _is_steady(decoder: dict[str, Any]) -> bool:
    kind = decoder.get("type")
    if kind == "Sequence":
        return all(_is_steady(part) for part in decoder["decoders"])
    if kind == "Strip":
        return not decoder.get("stop")  # blanks taken off the end would be back with the next word
    return kind in STEADY


STEADY = ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace")


class Stream(Iterator[str]):
    """An answer under way. Iterating gives its pieces; closing it early frees what it holds, and so does forgetting it."""

    def __init__(self, tokens: Iterator[int], encoder: Encoder, release: Callable[[], None]):
        """`tokens` are the answer's ids without its stop token; `release` is called once, when the answer ends or is given up."""
        self._tokens, self._pieces, self._release = tokens, Pieces(encoder), release
        self._is_open = True

    def __next__(self) -> str:
        while self._is_open:
            try:
                piece = self._pieces.add(next(self._tokens))
            except StopIteration:
                self.close()
                piece = self._pieces.end()
            except BaseException:
                self.close()
                raise
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """Say no more. Safe to call twice."""
        if self._is_open:
            self._is_open = False
            if close := getattr(self._tokens, "close", None):
                close()
            self._release()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What answers that have begun go on with, whatever becomes of their adapter. The base is free for others between two tokens."""

    seat: Seat
    hold: Hold
    decoder: Decoder
    encoder: Encoder
    as_base: bool

    def tokens(self, prompt: list[int], max_new_tokens: int) -> Iterator[int]:
        """Greedy tokens of one answer."""
        for said in self._said({0: prompt}, max_new_tokens):
            yield from (token for _, token in said if token is not None)

    def answers(self, prompts: Sequence[list[int]], max_new_tokens: int) -> Iterator[list[str]]:
        """An empty list after every step, then the greedy answers; a batch of similar length at a time."""
        ids: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        with self.hold:
            for rows in (order[start : start + self.decoder.batch] for start in range(0, len(order), self.decoder.batch)):
                for said in self._said({row: prompts[row] for row in rows}, max_new_tokens):
                    for row, token in said:
                        ids[row] += [token] if token is not None else []
                    yield []
        yield [self.encoder.decode(i) for i in ids]

    def _said(self, prompts: Mapping[int, list[int]], max_new_tokens: int) -> Iterator[list[tuple[Any, int | None]]]:
        from tuner.artifact.flight import Flight

        flight = Flight(self.decoder)
        for row, prompt in prompts.items():
            flight.join(row, prompt, max_new_tokens)
        while len(flight):
            with self.seat.turn(self.as_base):
                said = flight.step()
            yield said
