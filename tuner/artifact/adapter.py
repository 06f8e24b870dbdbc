"""Loading a version and asking it. Evaluation and serving call the same methods: what is graded is what is served.

It refuses a version whose bytes changed, another base or tokenizer than it was trained with, and weights that are not finite.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tuner.artifact.manifest import verify
from tuner.artifact.measured import Divergence, Timed
from tuner.artifact.store import Version, find
from tuner.base import Base, BaseSpec, Precision, load_model, pick_device, quiet_libraries, resolve_base, serving_precision, widen
from tuner.catalog import choose
from tuner.data.record import ROLES, Message
from tuner.errors import Problem, Refusal, refuse
from tuner.safe_text import quoted
from tuner.template.spec import TemplateSpec
from tuner.template.tokens import Encoder, open_encoder

if TYPE_CHECKING:
    import torch

    from tuner.artifact.decode import Decoder

Question = str | Sequence[Mapping[str, str]] | Sequence[Message]
Done = Callable[[int], None]


class Adapter:
    """A loaded adapter. `answer` and `answer_many` take a question as text, or as messages with role and content."""

    def __init__(
        self,
        version: Version,
        manifest: dict[str, Any],
        encoder: Encoder,
        decoder: Decoder,
        precision: Precision,
        base_folder: Path,
        allowed: tuple[str, ...] = (),
    ):
        self.version, self.manifest, self.encoder, self.decoder, self.precision = version, manifest, encoder, decoder, precision
        self.base_folder = base_folder
        self.allowed = allowed  # what differs from the training and was let through
        self._is_base = False
        self._speaking = encoder

    def __repr__(self) -> str:
        return f"Adapter({self.version.label}, base {self.manifest['base']['name']}, {self.precision})"

    def answer(self, question: Question, max_new_tokens: int = 256) -> str:
        """The adapter's greedy answer to one question."""
        return self.answer_many([question], max_new_tokens)[0]

    def answer_many(self, questions: Sequence[Question], max_new_tokens: int = 256, done: Done | None = None) -> list[str]:
        """Greedy answers in the order of the questions; asked in batches of similar length."""
        prompts = [self.prompt_ids(q) for q in questions]
        self._refuse_too_long(prompts, max_new_tokens)
        with self._adapter_state():
            ids = self.decoder.greedy(prompts, max_new_tokens, done)
        return [self.encoder.decode(i) for i in ids]

    def label_scores(self, questions: Sequence[Question], labels: Sequence[str], done: Done | None = None) -> torch.Tensor:
        """Log-probability (n, k) of each label, its stop token included, as the whole answer to each question (nats)."""
        prompts = [self.prompt_ids(q) for q in questions]
        candidates = [self.completion_ids(questions[0], label) for label in labels]
        self._refuse_too_long(prompts, max(len(c) for c in candidates))
        with self._adapter_state():
            return self.decoder.likelihoods(prompts, candidates, done)

    def choice_nats(self, questions: Sequence[Question], answers: Sequence[Sequence[str]], done: Done | None = None) -> list[list[float]]:
        """Negative log-likelihood (nats) of each of a question's own answers, stop token included, less what all of them begin with."""
        prompts = [self.prompt_ids(q) for q in questions]
        candidates = [[self.completion_ids(q, a) for a in of] for q, of in zip(questions, answers, strict=True)]
        self._refuse_too_long(prompts, max(len(c) for of in candidates for c in of))
        with self._adapter_state():
            return [[-score for score in of] for of in self.decoder.choices(prompts, candidates, done)]

    def losses(self, questions: Sequence[Question], answers: Sequence[str], done: Done | None = None) -> list[tuple[float, int]]:
        """(summed nats, tokens) of each given answer after its question, stop token included."""
        return [(sum(nats), len(nats)) for nats in self.token_nats(questions, answers, done)]

    def token_nats(self, questions: Sequence[Question], answers: Sequence[str], done: Done | None = None) -> list[list[float]]:
        """Negative log-likelihood (nats) of each token of each given answer after its question, stop token included."""
        pairs = [(self.prompt_ids(q), self.completion_ids(q, a)) for q, a in zip(questions, answers, strict=True)]
        self._refuse_too_long([p + c for p, c in pairs], 0)
        with self._adapter_state():
            return self.decoder.token_nats(pairs, done)

    def continuations(
        self, questions: Sequence[Question], beginnings: Sequence[Sequence[int]], new_tokens: int, done: Done | None = None
    ) -> list[list[int]]:  # fmt: skip
        """The greedy `new_tokens` token ids after each question and the given beginning of its answer; fewer where it stops."""
        prompts = [self.prompt_ids(q) + list(b) for q, b in zip(questions, beginnings, strict=True)]
        self._refuse_too_long(prompts, new_tokens)
        with self._adapter_state():
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
        self._refuse_too_long([p + c for p, c in pairs], 0)
        found = self.decoder.divergences(pairs, done)
        return [Divergence(len(c), *numbers) for (_, c), numbers in zip(pairs, found, strict=True)]

    def prompt_ids(self, question: Question) -> list[int]:
        """The token ids the model is given for a question."""
        return self._speaking.prompt_ids(as_messages(question))

    def completion_ids(self, question: Question, answer: str) -> list[int]:
        """The token ids of `answer` as it would be trained after this question, stop token included."""
        return self._speaking.completion_ids(as_messages(question), answer)

    def greedy_ids(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy answers to prompts that are token ids already, as token ids without their stop token."""
        with self._adapter_state():
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

        with self._adapter_state(), torch.inference_mode():
            found: torch.Tensor = self.decoder.model(torch.tensor([prompt], device=self.decoder.device), use_cache=False).logits[0, -1].cpu()
        return found

    def fits(self, questions: Sequence[Question], room: int) -> list[bool]:
        """Of each question, whether it leaves `room` tokens for its answer in the base's context."""
        limit = getattr(self.decoder.model.config, "max_position_embeddings", None)
        taken = room + self.decoder.virtual_tokens
        return [limit is None or len(self.prompt_ids(q)) + taken <= limit for q in questions]

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Adapter]:
        """Inside, the same calls ask the untouched base, through the same template."""
        self._is_base = True
        try:
            yield self
        finally:
            self._is_base = False

    @contextlib.contextmanager
    def without_system(self) -> Iterator[Adapter]:
        """Inside, questions without a system prompt of their own get none: the recipe's is left out."""
        self._speaking = self.encoder.without_system()
        try:
            yield self
        finally:
            self._speaking = self.encoder

    def _refuse_too_long(self, prompts: Sequence[list[int]], room: int) -> None:
        """A prompt that leaves no room for its answer in the base's context is refused, never cut."""
        limit = getattr(self.decoder.model.config, "max_position_embeddings", None)
        longest = max((len(p) for p in prompts), default=0) + self.decoder.virtual_tokens
        if limit is not None and longest + room > limit:
            refuse(self.version.label, "prompt", f"{longest} tokens, and {room} for the answer", f"at most {limit}, the base's context",
                   "ask shorter questions, or lower evaluate.few_shot or the answer's length")  # fmt: skip

    def _adapter_state(self) -> contextlib.AbstractContextManager[Any]:
        return self.decoder.model.disable_adapter() if self._is_base else contextlib.nullcontext()


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


