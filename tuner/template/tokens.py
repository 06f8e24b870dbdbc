"""Rendered text to token ids and labels: the one place where a record becomes a row, and a question becomes a prompt.

It refuses a row without a loss token or without a stop token, and lets no text of a record become a special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, NoReturn

from tokenizers import AddedToken, Tokenizer

from tuner.data.record import Message, Record
from tuner.errors import Collector, Refusal, refuse
from tuner.fingerprint import digest_file, digest_json
from tuner.safe_text import quoted, visible
from tuner.template.masks import Span, turn_spans, turns_with_loss
from tuner.template.render import ChatTemplate, read_template
from tuner.template.spec import TemplateSpec

_BATCH = 512  # records encoded at a time
_TRIED = 4  # prompts of a batch that are also encoded by themselves
IGNORED = -100  # the label torch.nn.CrossEntropyLoss leaves out
_PRIVATE = range(0x100000, 0x10FFF0)  # supplementary private-use area B: stand-ins for control texts while rendering


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenised record. `labels` equals `input_ids` where a token carries loss and -100 elsewhere.

    `cut_tokens` were taken from the beginning of the prompt (template.truncate). `merged`: the tokenizer joins the end of a prompt with the
    beginning of the answer, so the prompt that is served decides where the answer starts.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int
    record: Record
    cut_tokens: int = 0
    merged: bool = False

    @property
    def completion_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(label != IGNORED for label in self.labels)


def label_mask(prompt: list[int], completion: list[int]) -> list[int]:
    """Labels (T,) for prompt + completion: -100 on every prompt token, the token itself on every completion token.

    -100 is what torch.nn.CrossEntropyLoss ignores. Raises Refusal if completion is empty: nothing would be learned.
    """
    if not completion:
        refuse("row", "completion", "no tokens", "at least one token that carries loss", "delete the record")
    return [IGNORED] * len(prompt) + list(completion)


class _Cut(NamedTuple):
    """A rendered prompt holds `marks` added tokens; from the last of them on its ids are `tail`."""

    marks: int
    tail: list[int]


def _added_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Matches every added token as the tokenizer does, leftmost and longest; None where it matches some otherwise than by their bare text."""
    added = list(tokenizer.get_added_tokens_decoder().values())
    if not added or any(t.single_word or t.lstrip or t.rstrip or (t.normalized and tokenizer.normalizer is not None) for t in added):
        return None
    return re.compile("|".join(re.escape(t) for t in sorted((t.content for t in added), key=lambda t: (-len(t), t))))


