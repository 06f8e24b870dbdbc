"""Loading a version and asking it. Evaluation and serving call the same methods: what is graded is what is served.

It refuses a version whose bytes changed, another base or tokenizer than it was trained with, and weights that are not finite.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, overload

from tuner.artifact.host import Host, Seat
from tuner.artifact.measured import Divergence, Timed
from tuner.artifact.opening import Opened, base_of, host_for, newcomer, opened, verified
from tuner.artifact.served import EngineName, LlamaCppSayer, ServedAdapter, VllmSayer, lent, refuse_without_vllm
from tuner.artifact.store import Version
from tuner.artifact.stream import Stream, UnderWay
from tuner.artifact.waiting import Waiting
from tuner.base import Base, Precision
from tuner.catalog import choose
from tuner.data.record import ROLES, Message
from tuner.errors import refuse
from tuner.safe_text import quoted
from tuner.template.tokens import Encoder

if TYPE_CHECKING:
    import torch

    from tuner.artifact.decode import Decoder

Question = str | Sequence[Mapping[str, str]] | Sequence[Message]
Done = Callable[[int], None]

_ASKED_AS_BASE: ContextVar[frozenset[int]] = ContextVar("asked_as_base", default=frozenset())  # ids of adapters, in this thread or task alone
_WITHOUT_SYSTEM: ContextVar[frozenset[int]] = ContextVar("without_system", default=frozenset())


class Adapter(Waiting):
    """A loaded adapter. `answer` and `answer_many` take a question as text, or as messages with role and content.

    Any thread may ask: the base answers one call at a time. `as_base` and `without_system` hold in the thread or task that opened them.
    """

    def __init__(
        self,
        version: Version,
        manifest: dict[str, Any],
        encoder: Encoder,
        decoder: Decoder,
        precision: Precision,
        base_folder: Path,
        allowed: tuple[str, ...] = (),
        seat: Seat | None = None,
    ):
        self.precision, self.base_folder = precision, base_folder
        self._seat = seat or Host(decoder.model).first()
        self._become(version, manifest, encoder, decoder, allowed)

    def _become(self, version: Version, manifest: dict[str, Any], encoder: Encoder, decoder: Decoder, allowed: tuple[str, ...]) -> None:
        self.version, self.manifest, self.encoder, self.decoder = version, manifest, encoder, decoder
        self.allowed = allowed  # what differs from the training and was let through
        self._without_system = encoder.without_system()

    def __repr__(self) -> str:
        return f"Adapter({self.version.label}, base {self.manifest['base']['name']}, {self.precision})"

    def answer(self, question: Question, max_new_tokens: int = 256) -> str:
        """The adapter's greedy answer to one question."""
        return self.answer_many([question], max_new_tokens)[0]

    def answer_many(self, questions: Sequence[Question], max_new_tokens: int = 256, done: Done | None = None) -> list[str]:
        """Greedy answers in the order of the questions; asked in batches of similar length."""
        with self.turn():
            prompts = [self.prompt_ids(q) for q in questions]
            self._refuse_too_long(prompts, max_new_tokens)
            return [self.encoder.decode(i) for i in self.decoder.greedy(prompts, max_new_tokens, done)]

    def stream(self, question: Question, max_new_tokens: int = 256) -> Stream:
        """The same answer in pieces, as it comes; their join is `answer`'s text. Others are answered between two tokens.

        Closing the stream early frees what it holds. An adapter that is swapped meanwhile ends the answer with the weights it began with.
        """
        under_way, prompts = self._begin([question], max_new_tokens)
        return Stream(under_way.tokens(prompts[0], max_new_tokens), under_way.encoder, under_way.hold.release)

    def _in_steps(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator[list[str]]:
        under_way, prompts = self._begin(questions, max_new_tokens)
        return under_way.answers(prompts, max_new_tokens)

    def _begin(self, questions: Sequence[Question], max_new_tokens: int) -> tuple[UnderWay, list[list[int]]]:
        with self.lock:
            prompts = [self.prompt_ids(q) for q in questions]
            self._refuse_too_long(prompts, max_new_tokens)
            return UnderWay(self._seat, self._seat.hold(), self.decoder, self.encoder, self._is_base), prompts

    @property
    def _worker(self) -> Executor:
        return self._seat.host.worker

    def label_scores(self, questions: Sequence[Question], labels: Sequence[str], done: Done | None = None) -> torch.Tensor:
        """Log-probability (n, k) of each label, its stop token included, as the whole answer to each question (nats)."""
        with self.turn():
            prompts = [self.prompt_ids(q) for q in questions]
            candidates = [self.completion_ids(questions[0], label) for label in labels]
            self._refuse_too_long(prompts, max(len(c) for c in candidates))
            return self.decoder.likelihoods(prompts, candidates, done)

    def choice_nats(self, questions: Sequence[Question], answers: Sequence[Sequence[str]], done: Done | None = None) -> list[list[float]]:
        """Negative log-likelihood (nats) of each of a question's own answers, stop token included, less what all of them begin with."""
        with self.turn():
            prompts = [self.prompt_ids(q) for q in questions]
            candidates = [[self.completion_ids(q, a) for a in of] for q, of in zip(questions, answers, strict=True)]
            self._refuse_too_long(prompts, max(len(c) for of in candidates for c in of))
            return [[-score for score in of] for of in self.decoder.choices(prompts, candidates, done)]

    def losses(self, questions: Sequence[Question], answers: Sequence[str], done: Done | None = None) -> list[tuple[float, int]]:
        """(summed nats, tokens) of each given answer after its question, stop token included."""
        return [(sum(nats), len(nats)) for nats in self.token_nats(questions, answers, done)]

    def token_nats(self, questions: Sequence[Question], answers: Sequence[str], done: Done | None = None) -> list[list[float]]:
        """Negative log-likelihood (nats) of each token of each given answer after its question, stop token included."""
        with self.turn():
            pairs = [(self.prompt_ids(q), self.completion_ids(q, a)) for q, a in zip(questions, answers, strict=True)]
            self._refuse_too_long([p + c for p, c in pairs], 0)
            return self.decoder.token_nats(pairs, done)

    def continuations(
        self, questions: Sequence[Question], beginnings: Sequence[Sequence[int]], new_tokens: int, done: Done | None = None
    ) -> list[list[int]]:  # fmt: skip
        """The greedy `new_tokens` token ids after each question and the given beginning of its answer; fewer where it stops."""
        with self.turn():
            prompts = [self.prompt_ids(q) + list(b) for q, b in zip(questions, beginnings, strict=True)]
            self._refuse_too_long(prompts, new_tokens)
            return self.decoder.greedy(prompts, new_tokens, done)

    def divergences(self, texts: Sequence[str], done: Done | None = None) -> list[Divergence]:
        """How base and adapter read each text, as plain text: every token but the first is predicted. Texts need two tokens."""
        ids = [self.encoder.tokenizer.encode(t).ids for t in texts]
        return self._divergences([(i[:1], i[1:]) for i in ids], done)

    def prompt_divergences(self, questions: Sequence[Question], done: Done | None = None) -> list[Divergence]:
        """How far apart base and adapter are on the first token of their answer to each question (its nats are those of stopping at once)."""
        stop = min(self.encoder.stop_ids)
        return self._divergences([(self.prompt_ids(q), [stop]) for q in questions], done)

    def _divergences(self, pairs: list[tuple[list[int], list[int]]], done: Done | None) -> list[Divergence]:
        self._refuse_merged()
        with self.lock, self._seat.turn():  # of both, also inside `as_base`
            self._refuse_too_long([p + c for p, c in pairs], 0)
            found = self.decoder.divergences(pairs, done)
        return [Divergence(len(c), *numbers) for (_, c), numbers in zip(pairs, found, strict=True)]

    def prompt_ids(self, question: Question) -> list[int]:
        """The token ids the model is given for a question."""
        return self._speaking().prompt_ids(as_messages(question))

    def completion_ids(self, question: Question, answer: str) -> list[int]:
        """The token ids of `answer` as it would be trained after this question, stop token included."""
        return self._speaking().completion_ids(as_messages(question), answer)

    def greedy_ids(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy answers to prompts that are token ids already, as token ids without their stop token."""
        with self.turn():
            return self.decoder.greedy(prompts, max_new_tokens)

    def timed(self, questions: Sequence[Question], max_new_tokens: int, done: Done | None = None) -> list[Timed]:
        """Each question asked alone, as one user waits for it: once for the first token, once for the whole answer."""
        found = []
        for question in questions:
            prompt = self.prompt_ids(question)
            self._refuse_too_long([prompt], max_new_tokens)
            first, _ = self._seconds(prompt, 1)
            whole, answer = self._seconds(prompt, max_new_tokens)
            found.append(Timed(len(prompt), first, min(len(answer) + 1, max_new_tokens), whole))  # the token that stops it is computed too
            if done is not None:
                done(1)
        return found

    def _seconds(self, prompt: list[int], max_new_tokens: int) -> tuple[float, list[int]]:
        began = time.perf_counter()
        (answer,) = self.greedy_ids([prompt], max_new_tokens)
        return time.perf_counter() - began, answer

    def next_logits(self, prompt: list[int]) -> torch.Tensor:
        """Logits (V,) of the token that follows the prompt."""
        import torch

        with self.turn(), torch.inference_mode():
            logits: torch.Tensor = self.decoder.model(torch.tensor([prompt], device=self.decoder.device), use_cache=False).logits
            return logits[0, -1].cpu()

    def fits(self, questions: Sequence[Question], room: int) -> list[bool]:
        """Of each question, whether it leaves `room` tokens for its answer in the base's context."""
        limit, taken = self._context_tokens, room + self._virtual_tokens
        return [limit is None or len(self.prompt_ids(q)) + taken <= limit for q in questions]

    # --- states

    @property
    def lock(self) -> Any:
        """The re-entrant lock of the loaded base, shared by all adapters on it."""
        return self._seat.host.lock

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, nobody else asks the base, and it is in this adapter's state, or inside `as_base` as it was before any."""
        with self.lock, self._seat.turn(self._is_base):  # the lock first: a swap may be changing the seat
            yield

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Adapter]:
        """Inside, the same calls ask the untouched base, through the same template. Raises Refusal where the adapter was merged into it."""
        self._refuse_merged()
        with _within(_ASKED_AS_BASE, id(self)):
            yield self

    def _refuse_merged(self) -> None:
        if self._seat.host.is_merged:
            refuse(self.version.label, "merge", "an adapter that was merged into its base", "the base as it was", "load it with merge=False")

    @contextlib.contextmanager
    def without_system(self) -> Iterator[Adapter]:
        """Inside, questions without a system prompt of their own get none: the recipe's is left out."""
        with _within(_WITHOUT_SYSTEM, id(self)):
            yield self

    @property
    def _is_base(self) -> bool:
        return id(self) in _ASKED_AS_BASE.get()

    def _speaking(self) -> Encoder:
        return self._without_system if id(self) in _WITHOUT_SYSTEM.get() else self.encoder

    @property
    def _virtual_tokens(self) -> int:
        return 0 if self._is_base else self._seat.virtual_tokens

    @property
    def _context_tokens(self) -> int | None:
        return getattr(self.decoder.model.config, "max_position_embeddings", None)

    # --- others on the same base

    def beside(self, name: str, store: str | Path | None = None, *, allow: Collection[str] = ()) -> Adapter:
        """Another version, on the base that is loaded: both answer, each with its own weights, one call at a time.

        `store` is by default the one this version lies in. It is checked as load_adapter checks it, and refused where it would not be what it is
        when it is loaded alone: trained on another base, served in another precision, of another kind of method, with other new tokens.
        """
        found = self._newcomer(name, store, allow)
        seat = self._seat.host.seat(found.version, found.payload)
        return Adapter(found.version, found.manifest, found.encoder, self._decoder_for(found), self.precision, self.base_folder, found.allowed, seat)

    def swap(self, name: str, store: str | Path | None = None, *, allow: Collection[str] = ()) -> None:
        """Become another version, on the base that is loaded. Of the old one nothing stays but in streams that have begun; they end with it.

        Checked and refused as in `beside`; a swap that is refused leaves this adapter as it was.
        """
        found = self._newcomer(name, store, allow)
        with self.lock:
            old, host = self._seat, self._seat.host
            if not host.refill(old, found.version):
                self._seat = host.seat(found.version, found.payload)
                old.leave()
            self._become(found.version, found.manifest, found.encoder, self._decoder_for(found), found.allowed)

    def _newcomer(self, name: str, store: str | Path | None, allow: Collection[str]) -> Opened:
        self._seat.host.refuse_closed(self._seat)
        place = store if store is not None else self.version.folder.parent.parent
        return newcomer(name, place, self._seat.host, (self.manifest, self.encoder), allow)

    def _decoder_for(self, found: Opened) -> Decoder:
        from tuner.artifact.decode import Decoder

        return Decoder(self._seat.host.model, found.encoder.pad_id, found.encoder.stop_ids, self.decoder.batch)

    def close(self) -> None:
        """Drop the weights, and the model itself with the last adapter on it. What is asked afterwards is refused."""
        self._seat.leave()
        vars(self).pop("decoder", None)

    def __getattr__(self, name: str) -> Any:
        if name == "decoder":
            refuse(self.version.label, "closed", "an adapter that was closed", "one that is open", "load it again")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_too_long(self, prompts: Sequence[list[int]], room: int) -> None:
        """A prompt that leaves no room for its answer in the base's context is refused, never cut."""
        limit = self._context_tokens
        longest = max((len(p) for p in prompts), default=0) + self._virtual_tokens
        if limit is not None and longest + room > limit:
            refuse(self.version.label, "prompt", f"{longest} tokens, and {room} for the answer", f"at most {limit}, the base's context",
                   "ask shorter questions, or lower evaluate.few_shot or the answer's length")  # fmt: skip

    def _adapter_state(self) -> contextlib.AbstractContextManager[Any]:
        return self.decoder.model.disable_adapter() if self._is_base else contextlib.nullcontext()


@contextlib.contextmanager
def _within(names: ContextVar[frozenset[int]], who: int) -> Iterator[None]:
    token = names.set(names.get() | {who})
    try:
        yield
    finally:
        names.reset(token)


def as_messages(question: Question) -> list[Message]:
    """Text as one user message; mappings as messages, of which the first may name the `tools` that are offered.

    Raises Refusal on an unknown role or content that is not text.
    """
    if isinstance(question, str):
        return as_messages([{"role": "user", "content": question}])
    messages: list[Message] = []
    for index, item in enumerate(question):
        if isinstance(item, Message):
            messages.append(item)
            continue
        item = cast("Mapping[str, Any]", item)
        role, content, calls = item.get("role"), item.get("content"), item.get("tool_calls")
        if content is None and calls:
            content = ""
        if role not in ROLES or not isinstance(content, str) or any("\ud800" <= c <= "\udfff" for c in content):
            refuse("question", f"messages[{index}]", quoted(dict(item)), f"role (one of {', '.join(ROLES)}) and content (text)", "mend the message")
        called = json.dumps(calls, ensure_ascii=False, sort_keys=True) if calls else None
        tools = json.dumps(item["tools"], ensure_ascii=False, sort_keys=True) if item.get("tools") else None
        messages.append(Message(role, content, called, item.get("tool_call_id"), item.get("name"), tools=tools))
    if not messages or messages[-1].role not in ("user", "tool"):
        refuse("question", "messages", "no user turn at the end", "messages that end with a user turn, or a tool's result", "add the question")
    return messages


@overload
def load_adapter(
    name: str, store: str | Path = ..., *, base: str | Path | None = ..., device: str | None = ..., load: str | None = ..., batch: int = ...,
    allow: Collection[str] = ..., merge: bool = ..., engine: Literal["transformers"] = ...,
) -> Adapter: ...  # fmt: skip
@overload
def load_adapter(
    name: str, store: str | Path = ..., *, base: str | Path | None = ..., device: str | None = ..., load: str | None = ..., batch: int = ...,
    allow: Collection[str] = ..., merge: bool = ..., engine: Literal["vllm", "llama.cpp"],
) -> ServedAdapter: ...  # fmt: skip


def load_adapter(
    name: str,
    store: str | Path = "adapters",
    *,
    base: str | Path | None = None,
    device: str | None = None,
    load: str | None = None,
    batch: int = 32,
    allow: Collection[str] = (),
    merge: bool = False,
    engine: str = "transformers",
) -> Adapter | ServedAdapter:
    """Load NAME, NAME@3, NAME@ALIAS or a version's folder, on the base it was trained on.

    `base` names the base's folder when it was a local one. `load` is auto, bf16 or fp32; default: the recipe's. Every digest is
    checked first. `allow` opens differences that are refused otherwise, of `base`, `tokenizer` or `template`: what was let through stands
    in `Adapter.allowed`, and in every evaluation made with it. `merge` adds the adapter to the weights of the base, in memory: a little
    faster, rounded once more, and neither `as_base` nor `beside` nor `swap` is left. `engine` is transformers; or llama.cpp, whose files are
    made once and kept in the user's cache (f16 weights where `load` is bf16 or auto, f32 where it is fp32); or vllm, where it is installed.
    Those two answer and stream, and do no more (ServedAdapter). Raises Refusal.
    """
    choose({known: known for known in get_args(EngineName)}, engine, "load_adapter", "engine")
    if engine == "vllm":
        refuse_without_vllm()
    version, manifest = verified(name, store)
    resolved = base_of(manifest, base)
    if engine == "transformers":
        return open_adapter(version, manifest, resolved, device, load, batch, allow, merge)
    found = opened(version, manifest, resolved, allow)
    if merge:
        refuse(version.label, "merge", f"merge with engine {engine}", "engine transformers", "leave merge out: `tuner export` merges for other engines")
    if engine == "llama.cpp":
        return ServedAdapter(found, LlamaCppSayer(found, resolved, load or manifest["base"]["load"]))
    with lent(open_adapter(version, manifest, resolved, device, load or "bf16", batch, allow)) as adapter:
        return ServedAdapter(found, VllmSayer(adapter))


def open_adapter(
    version: Version,
    manifest: dict[str, Any],
    base: Base,
    device: str | None,
    load: str | None,
    batch: int,
    allow: Collection[str] = (),
    merge: bool = False,
) -> Adapter:
    """The adapter of a verified version on `base`. Raises Refusal when base, tokenizer or template are not those of the manifest."""
    from tuner.artifact.decode import Decoder

    found = opened(version, manifest, base, allow)
    seat, precision = host_for(found, base, device, load, merge)
    decoder = Decoder(seat.host.model, found.encoder.pad_id, found.encoder.stop_ids, batch)
    return Adapter(version, manifest, found.encoder, decoder, precision, base.folder, found.allowed, seat)
