"""Whether an answer is none: blank, the label for none of these, an object without values, or words that say so.

Words are looked for at the beginning of an answer alone. They are a screen: of an answer that talks about not knowing, they may be wrong.
"""

from __future__ import annotations

import re

from tuner.data.record import normalised
from tuner.evaluate.metrics import parse_object
from tuner.evaluate.perturb_spans import leaves

_NONE = (
    "none other others unknown outofscope oos outofdomain ood nointent notapplicable na irrelevant unsupported nota noneoftheabove noneofthese fallback "
    "unrelated nolabel notsupported undefined misc"
)
NONE_LABELS = frozenset(_NONE.split())
BEGINNING = 200  # characters of an answer in which it says that it does not answer; later on such words are about something else

_LETTERS = re.compile(r"[^a-z]")
_NOT = (
    r"(?:do(?:es)? not|don['’]?t|doesn['’]?t|did not|didn['’]?t|is not|isn['’]?t|are not|aren['’]?t|was not|wasn['’]?t|cannot|can['’]?t|can not"
    r"|could not|couldn['’]?t|am not able to|['’]m not able to|am unable to|['’]m unable to|is unable to|not possible to|impossible to)"
)
_SAYS = r"(?:say|state|mention|specify|provide|contain|include|give|tell|indicate|answer|cover|address|describe)"
_TEXT = r"(?:document|text|passage|context|article|page|message|input|source|paragraph|information|data|records?|conversation|question|prompt)"
_KNOW = r"(?:know|answer|tell|say|determine|find|see|have (?:access|(?:any |the |that |enough )?information|enough))"
_STATED = r"(?:known(?! for)|stated|said|mentioned|specified|given|provided|answered|determined|available|contained|included)"
_IMPOSSIBLE = r"(?:cannot|can['’]?t|can not|could not|impossible to|not possible to)"
_ALONE = r"(?:unknown|unanswerable|no answer|n/?a|none|no information|not (?:answerable|applicable|available|specified|stated|mentioned))"
PHRASES = (
    rf"\b(?:i|we) {_NOT} (?:\w+ ){{0,2}}{_KNOW}\b",
    rf"\b(?:i['’]m|i am|we are) (?:sorry(?! to hear)|afraid|unable|not able|not sure|unsure)\b.{{0,60}}\b(?:{_NOT}|unable|not able|know|answer|tell)\b",
    r"\b(?:i|we) have no (?:idea|way of knowing|way to know|information|knowledge|access|record|means of knowing)\b",
    rf"\b{_TEXT} (?:\w+ ){{0,2}}{_NOT} (?:\w+ ){{0,2}}{_SAYS}\b",
    rf"\b{_TEXT} (?:\w+ ){{0,2}}(?:says|states|mentions|contains|gives|provides|has) (?:nothing|no)\b",
    rf"\bno (?:information|mention|answer|details?|indication)\b.{{0,30}}\b(?:{_TEXT}|given|provided|available|found|about)\b",
    rf"\b(?:it|this|the answer|the information) {_NOT} (?:be )?(?:\w+ )?{_STATED}\b",
    rf"\b{_IMPOSSIBLE} be (?:answered|determined|known|said|told)\b",
    rf"\b{_IMPOSSIBLE} (?:answer|determine|know|say|tell)\b",
    r"\b(?:not|isn['’]?t) (?:answerable|enough information|in (?:the|my|this) (?:document|text|passage|context|scope|records?))\b",
    r"\b(?:nobody|no one|only you|there is no way to|there['’]s no way to) (?:can |could |would )?(?:know|say|tell)s?\b",
    r"\b(?:beyond|outside)(?: of)? (?:my|the|this) (?:knowledge|scope|abilit(?:y|ies)|context|document)\b",
    rf"^{_ALONE}[.!]?$",
)
_SAID = re.compile("|".join(PHRASES), re.IGNORECASE)


def means_none(value: str) -> bool:
    """Whether a label's name says that no label fits: none, other, unknown, out_of_scope, …"""
    return _LETTERS.sub("", value.lower()) in NONE_LABELS


def empty_object(answer: str) -> bool:
    """A JSON object that says nothing, or nothing but that no label fits."""
    table = parse_object(answer)
    return table is not None and all(not v or means_none(v) for v in leaves(table))


def says_nothing(answer: str, task: str, label: str | None = None) -> bool:
    """Whether an answer abstains. `label` is the label of a label task that means none of these."""
    text = answer.strip()
    if not text or (task == "label" and label is not None and normalised(text) == normalised(label)):
        return True
    if task == "json" and (text in ("null", "[]") or parse_object(text) is not None):
        return text in ("null", "[]") or empty_object(text)
    return _SAID.search(text[:BEGINNING].replace("\n", " ")) is not None