class Encoder:
    """A tokenizer with its chat template. Training, evaluation and serving all go through this object."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, stop_ids: frozenset[int], spec: TemplateSpec, name: str):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.template, self.stop_ids, self.spec, self.name = tokenizer, template, stop_ids, spec, name
        added = tokenizer.get_added_tokens_decoder().values()
        control = (t.content for t in added if t.special or (t.content.strip() and t.content in template.source))
        self.control_texts = tuple(sorted(set(control) - set(spec.content_tokens) - set(spec.new_tokens), key=lambda t: (-len(t), t)))
        self._added_ids = frozenset(tokenizer.get_added_tokens_decoder())
        self._added = _added_pattern(tokenizer)
        self._tails: dict[str, list[int]] = {}
        self.control_ids = frozenset(i for t in self.control_texts if (i := tokenizer.token_to_id(t)) is not None)

    def uncut(self) -> Encoder:
        """The same encoder, which takes nothing from a prompt: what is served is never cut."""
        return Encoder(self.tokenizer, self.template, self.stop_ids, self.spec.model_copy(update={"truncate": "never"}), self.name)

    def without_system(self) -> Encoder:
        """The same encoder, which adds no system prompt of the recipe's."""
        return Encoder(self.tokenizer, replace(self.template, system=None), self.stop_ids, self.spec, self.name)

    # --- prompts and rows

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a question, up to and with the words that open the assistant's turn."""
        shielded, stand_ins = self._shielded(self.template.with_system(messages))
        return self._encode(self.template.render(shielded, generation_prompt=True), stand_ins)

    def row(self, record: Record) -> Row:
        """The row of a record: prompt ids, then the completion's ids up to and with its stop token.

        Raises Refusal when the template does not continue its own prompt or never stops, or when nothing would carry loss.
        """
        messages, stand_ins = self._shielded(self.template.with_system(record.messages))
        turns = turns_with_loss(messages, self.spec.loss_on)
        prompt, completion, merged = self._last_turn(record, messages, stand_ins)
        if self.spec.loss_on == "everything":
            silent = [i for i, m in enumerate(messages) if m.role == "assistant" and m.weight == 0]
            row = Row(prompt + completion, prompt + completion, len(prompt), record, 0, merged)
            return self._finished(self._without_turns(row, messages, stand_ins, silent) if silent else row)
        if not turns:
            refuse(record.where, "weight", "no assistant turn that carries loss", "at least one of weight 1", "delete the record, or the weights")
        if turns == [len(messages) - 1]:
            return self._finished(Row(prompt + completion, label_mask(prompt, completion), len(prompt), record, 0, merged))
        return self._finished(self._row_of_turns(record, messages, stand_ins, turns, Row(prompt + completion, [], len(prompt), record, 0, merged)))

    def completion_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Token ids of `answer` as it would be trained after this prompt, stop token included."""
        record = Record((*messages, Message("assistant", answer)), "question", 0, "none")
        whole, stand_ins = self._shielded(self.template.with_system(record.messages))
        return self._last_turn(record, whole, stand_ins)[1]

    def rows(self, records: Iterable[Record]) -> list[Row]:
        """Rows of all records. Raises Refusal with every record that cannot become one."""
        rows: list[Row] = []
        collector = Collector()
        for record, row in self.rows_or_refusals(list(records)):
            if isinstance(row, Row):
                rows.append(row)
                continue
            for problem in row.problems:
                collector.add(record.where, problem.field, problem.found, problem.accepted, problem.try_)
        collector.raise_if_any()
        return rows

    def rows_or_refusals(self, records: Sequence[Record]) -> Iterator[tuple[Record, Row | Refusal]]:
        """Every record with its row, or with why it cannot become one. A batch of texts is encoded at a time."""
        for start in range(0, len(records), _BATCH):
            part = records[start : start + _BATCH]
            texts = [self._plain_texts(record) for record in part]
            plain = [pair for pair in texts if pair is not None]
            ids = [e.ids for e in self.tokenizer.encode_batch_fast([whole for _, whole in plain], add_special_tokens=False)]
            wholes, prompts = iter(ids), iter(self._prompts([asked for asked, _ in plain], ids))
            for record, pair in zip(part, texts, strict=True):
                try:
                    if pair is None:
                        yield record, self.row(record)
                        continue
                    prompt, completion, merged = self._parted(record, pair, next(prompts), next(wholes))
                    yield record, self._finished(Row(prompt + completion, label_mask(prompt, completion), len(prompt), record, 0, merged))
                except Refusal as refusal:
                    yield record, refusal

    def _plain_texts(self, record: Record) -> tuple[str, str] | None:
        """The rendered prompt and whole of a record that needs no shielding and has one turn with loss; None where it does, or cannot be rendered."""
        if self.spec.loss_on == "everything":
            return None
        try:
            messages, stand_ins = self._shielded(self.template.with_system(record.messages))
            if stand_ins or turns_with_loss(messages, self.spec.loss_on) != [len(messages) - 1]:
                return None
            asked = self.template.render(messages[:-1], generation_prompt=True)
            whole = self.template.render(messages, generation_prompt=False)
        except Refusal:
            return None
        return (asked, whole) if whole.startswith(asked) else None

    def _parted(self, record: Record, texts: tuple[str, str], cut: _Cut | None, whole: list[int]) -> tuple[list[int], list[int], bool]:
        """Prompt ids and completion ids out of the ids of the whole, and whether the two had to be encoded apart.

        Where a tokenizer merges across the boundary, the prompt that is served decides, and the answer is encoded after it.
        """
        prompt = self._ids(texts[0]) if cut is None else self._cut_prompt(cut, whole, texts[0])
        merged = whole[: len(prompt)] != prompt
        answer = self._ids(texts[1][len(texts[0]) :]) if merged else whole[len(prompt) :]
        return prompt, self._up_to_stop(record, answer), merged

    def _prompts(self, asked: Sequence[str], wholes: Sequence[list[int]]) -> list[_Cut | None]:
        """For each rendered prompt, how to find its ids in those of the whole; None where it has to be encoded by itself.

        Tokenizers split text at added tokens before anything else, so that up to its last added token a prompt has the ids of the whole, and
        what follows that token is nearly always the same few words. The first prompts of every batch are encoded to see that it holds.
        """
        if self._added is None:
            return [None] * len(asked)
        cuts = [self._cut(text) for text in asked]
        for text, cut, whole in list(zip(asked, cuts, wholes, strict=True))[:_TRIED]:
            if cut is not None and self._cut_prompt(cut, whole, text) != self._ids(text):
                self._added = None
                return [None] * len(asked)
        return cuts

    def _cut(self, asked: str) -> _Cut | None:
        assert self._added is not None
        marks = list(self._added.finditer(asked))
        if not marks:
            return None
        tail = asked[marks[-1].start() :]
        if tail not in self._tails:
            if len(self._tails) > _BATCH:
                self._tails.clear()
            self._tails[tail] = self._ids(tail)
        return _Cut(len(marks), self._tails[tail])

    def _cut_prompt(self, cut: _Cut, whole: list[int], asked: str) -> list[int]:
        seen = 0
        for place, token in enumerate(whole):
            seen += token in self._added_ids
            if seen == cut.marks:
                return whole[:place] + cut.tail
        return self._ids(asked)

    def _last_turn(self, record: Record, messages: list[Message], stand_ins: dict[str, str]) -> tuple[list[int], list[int], bool]:
        asked = self.template.render(messages[:-1], generation_prompt=True)
        whole = self.template.render(messages, generation_prompt=False)
        if not whole.startswith(asked):
            refuse(record.where, "messages", f"the whole record renders as {quoted(whole[-60:])}, its prompt as {quoted(asked[-60:])}",
                   "a chat template whose prompt is the beginning of the whole", "use another base or template: this one changes earlier turns")  # fmt: skip
        prompt, ids = self._encode(asked, stand_ins), self._encode(whole, stand_ins)
        merged = ids[: len(prompt)] != prompt  # as in `_parted`: the prompt that is served decides
        answer = self._encode(whole[len(asked) :], stand_ins) if merged else ids[len(prompt) :]
        return prompt, self._up_to_stop(record, answer), merged

    def _up_to_stop(self, record: Record, answer: list[int]) -> list[int]:
        ends = [i for i, token in enumerate(answer) if token in self.stop_ids]
        if not ends:
            self._refuse_endless(record)
        return answer[: ends[-1] + 1]

    def _row_of_turns(self, record: Record, messages: list[Message], stand_ins: dict[str, str], turns: list[int], row: Row) -> Row:
        """The row with loss on several turns. Where a token spans the edge of a turn it carries no loss."""
        whole = self.template.render(messages, generation_prompt=False)
        spans = turn_spans(record.where, messages, turns, whole, self.template.render)
        ids, places = self._encode_with_places(whole, stand_ins)
        if ids[: len(row.input_ids)] != row.input_ids:  # the answer was encoded apart from its prompt: the places of all ids before it hold
            edge = len(self.template.render(messages[:-1], generation_prompt=True))
            prompt, first = self._encode_with_places(whole[:edge], stand_ins)
            answer, second = self._encode_with_places(whole[edge:], stand_ins)
            ids, places = prompt + answer, first + [(a + edge, b + edge) for a, b in second]
        labels = [IGNORED] * len(row.input_ids)
        for start, end in spans:
            inside = [i for i, (a, b) in enumerate(places[: len(labels)]) if a >= start and b <= end and b > a]
            stops = [i for i in inside if ids[i] in self.stop_ids]
            if not stops:
                self._refuse_endless(record)
            for i in inside:
                if i <= stops[-1]:
                    labels[i] = ids[i]
        return replace(row, labels=labels)

    def _without_turns(self, row: Row, messages: list[Message], stand_ins: dict[str, str], turns: list[int]) -> Row:
        """The row without loss on these turns. Raises Refusal where nothing is left."""
        kept = self._row_of_turns(row.record, messages, stand_ins, turns, row).labels
        labels = [IGNORED if silenced != IGNORED else label for label, silenced in zip(row.labels, kept, strict=True)]
        if len(messages) - 1 in turns:  # the last turn's stop token ends the row, and would be its only trained end
            labels[row.prompt_tokens :] = [IGNORED] * (len(labels) - row.prompt_tokens)
        if all(label == IGNORED for label in labels):
            refuse(row.record.where, "weight", "no token that carries loss", "at least one", "delete the record, or the weights")
        return replace(row, labels=labels)

    def _finished(self, row: Row) -> Row:
        """The row, looked at once more before anything is trained on it, and cut where the recipe says so.

        Raises Refusal where its last loss token is no stop token, or its loss tokens do not read as the completion.
        """
        record = row.record
        last = len(row.labels) - 1
        if row.labels[last] not in self.stop_ids and record.messages[-1].weight:
            self._refuse_endless(record)
        if self.spec.loss_on != "everything" and record.messages[-1].weight and record.messages[-1].tool_calls is None:
            start = row.prompt_tokens
            said, meant = self.tokenizer.decode(row.input_ids[start:last], skip_special_tokens=False), record.messages[-1].content
            if said.strip() != meant.strip() and _bare(said) != _bare(meant):
                refuse(record.where, "completion", f"loss tokens that read {quoted(said, 60)}", f"the completion, {quoted(meant, 60)}",
                       "use another format: this one rewrites the answer")  # fmt: skip
        return self._cut_left(row) if self.spec.truncate == "prompt_left" else row

    def _cut_left(self, row: Row) -> Row:
        """The row without the beginning of the user's words where it is too long; what the template writes round them stays.

        Where the first user turn is not enough, the turns up to the words of a later user turn go too. Left as it is, for the check
        `overlong`, where all the user's words would not be enough.
        """
        over = len(row.input_ids) - self.spec.max_tokens
        words = self._user_words(row) if over > 0 else []
        begin = words[0][0] if words else 0
        stop = next((max(begin + over, first) for first, last in words if begin + over <= last), None)
        if stop is None:
            return row
        ids, labels = list(row.input_ids), list(row.labels)
        del ids[begin:stop], labels[begin:stop]
        if all(label == IGNORED for label in labels):
            return row
        cut = stop - begin
        return replace(row, input_ids=ids, labels=labels, prompt_tokens=row.prompt_tokens - cut, cut_tokens=cut)

    def _user_words(self, row: Row) -> list[Span]:
        """The tokens (first, behind the last) of each user turn's words in the prompt."""
        messages, stand_ins = self._shielded(self.template.with_system(row.record.messages))
        asked = self.template.render(messages[:-1], generation_prompt=True)
        spans = self._content_spans(messages[:-1], asked)
        _, places = self._encode_with_places(asked, stand_ins)
        found: list[Span] = []
        for message, (start, end) in zip(messages[:-1], spans, strict=False):
            if message.role == "user":
                inside = [i for i, (a, b) in enumerate(places) if a >= start and b <= end and b > a]
                if inside:
                    found.append((inside[0], inside[-1] + 1))
        return found

    def _content_spans(self, messages: Sequence[Message], asked: str) -> list[Span]:
        """The characters of `asked` that each message's content takes: found by rendering one private character in its place.

        Nothing where the template does more to a content than trim it.
        """
        marks = [chr(_PRIVATE[-1] - i) for i in range(len(messages))]
        skeleton = self.template.render([m.saying(c, m.tool_calls, m.tools) for m, c in zip(messages, marks, strict=True)], generation_prompt=True)
        for trimmed in (False, True):
            spans: list[Span] = []
            built = ""
            for char in skeleton:
                if char in marks:
                    said = messages[marks.index(char)].content
                    said = said.strip() if trimmed else said
                    spans.append((len(built), len(built) + len(said)))
                    built += said
                else:
                    built += char
            if built == asked and len(spans) == len(messages):
                return spans
        return []

    def _refuse_endless(self, record: Record) -> NoReturn:
        names = ", ".join(quoted(self.tokenizer.id_to_token(i)) for i in sorted(self.stop_ids))
        refuse(record.where, "completion", "no stop token after the answer", f"a template that ends a turn with one of {names}",
               "use another template: a model trained like this would never stop")  # fmt: skip

    # --- text to ids, with control texts kept as text

    def _shielded(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """The messages with every control text replaced by one private character, and what each character stands for."""
        self._refuse_unrendered_calls(messages)
        spelt = [t for t in self.control_texts if any(t in m.content or (m.tool_calls and t in m.tool_calls) or (m.tools and t in m.tools) for m in messages)]
        if not spelt:
            return list(messages), {}
        used = {c for m in messages for c in f"{m.text}{m.tools or ''}"}
        free = (chr(c) for c in _PRIVATE if chr(c) not in used)
        stand_ins = dict(zip(spelt, free, strict=False))
        shielded = []
        for message in messages:
            content, calls, tools = message.content, message.tool_calls, message.tools
            for text, char in stand_ins.items():  # longest first
                content = content.replace(text, char)
                calls = calls and calls.replace(text, char)
                tools = tools and tools.replace(text, char)
            shielded.append(message.saying(content, calls, tools))
        return shielded, {char: text for text, char in stand_ins.items()}

    def _refuse_unrendered_calls(self, messages: Sequence[Message]) -> None:
        """Raises Refusal where a turn calls tools, or answers a call, and the template would leave that out in silence."""
        if any(m.tools for m in messages) and "tools" not in self.template.source:
            refuse(self.name, "tools", "functions that the conversation offers", "what this chat template renders",
                   "use a base or format whose template renders tools (qwen-2.5), or leave the column out")  # fmt: skip
        for index, message in enumerate(messages):
            if (message.tool_calls or message.role == "tool") and "tool_calls" not in self.template.source:
                refuse(self.name, f"messages[{index}]", "a tool call" if message.tool_calls else "a tool result", "turns this chat template renders",
                       "use a base whose template renders tool calls, or write them as text")  # fmt: skip

    def _encode(self, text: str, stand_ins: dict[str, str]) -> list[int]:
        """Ids of rendered text. The template's own special tokens are special; stand-ins are spelt out as plain text."""
        ids: list[int] = []
        start = 0
        for position, char in enumerate(text):
            if char in stand_ins:
                ids += self._ids(text[start:position]) + self._inert_ids(stand_ins[char])
                start = position + 1
            if not stand_ins:
                break
        return ids + self._ids(text[start:])

    def _encode_with_places(self, text: str, stand_ins: dict[str, str]) -> tuple[list[int], list[Span]]:
        """Ids of rendered text, and the characters of it that each stands for."""
        ids: list[int] = []
        places: list[Span] = []
        start = 0
        for position in [i for i, char in enumerate(text) if char in stand_ins] + [len(text)] if stand_ins else [len(text)]:
            encoded = self.tokenizer.encode(text[start:position], add_special_tokens=False)
            ids += encoded.ids
            places += [(a + start, b + start) for a, b in encoded.offsets]
            if position < len(text):
                inert = self._inert_ids(stand_ins[text[position]])
                ids += inert
                places += [(position, position + 1)] * len(inert)
            start = position + 1
        return ids, places

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids if text else []
        return ids

    def _inert_ids(self, text: str) -> list[int]:
        """Ids of a control text as plain text: cut into ever smaller pieces until none of them is special."""
        for size in range(len(text) - 1, 0, -1):
            ids = [i for start in range(0, len(text), size) for i in self._ids(text[start : start + size])]
            if not self.control_ids.intersection(ids):
                return ids
        refuse(self.name, "tokenizer", f"{quoted(text)} cannot be written as plain text", "a tokenizer that can spell it", "remove it from the records")

    # --- ids to text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """How one token reads, specials included, control characters visible."""
        return visible(self.tokenizer.decode([token], skip_special_tokens=False) or self.tokenizer.id_to_token(token) or f"<{token}>")

    @property
    def new_ids(self) -> tuple[int, ...]:
        """Ids of template.new_tokens."""
        return tuple(i for t in self.spec.new_tokens if (i := self.tokenizer.token_to_id(t)) is not None)

    @property
    def vocabulary(self) -> int:
        """How many embedding rows the tokenizer's ids need."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def begin_id(self) -> int | None:
        """The begin-of-text token, where the tokenizer names one."""
        text = self.template.special_tokens.get("bos_token")
        found: int | None = self.tokenizer.token_to_id(text) if text else None
        return found

    @property
    def pad_id(self) -> int:
        """A token for padding: the tokenizer's own, or a stop token; padding is masked out everywhere."""
        text = self.template.special_tokens.get("pad_token")
        found = self.tokenizer.token_to_id(text) if text else None
        return found if found is not None else min(self.stop_ids)

    @property
    def digest(self) -> str:
        """Identity of text-to-ids: tokenizer and template."""
        return digest_json([self.tokenizer_digest, self.template.digest])

    @property
    def tokenizer_digest(self) -> str:
        return digest_json(self.tokenizer.to_str())


def _bare(text: str) -> str:
    """Letters and signs alone: tokenizers may join or double blanks, and templates trim."""
    return "".join(text.split())


def open_encoder(folder: Path, spec: TemplateSpec, name: str, recipe_folder: Path = Path()) -> Encoder:
    """The encoder of a model or artifact folder. Loads neither torch nor transformers when tokenizer.json is there."""
    file = folder / "tokenizer.json"
    tokenizer = _read_tokenizer(file) if file.is_file() else _converted(folder)
    _add_new_tokens(tokenizer, spec, name)
    template = read_template(folder, spec, tokenizer, recipe_folder)
    stops = _stop_ids(folder, tokenizer, template)
    if not stops:
        refuse(name, "tokenizer", "no stop token (eos_token)", "a tokenizer that names one", "use the tokenizer files that belong to the model")
    return Encoder(tokenizer, template, stops, spec, name)


def _add_new_tokens(tokenizer: Tokenizer, spec: TemplateSpec, name: str) -> None:
    """Raises Refusal for a text that is no word of its own: blank, or twice, or in the vocabulary already."""
    known = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    accepted = "different texts with a visible character that no token spells yet"
    for text in spec.new_tokens:
        if not text.strip() or spec.new_tokens.count(text) > 1:
            refuse(name, "template.new_tokens", quoted(text), accepted, "remove it")
        if tokenizer.token_to_id(text) is None:
            tokenizer.add_tokens([AddedToken(text, normalized=False, special=False)])
        elif text not in known:  # an artifact's own tokenizer holds its new tokens as added ones
            refuse(name, "template.new_tokens", f"{quoted(text)}, which is in the vocabulary already", accepted, "put it in marks, as <…>")


def _read_tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 (tokenizers raises nothing narrower)
        refuse(file, "", f"unreadable: {quoted(error, 80)}", "the model's own tokenizer.json", "copy the model's tokenizer files again")


def _converted(folder: Path) -> Tokenizer:
    """The fast form of a tokenizer that ships only in an older form."""
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        refuse(folder.name, "tokenizer", quoted(error, 120), "a tokenizer.json", "copy the model's tokenizer files into the folder")
    converted: Tokenizer = slow.backend_tokenizer
    return converted


def _stop_ids(folder: Path, tokenizer: Tokenizer, template: ChatTemplate) -> frozenset[int]:
    """eos_token and every eos id of generation_config.json: any of them ends an answer."""
    ids: set[int] = set()
    text = template.special_tokens.get("eos_token")
    if text is not None and (found := tokenizer.token_to_id(text)) is not None:
        ids.add(found)
    if template.stop and (found := tokenizer.token_to_id(template.stop)) is not None:
        ids.add(found)
    file = folder / "generation_config.json"
    if file.is_file():
        listed = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        ids.update(i for i in (listed if isinstance(listed, list) else [listed]) if isinstance(i, int))
    return frozenset(ids)


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def tokenizer_files(folder: Path) -> dict[str, str]:
    """Digest of every tokenizer file of a folder, by name."""
    return {name: digest_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