def load_adapter(
    name: str,
    store: str | Path = "adapters",
    *,
    base: str | Path | None = None,
    device: str | None = None,
    load: str | None = None,
    batch: int = 32,
    allow: Collection[str] = (),
) -> Adapter:
    """Load `name`, `name@3` or a version's folder, on the base it was trained on.

    `base` names the base's folder when it was a local one. `load` is auto, bf16 or fp32; default: the recipe's. Every digest is
    checked first. `allow` opens differences that are refused otherwise, of `base`, `tokenizer` or `template`: what was let through stands
    in `Adapter.allowed`, and in every evaluation made with it. Raises Refusal.
    """
    folder = Path(name)
    version = Version(folder.parent.name, int(folder.name), folder) if folder.is_dir() and folder.name.isdigit() else find(Path(store), name)
    manifest = verify(version.folder)
    return open_adapter(version, manifest, _base_of(manifest, base), device, load, batch, allow)


ALLOWED = ("base", "tokenizer", "template")


def open_adapter(
    version: Version, manifest: dict[str, Any], base: Base, device: str | None, load: str | None, batch: int, allow: Collection[str] = ()
) -> Adapter:
    """The adapter of a verified version on `base`. Raises Refusal when base, tokenizer or template are not those of the manifest."""
    for word in allow:
        choose({name: name for name in ALLOWED}, word, "load_adapter", "allow")
    encoder = open_encoder(version.folder, TemplateSpec.model_validate(manifest["template"]["spec"] | {"format": "tokenizer"}), version.label)
    differences = _differences(manifest, base, encoder)
    refused = [problem for name, problem in differences.items() if name not in allow]
    if refused:
        raise Refusal(replace(problem, where=version.label) for problem in refused)
    quiet_libraries()
    from peft import PeftModel

    from tuner.artifact.decode import Decoder

    precision = serving_precision(cast(Any, load or manifest["base"]["load"]), device or pick_device())
    grown = load_model(base, precision)
    if encoder.new_ids:
        widen(grown, encoder.vocabulary)
    try:
        model = PeftModel.from_pretrained(grown, str(version.folder), local_files_only=True, autocast_adapter_dtype=False)
    except KeyError as missing:  # rows of new tokens that adapter_config.json names and the weights lack
        refuse(version.label, "adapter_model.safetensors", f"no tensor {quoted(missing.args[0], 120)}: the weights do not match the model",
               "exactly the adapter's tensors", "restore the version from a copy")  # fmt: skip
    _check_weights(version, model)
    return Adapter(version, manifest, encoder, Decoder(model.eval(), encoder.pad_id, encoder.stop_ids, batch), precision, base.folder, tuple(differences))


