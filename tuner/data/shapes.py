"""Plain objects to records: the four shapes people write, told apart by their keys, and the grammar of turns.

It refuses mixed shapes in a file, unknown roles and keys, content that is not text, and turns no chat template can render.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast, get_args

import msgspec

from tuner.catalog import nearest, suggestion
from tuner.data.files import Faults
from tuner.data.parse import decode, kind_of
from tuner.data.personal import masked_quote
from tuner.data.record import ROLES, SHAREGPT_ROLES, Message, Record, Role
from tuner.data.spec import Columns, Shape
from tuner.safe_text import visible

SHAPE_KEYS: dict[Shape, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
}
assert set(SHAPE_KEYS) == set(get_args(Shape))
QUESTION_KEYS = ("messages", "conversations", "prompt", "instruction", "question", "input", "text", "query", "utterance")

Parts = list[tuple[str, Any]]  # (path, message object) for every message, whatever the shape


class Shaper:
    """Records out of one file's objects. The first good object decides the file's shape; another shape further down is a fault.

    With `questions_only` (production inputs) a record may lack its answer: an empty assistant turn then stands for it.
    """

    def __init__(self, faults: Faults, columns: Columns | None, questions_only: bool = False):
        self.faults, self.columns, self.questions_only = faults, columns, questions_only
        self.shape: Shape | None = None
        self.line = 0

    def record(self, line: int, table: Mapping[str, Any]) -> Record | None:
        """The record of one object, or None with its faults recorded."""
        self.line = line
        if self.questions_only:
            table = self._answered(table)
        found = self._shape(table)
        if found is None:
            self._unknown_shape(table)
            return None
        if self.shape is not None and found != self.shape:
            self._add("MIXED_SHAPES", "", f"a record shaped as {found}, in a file of {self.shape}", "one shape a file", "split the file by shape")
            return None
        used, parts = _parts(table, found, self.columns)
        messages = self._messages(parts)
        if messages is None or not self._in_order(messages):
            return None
        self.shape = found
        tools = self._tools(table) if "tools" in table and "tools" not in used else ""
        if tools is None:
            return None
        if tools:
            messages[0] = msgspec.structs.replace(messages[0], tools=tools)
            used = used | {"tools"}
        extra = {str(k): v for k, v in table.items() if k not in used}
        return Record(tuple(messages), self.faults.file, line, self.faults.split, extra)

    def _add(self, code: str, field: str, found: str, accepted: str, fix: str) -> None:
        self.faults.add("structure", code, self.line, field, found, accepted, fix)

    # --- which shape

    def _shape(self, table: Mapping[str, Any]) -> Shape | None:
        if self.columns is not None:
            return ("messages" if self.columns.messages else "prompt_completion") if all(n in table for n in _named(self.columns)) else None
        for shape, keys in SHAPE_KEYS.items():
            if all(key in table for key in keys):
                return shape
        return None

    def _answered(self, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """A production input as a record: its question, and an empty answer where it has none."""
        if self.columns is not None:
            name = self.columns.messages or self.columns.prompt or ""
        else:
            name = next((k for k in QUESTION_KEYS if k in table), "")
        value = table.get(name)
        if isinstance(value, list):
            turns = [_renamed(item, SHAREGPT_ROLES) for item in value]
            last = turns[-1] if turns and isinstance(turns[-1], dict) else {}
            answered = turns if last.get("role") == "assistant" else [*turns, {"role": "assistant", "content": ""}]
            rest = {k: v for k, v in table.items() if k != name}
            return {**rest, "messages": answered} if self.columns is None else {**rest, name: answered}
        if value is None or self.columns is not None or any(all(table.get(k) is not None for k in keys) for keys in SHAPE_KEYS.values()):
            return table
        if name == "instruction":
            return {**table, "output": ""}
        rest = {k: v for k, v in table.items() if k not in {name, "prompt", "completion"}}
        return {**rest, "prompt": value, "completion": ""}

    def _unknown_shape(self, table: Mapping[str, Any]) -> None:
        keys = [visible(k, 60) for k in table]
        listed = ", ".join(keys[:20]) or "none"
        if self.columns is not None:
            wanted = _named(self.columns)
            missing = next(c for c in wanted if c not in table)
            self._add("SHAPE", missing, f"no such column among {listed}", f"columns {', '.join(wanted)}", suggestion(missing, keys))
            return
        accepted = "; ".join(f"{shape}: {' + '.join(names)}" for shape, names in SHAPE_KEYS.items())
        strange = [k for k in keys if not any(k in names for names in SHAPE_KEYS.values())]
        for names in SHAPE_KEYS.values():
            for name in names:
                slip = nearest(name, strange)
                if slip:
                    self._add("SHAPE", slip, f"keys {listed}", accepted, f"rename {slip} to {name}")
                    return
        if "mapping" in table:
            self._add("SHAPE", "mapping", "a ChatGPT export", accepted, "walk its `mapping` and write each conversation as messages")
            return
        present = [n for names in SHAPE_KEYS.values() for n in names if n in table]
        absent = next((n for names in SHAPE_KEYS.values() if present and present[0] in names for n in names if n not in table), "")
        self._add(
            "SHAPE",
            absent,
            f"keys {listed}",
            accepted,
            f"add {absent}"
            if absent
            else f"say which columns hold what: data.{self.faults.split}.columns={{prompt: {keys[0] if keys else '…'}, completion: …}}",
        )

    # --- messages

    def _messages(self, parts: Parts) -> list[Message] | None:
        messages: list[Message] = []
        for path, item in parts:
            message = self._message(path, item)
            if message is None:
                return None
            messages.append(message)
        if not messages:
            self._add("NO_MESSAGES", "messages", "an empty list", "at least one user and one assistant turn", "delete the record")
            return None
        return messages

    def _message(self, path: str, item: Any) -> Message | None:
        if not isinstance(item, dict):
            accepted = 'a message, as {"role": "user", "content": "…"}' if "[" in path else "a list of messages"
            self._add("TYPE", path, kind_of(item), accepted, "mend the record")
            return None
        role, content, calls = item.get("role"), item.get("content"), item.get("tool_calls")
        if role not in ROLES:
            self._add("ROLE", f"{path}.role", masked_quote(role), "one of: " + ", ".join(ROLES), suggestion(str(role), ROLES))
            return None
        allowed = {"role", "content", "name", *({"tool_calls", "weight"} if role == "assistant" else {"tool_call_id"} if role == "tool" else ())}
        other = sorted(str(k) for k, v in item.items() if k not in allowed and v is not None)
        if other:
            self._add("KEY", path, f"the key {masked_quote(other[0])}", ", ".join(sorted(allowed)), "remove it: it would be ignored")
            return None
        called = None if calls is None or calls == [] else self._tool_calls(path, calls)
        if called is None and calls is not None and calls != []:
            return None
        if content is None and called is not None:
            content = ""  # an assistant turn that only calls tools
        if not isinstance(content, str):
            self._add("NULL" if content is None else "TYPE", path if "[" not in path else f"{path}.content", kind_of(content), "text",
                      "write the text, or delete the record")  # fmt: skip
            return None
        names = [item.get("name"), item.get("tool_call_id")]
        if any(n is not None and not isinstance(n, str) for n in names):
            self._add("TYPE", path, "a name or tool_call_id that is not text", "text", "mend the record")
            return None
        if any(_half_surrogate(text) for text in (content, called or "", *(n or "" for n in names))):
            self._add("SURROGATE", path, "half of a surrogate pair, which is no character", "Unicode text", "mend or delete the record")
            return None
        weight = item.get("weight")
        if weight is not None and (isinstance(weight, (bool, str)) or weight not in (0, 1)):
            self._add("WEIGHT", f"{path}.weight", kind_of(weight), "0 (no loss) or 1", "write 0 or 1, or leave it out")
            return None
        return Message(cast(Role, role), content, called, names[1], names[0], 1 if weight is None else int(weight))

    def _tool_calls(self, path: str, calls: Any) -> str | None:
        """The calls as canonical JSON, or None with the fault recorded. Arguments may be an object, or its JSON text as OpenAI writes it."""
        where = f"{path}.tool_calls"
        if not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls):
            self._add("TOOL_CALL", where, kind_of(calls), "a list of calls", "mend the record")
            return None
        for index, call in enumerate(calls):
            function = call if call.get("function") is None else call["function"]  # a table fills keys that other calls have with nulls
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str) or not name:
                self._add("TOOL_CALL", f"{where}[{index}]", "a call without a function name", '{"function": {"name": …, "arguments": …}}', "mend the record")
                return None
            arguments = function.get("arguments", {})
            if isinstance(arguments, str):
                try:
                    arguments = decode(arguments)
                except ValueError:  # BadJson is one too
                    self._add("TOOL_ARGUMENTS", f"{where}[{index}].arguments", masked_quote(arguments), "the text of one JSON object", "mend the arguments")
                    return None
            if not isinstance(arguments, dict):
                self._add("TOOL_ARGUMENTS", f"{where}[{index}].arguments", kind_of(arguments), "one JSON object", "mend the arguments")
                return None
        try:
            return json.dumps(calls, ensure_ascii=False, sort_keys=True)
        except (TypeError, ValueError) as error:  # a date or bytes out of a parquet file
            self._add("TOOL_CALL", where, f"a value that JSON does not have: {visible(error, 80)}", "text, numbers, lists and objects", "write it as text")
            return None

    def _tools(self, table: Mapping[str, Any]) -> str | None:
        """The functions a conversation offers, as canonical JSON; nothing where it offers none; None with the fault recorded."""
        tools = table["tools"]
        if isinstance(tools, str) and tools.strip():
            try:
                tools = decode(tools)
            except ValueError:
                self._add("TOOLS", "tools", masked_quote(tools, 60), "a list of functions, or its JSON text", "mend the tools")
                return None
        if not tools:
            return ""
        if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
            self._add("TOOLS", "tools", kind_of(tools), "a list of functions, or its JSON text", "mend the tools")
            return None
        return json.dumps(tools, ensure_ascii=False, sort_keys=True, default=str)

    # --- order of turns

    def _in_order(self, messages: list[Message]) -> bool:
        """[system] then user and assistant in turn, the last an assistant; tool turns answer the calls before them."""
        roles = [m.role for m in messages]
        if roles in (["user", "assistant"], ["system", "user", "assistant"]):
            return True
        turns = [m for m in (messages[1:] if roles[0] == "system" else messages) if m.role != "tool"]
        spoken = [m.role for i, m in enumerate(turns) if not (i and m.role == "assistant" and turns[i - 1].tool_calls)]
        if spoken == ["user", "assistant"] * (len(spoken) // 2) and spoken and roles[-1] == "assistant":
            return self._calls_are_answered(messages)
        if "assistant" not in roles:
            self._add("NO_ASSISTANT", "messages", "no assistant turn", "a last turn by the assistant", "add the answer, or delete the record")
        elif roles[-1] != "assistant":
            self._add("LAST_TURN", "messages", f"a last turn by {roles[-1]}", "a last turn by the assistant", "add the answer, or delete the last turn")
        elif roles.count("system") > 1:
            self._add("SYSTEM_TURNS", "messages", f"{roles.count('system')} system turns", "one system turn, the first", "join them, or delete one")
        elif "tool" not in roles or self._calls_are_answered(messages):
            self._add("ORDER", "messages", "turns " + ", ".join(roles[:8]), "an optional system turn, then user and assistant in turn",
                      "mend the order of turns")  # fmt: skip
        return False

    def _calls_are_answered(self, messages: list[Message]) -> bool:
        """Every tool turn answers a call made just before it, and every call but those of the last turn is answered."""
        waiting: list[str] = []
        open_calls = 0
        for index, message in enumerate(messages):
            path = f"messages[{index}]"
            if message.role == "tool":
                if not open_calls or (message.tool_call_id is not None and waiting and message.tool_call_id not in waiting):
                    self._add("TOOL_RESULT", path, f"a tool result for {masked_quote(message.tool_call_id)}, which no turn before it called",
                              "the result of an earlier call",
                              "add the call, or delete the result")  # fmt: skip
                    return False
                open_calls -= 1
                if message.tool_call_id in waiting:
                    waiting.remove(message.tool_call_id)
                continue
            if open_calls:
                self._add(
                    "TOOL_UNANSWERED", path, f"{open_calls} tool calls without a result before this turn", "a tool turn for every call", "add the results"
                )
                return False
            calls = json.loads(message.tool_calls) if message.tool_calls else []
            waiting, open_calls = [c["id"] for c in calls if isinstance(c.get("id"), str)], len(calls)
        return True


def _half_surrogate(text: str) -> bool:
    return not text.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in text)


def _named(columns: Columns) -> list[str]:
    return [c for c in (columns.messages, columns.system, columns.prompt, columns.completion) if c]


def _parts(table: Mapping[str, Any], shape: Shape, columns: Columns | None) -> tuple[set[str], Parts]:
    """The columns used, and every message of the object as it was written."""
    if shape == "messages":
        name, system = (columns.messages or "", columns.system or "") if columns else ("messages", "")
        return {name, system} - {""}, _system(table.get(system) if system else None, system) + _listed(table[name], name)
    if shape == "sharegpt":
        return {"conversations", "system"}, _system(table.get("system"), "system") + _listed(table["conversations"], "conversations", SHAREGPT_ROLES)
    if shape == "alpaca":
        return {"instruction", "input", "output", "system"}, _alpaca(table)
    names = (columns.prompt, columns.completion, columns.system) if columns else ("prompt", "completion", "system")
    prompt, completion, system = (name or "" for name in names)
    body = _turn(table[prompt], prompt, "user") + _turn(table[completion], completion, "assistant")
    return {prompt, completion, system} - {""}, _system(table.get(system) if system else None, system) + body


def _alpaca(table: Mapping[str, Any]) -> Parts:
    asked, given = table["instruction"], table.get("input")
    given_is_text = given is None or isinstance(given, str)
    text = f"{asked}\n\n{given}" if isinstance(asked, str) and given_is_text and given else asked
    pair = [("instruction", {"role": "user", "content": text}), ("output", {"role": "assistant", "content": table["output"]})]
    if not given_is_text:
        pair.insert(1, ("input", {"role": "user", "content": given}))  # refused by its type
    return _system(table.get("system"), "system") + pair


def _system(value: Any, path: str) -> Parts:
    return [] if value is None or value == "" else [(path, {"role": "system", "content": value})]


def _turn(value: Any, path: str, role: str) -> Parts:
    """A prompt or completion column: text, or (TRL's conversational form) a list of messages."""
    return _listed(value, path) if isinstance(value, list) else [(path, {"role": role, "content": value})]


def _listed(value: Any, path: str, roles: Mapping[str, str] | None = None) -> Parts:
    if not isinstance(value, list):
        return [(path, (value,) if isinstance(value, dict) else value)]  # refused by its type: one message is no list of them
    if roles is None:
        return [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    return [(f"{path}[{i}]", _renamed(item, roles)) for i, item in enumerate(value)]


def _renamed(item: Any, roles: Mapping[str, str]) -> Any:
    if isinstance(item, dict) and {"from", "value"} <= set(item) and not {"role", "content"} & set(item):
        rest = {k: v for k, v in item.items() if k not in {"from", "value"}}
        return {"role": roles.get(item["from"], item["from"]) if isinstance(item["from"], str) else item["from"], "content": item["value"], **rest}
    return item


# --- the common case, in C -------------------------------------------------------------------------------------------

_PLAIN = (str, bool, type(None))
_SPACED_COLON = re.compile(rb'"[ \t\r]+:')
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def plain_record(data: bytes, line: int, faults: Faults, shape: Shape | None) -> tuple[Shape, Record] | None:
    """The record of a line in its commonest forms, decoded by msgspec; None for whatever is unusual, which then goes the strict way.

    msgspec refuses broken JSON, NaN, numbers out of range, bad UTF-8 and half surrogates, but keeps the last of two equal keys: so the
    keys it found are counted against the colons after a quote, of which a repeated key would leave one over.
    """
    if shape in (None, "messages") and (turns := _bare_chat(data)) is not None:
        return "messages", Record(turns, faults.file, line, faults.split, _NOTHING)
    try:
        table = _decode_object(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if "tools" in table:
        return None
    keys = len(table)
    if "messages" in table:
        messages = table["messages"]
        if shape not in (None, "messages") or type(messages) is not list:
            return None
        used = {"messages"}
        made = []
        for item in messages:
            if type(item) is not dict or len(item) != 2:
                return None
            role, content = item.get("role"), item.get("content")
            if type(content) is not str or type(role) is not str or role not in _SPEAKERS:
                return None
            made.append(Message(cast(Role, role), content))
            keys += 2
        turns = tuple(made)
        if not _alternates(turns):
            return None
        found: Shape = "messages"
    else:
        prompt, completion = table.get("prompt"), table.get("completion")
        if shape not in (None, "prompt_completion") or type(prompt) is not str or type(completion) is not str or "conversations" in table or "output" in table:
            return None
        if "system" in table:
            return None
        used = {"prompt", "completion"}
        turns = (Message("user", prompt), Message("assistant", completion))
        found = "prompt_completion"
    if data.count(b'":') != keys or _SPACED_COLON.search(data):
        return None
    extra = {}
    if len(table) > len(used):
        for key, value in table.items():
            if key not in used:
                if type(value) not in _PLAIN and not (type(value) is int and -(10**18) < value < 10**18):
                    return None
                extra[key] = value
    return found, Record(turns, faults.file, line, faults.split, extra)


class _Chat(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A line that holds nothing but messages."""

    messages: tuple[Message, ...]


_decode_chat = msgspec.json.Decoder(_Chat).decode
_NOTHING: Mapping[str, Any] = {}


def _bare_chat(data: bytes) -> tuple[Message, ...] | None:
    """The turns of a line with no other keys than messages, role and content, two of the latter in every turn; else None."""
    try:
        turns = _decode_chat(data).messages
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if data.count(b'":') != 1 + 2 * len(turns) or _SPACED_COLON.search(data) or not _alternates(turns):
        return None
    return turns


_SPEAKERS = frozenset({"system", "user", "assistant"})


def _alternates(turns: tuple[Message, ...]) -> bool:
    if len(turns) == 2:
        return turns[0].role == "user" and turns[1].role == "assistant"
    roles = [t.role for t in turns]
    spoken = roles[1:] if roles and roles[0] == "system" else roles
    return bool(spoken) and spoken == ["user", "assistant"] * (len(spoken) // 2)
