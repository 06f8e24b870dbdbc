"""Changes of wording: the same request in other words, or with more of them. English rules; they say so when a text is not English.

What is added never greets, thanks, agrees, refuses or asks for anything, since such words are answers of some label sets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

Rule = tuple[re.Pattern[str], tuple[str, ...]]

_FUNCTION_WORDS = (
    "the a an and or but if of to in on at for with from by about is are was were be been am do does did have has had can could will would should may "
    "i you he she it we they me my your his her our their this that these those what how why when where who which not no yes please"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_WORD = re.compile(r"[^\W\d_]+")
ENGLISH_SHARE = 0.12  # of words that are function words: 0.40 to 0.48 in clinc150 and multidogo; German, French and Spanish prose stays under 0.08


def english_share(texts: Sequence[str]) -> float:
    """Share of all words that are English function words."""
    words = [w.lower() for text in texts for w in _WORD.findall(text)]
    return sum(w in FUNCTION_WORDS for w in words) / len(words) if words else 0.0


# --- verbosity -----------------------------------------------------------------------------------------------------

LEADS = (
    "This may be a bit long-winded.", "I hope this is the right place for it.", "I will try to keep this short.",
    "I have been meaning to write this for a while.", "I am typing this on my way home.", "It has been one of those long days.",
    "I was not sure how to put this into words.", "I do not write messages like this often.", "Bear with me while I put this into words.",
    "I was in the middle of something else and then remembered this.",
)  # fmt: skip
AFTERS = (
    "That is really all there is to it.", "I hope that makes sense the way I wrote it.", "I know I tend to ramble.",
    "There is nothing else to add from my side.", "I wrote it as plainly as I could.", "I am sitting at my kitchen table while I write this.",
    "Everything else around here is as usual.", "The weather has been grey all day, not that it matters.", "I have a habit of writing more than is needed.",
    "In any case, that is the whole of it.",
)  # fmt: skip
_SENTENCES = ((1, 0), (1, 2), (3, 4))  # before and after


def verbose(text: str, rng: random.Random, severity: int) -> str:
    """One sentence before; one before and two after; three before and four after."""
    leads, afters = rng.sample(LEADS, len(LEADS)), rng.sample(AFTERS, len(AFTERS))
    before, after = _SENTENCES[severity - 1]
    body = text.strip()
    if "\n" in body:
        return "\n\n".join(part for part in (" ".join(leads[:before]), body, " ".join(afters[:after])) if part)
    stop = "" if not after or body[-1:] in ".?!…:;,)\"'" else "."
    return " ".join([*leads[:before], body + stop, *afters[:after]])


# --- paraphrase ----------------------------------------------------------------------------------------------------

_OPEN = r"(?:^|(?<=[.!?;,] )|(?<=\band )|(?<=\bbut )|(?<=\bso )|(?<=\bhi )|(?<=\bhello ))"  # where a clause begins


def _rules(pairs: Sequence[tuple[str, str]]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern, re.IGNORECASE), tuple(options.split("|"))) for pattern, options in pairs)


_FRAMES = _rules([
    (r"^how (?:do|can|could|would) i (?=[a-z])", "what do i need to do to |what is the way to |in what way can i "),
    (_OPEN + r"(?:can|could|would|will) you (?:please )?(?=[a-z])(?!not\b)", "are you able to |would it be possible for you to |is there a way for you to "),
    (_OPEN + r"(?:can|could|may) i (?=[a-z])(?!not\b)", "am i able to |is it possible for me to |would i be able to "),
    (_OPEN + r"(?:i need to|i want to|i would like to|i'd like to|i wish to|i wanna|i am trying to|i'm trying to) (?=[a-z])",
     "what i want to do is |i am looking to |i am hoping to |my aim is to "),
    (r"^(?=(?:what|where|when|why|who|which)(?:'s| (?:is|are|was|were|do|does|did|can|should|will)) )", "tell me, |one question: |let me ask this: "),
    (r"^what(?:'s| is) (?=(?:my|the|your|our)\b)", "tell me, what is |one question: what is |let me ask this: what is "),
    (r"^how (?=(?:much|many|long|far|often)\b)", "tell me, how |one question: how |let me ask this: how "),
    (r"^(?:tell me|let me know) (?=(?:what|where|when|why|who|which|how|if|the|my|about)\b)", "i would like to be told |i would like to know |please say "),
    (_OPEN + r"please (?=(?!note\b|see\b|find\b)[a-z]+ )", "kindly |be so kind as to |i ask you to "),
    (_OPEN + r"(?:i can't|i cannot|i can not|i am unable to|i'm unable to|i am not able to|i'm not able to) (?=[a-z])",
     "it is not possible for me to |i find that i am unable to |there is no way for me to "),
    (_OPEN + r"help me (?:to )?(?=[a-z]+ )(?!with\b|out\b|please\b)", "assist me to |give me a hand to "),
    (_OPEN + r"i have (?=(?:a|an|some|no) )", "there is something i have: |what i have is "),
])  # fmt: skip
_SYNONYMS = _rules([
    (r"\bi'm\b", "i am"), (r"\bdon't\b", "do not"), (r"\bcan't\b", "cannot"), (r"\bisn't\b", "is not"), (r"\bdidn't\b", "did not"),
    (r"\bdoesn't\b", "does not"), (r"\bwon't\b", "will not"), (r"\bi've\b", "i have"), (r"\bit's\b", "it is"), (r"\bthat's\b", "that is"),
    (r"\bwouldn't\b", "would not"), (r"\bhaven't\b", "have not"), (r"\baren't\b", "are not"), (r"\bcouldn't\b", "could not"),
    (r"\bpurchased\b", "bought"), (r"(?<=\bto )purchase\b", "buy"), (r"(?<=\bto )buy\b", "purchase"), (r"\bbought\b", "purchased"), (r"\bmaybe\b", "perhaps"),
    (r"\bright (?:now|away)\b", "at once|straight away"), (r"\bimmediately\b", "at once|straight away"), (r"\basap\b", "as soon as possible"),
    (r"\bfor example\b", "for instance"), (r"\ba lot of\b", "plenty of|a great deal of"), (r"\bneed (?=(?:a|an|my|some|more)\b)", "require |am in need of "),
    (r"\bhelp with\b", "assistance with|a hand with"), (r"\bhow come\b", "why is it that"), (r"\banswer\b", "reply"), (r"\bbecause\b", "since|as"),
    (r"\bso that\b", "in order that"), (r"\bin order to\b", "so as to"),
    (r"\bbig\b", "large"), (r"\bsmall\b", "little"), (r"\bas soon as possible\b", "at the earliest moment"),
    (r"\btried to\b", "made an attempt to"), (r"\blooking for\b", "in search of"), (r"\bseems to\b", "appears to"), (r"\bmake sure\b", "see to it"),
    (r"\bfind out\b", "learn"), (r"\bgot (?=(?:a|an|my|the)\b)", "received "), (r"\bafter that\b", "then"), (r"\bat the moment\b", "at present"),
])  # fmt: skip
_IF = re.compile(r"^if ([^,.?!]{4,}), ([^,.?!]{4,})([.?!]?)$", re.IGNORECASE)
_SINCE = re.compile(r"^([^,.?!]{8,}?),? (because|since|as) (i|my|the|it|we|they|there) ([^,.?!]{4,})([.?!]?)$", re.IGNORECASE)
_FORMAL = (
    "The matter is as follows: ", "I am writing about the following: ", "My message reads as follows: ", "To put it in full: ", "Let me state the matter: ",
)  # fmt: skip


def paraphrase(text: str, rng: random.Random, severity: int) -> str:
    """1: another frame for the question or request; 2: also synonyms and written-out contractions; 3: also another order of clauses and a formal opening."""
    dice = [rng.random() for _ in range(3)]
    found = _applied(text, _FRAMES, dice[0], 1)
    if severity == 1:
        return found
    found = _applied(found, _SYNONYMS, dice[1], len(_SYNONYMS))
    if severity == 2:
        return found
    return _FORMAL[int(dice[2] * len(_FORMAL))] + _turned(found)


def _applied(text: str, rules: Sequence[Rule], die: float, most: int) -> str:
    """The text after at most so many rules, each at its first match. What one rule wrote, its opposite leaves alone."""
    done = 0
    written: list[str] = []
    for pattern, options in rules:
        if done == most:
            break
        match = pattern.search(text)
        if match is None or any(match[0].strip().lower() in w for w in written if match[0].strip()):
            continue
        new = options[int(die * len(options))]
        text = text[: match.start()] + _cased(new, text[match.start() :]) + text[match.end() :]
        written.append(new)
        done += 1
    return text


def _cased(new: str, old: str) -> str:
    """The new words, with a capital where the old ones had one, and `I` where the writer writes it so."""
    if old[:1].isupper():
        new = new[:1].upper() + new[1:]
        return re.sub(r"\bi\b", "I", new)
    return new


def _turned(text: str) -> str:
    """`if A, B` as `B if A`; `A because B` as `because B, A`."""
    match = _IF.match(text)
    if match is not None:
        return f"{match[2]} if {match[1]}{match[3]}"
    match = _SINCE.match(text)
    if match is not None and match[2].lower() != "as":
        return f"{match[2]} {match[3]} {match[4]}, {match[1]}{match[5]}"
    return text