def _differences(manifest: dict[str, Any], base: Base, encoder: Encoder) -> dict[str, Problem]:
    """What is not as it was when the adapter was trained, by name."""
    wanted, template = manifest["base"], manifest["template"]
    found: dict[str, Problem] = {}
    if base.weight_digest != wanted["weight_digest"]:
        ours, theirs = base.weight_digest[:19], wanted["weight_digest"][:19]
        found["base"] = Problem("", "base", f"{base.name} with weights {ours}…", f"{wanted['name']} with weights {theirs}…",
                                "load it on the base it was trained on")  # fmt: skip
    if encoder.tokenizer_digest != template["tokenizer_digest"]:
        found["tokenizer"] = Problem("", "tokenizer", f"tokenizer {encoder.tokenizer_digest[:19]}…", f"tokenizer {template['tokenizer_digest'][:19]}…",
                                     "restore tokenizer.json from a copy of the version")  # fmt: skip
    if encoder.template.digest != template["digest"]:
        found["template"] = Problem("", "template", f"template {encoder.template.digest[:19]}…", f"template {template['digest'][:19]}…",
                                    "restore chat_template.jinja and tokenizer_config.json from a copy of the version")  # fmt: skip
    return found


def _check_weights(version: Version, model: Any) -> None:
    """Every tensor of the file in the model, none missing, all finite: PEFT itself drops or ignores what does not fit."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    with safe_open(version.folder / "adapter_model.safetensors", framework="pt") as saved:
        names = set(saved.keys())
    if set(held) != names:
        odd = sorted(set(held) ^ names)
        refuse(version.label, "adapter_model.safetensors", f"{len(odd)} tensors that do not match the model, such as {odd[0]}",
               "exactly the adapter's tensors", "load it on the base it was trained on")  # fmt: skip
    if not all(bool(torch.isfinite(t).all()) for t in held.values()):
        refuse(version.label, "adapter_model.safetensors", "weights that are not finite numbers", "finite weights", "do not serve it; train again")


def _base_of(manifest: dict[str, Any], given: str | Path | None) -> Base:
    facts = manifest["base"]
    if given is None and facts["origin"].startswith(("local folder", "GGUF file")):
        refuse(f"{manifest['name']}@{manifest['version']}", "base", f"trained on a {facts['origin']}, {quoted(facts['name'])}, whose place is not stored",
               "that folder or file", "give base=FOLDER (on the command line --base FOLDER)")  # fmt: skip
    closed = {"online": False, "trust_remote_code": False}  # an artifact is data: it opens neither the network nor code
    spec = BaseSpec.model_validate(json.loads(json.dumps(facts["spec"])) | closed | ({"model": str(given)} if given is not None else {}))
    return resolve_base(spec, Path.cwd(), "base")
