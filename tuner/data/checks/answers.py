"""Checks of what an answer says: refusals, placeholders, leaked instructions, invented links, impossible requests, sums, loops.

They read words, not meaning: each is a narrow pattern with its known exceptions, and only ever a reason to look.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from tuner.data.checks.arithmetic import wrong_equations
from tuner.data.findings import Check, Finding, Scene, finding
from tuner.data.personal import masked_quote
from tuner.data.record import Record, normalised

_LOOK = "read the record; mend it or delete line {line}"


def _answers(record: Record) -> Iterator[tuple[str, str]]:
    """The field and words of every assistant turn that says something."""
    last = len(record.messages) - 1
    for index, message in enumerate(record.messages):
        if message.role == "assistant" and message.content:
            yield ("completion" if index == last else f"messages[{index}]"), message.content


def _last_request(record: Record) -> tuple[int, str]:
    """Place and words of the last user turn; -1 and nothing where there is none."""
    for index in range(len(record.messages) - 2, -1, -1):
        if record.messages[index].role == "user":
            return index, record.messages[index].content
    return -1, ""


def _given(record: Record) -> str:
    """All the words that are not the model's own: system and user turns, tool results."""
    return "\n\n".join(m.content for m in record.messages if m.role != "assistant")


def _plain(text: str) -> str:
    """Lower case, with straight apostrophes."""
    return text.lower().replace("’", "'")


def _mentions(text: str, words: tuple[str, ...]) -> bool:
    """Whether any of `words` stands in `text`: the cheap test before a pattern."""
    for word in words:  # noqa: SIM110 (any() over a generator takes twice as long, and this runs a million times)
        if word in text:
            return True
    return False


def _around(text: str, start: int, end: int, width: int = 70) -> str:
    """The match and the words about it, for `found`."""
    margin = max((width - (end - start)) // 2, 0)
    return masked_quote(text[max(start - margin, 0) : end + margin], width + 2)


def _finds(record: Record, code: str, field: str, found: str, accepted: str) -> Finding:
    return finding(record, code, field, found, accepted, _LOOK.format(line=record.line))


_SPEAKS_AS_MODEL = re.compile(
    r"\bas an? (?:large |helpful |virtual |digital )*(?:ai|artificial intelligence|language model"
    r"|chatbot)\b(?: language| chat)?(?: model| assistant|bot| program)*,? (?:i|my)\b"
    r"|\bi(?:'m| am) (?:just |only |merely )?an? (?:large |virtual )*(?:ai|artificial intelligence"
    r"|language model|chatbot)\b(?! (?:engineer|researcher|developer|scientist|expert|enthusiast))"
    r"|\b(?:an?|the|this|for) (?:gpt[- \d]*|language )(?:language )?models? (?:cannot|can't|can not|is unable|is not|isn't|are not|does not|doesn't)"
    r"|\bgpt[-\d]*(?: language)? models? (?:cannot|can't|are not|is not|do not|does not)"
    r"|\b(?:capabilit(?:y|ies)|limitations?|unreliab\w+(?: generation)?) of (?:the |a |gpt[- \d]*|language )*models?\b.{0,60}\bcannot\b"
    r"|\b(?:we|i) cannot complete this task|\bsuitable for a (?:gpt|language model)"
)
_DECLINES = re.compile(
    r"\W{0,3}(?:(?:(?:(?:i'm|i am) (?:very |so |terribly |really )?sorry|sorry|apologies|i apologi[sz]e|unfortunately)[,.;]? (?:but )?)?"
    r"i(?: cannot| can't| can not| am unable to|'m unable to| am not able to|'m not able to| am not allowed to| don't have the ability to"
    r"| do not have the ability to)"
    r" (?:\w+ly )?(?:assist|help (?:you )?with|fulfill?|comply|provide|answer|generate|create"
    r"|produce|complete (?:this|that|the|your)|process|access|browse|display|perform"
    r"|design|discuss|engage|support that|set up|render)\b"
    r"|(?:sorry|unfortunately)[,.]? (?:but )?(?:the|this|that|your) (?:task|instruction|request|question|prompt) "
    r"(?:\w+ ){0,3}(?:involves?|requires?|cannot|can't|is (?:not|beyond|too)|goes)"
    r"|sorry, (?:but )?(?:i can't|i cannot|this cannot be done|it is not possible))"
)
_NO_ACCESS = re.compile(
    r"\bi (?:do not|don't|cannot|can't) (?:currently |directly |actually )?(?:have (?:any |direct )?access to|access|browse|view|open|see) "
    r"(?:the (?:internet|web|image|file|link|article|attach|content|website|url)"
    r"|(?:any )?(?:real[- ]time|current|live|up[- ]to[- ]date|external)|your (?:personal|account|file)|"
    r"(?:this|that) (?:link|file|image|website|page|url)|links|websites|personal (?:data|info))"
    r"|\bi (?:do not|don't) have (?:personal|feelings|opinions|emotions|beliefs|real[- ]time|a physical|access to real)"
)
_CUTOFF = re.compile(
    r"\b(?:my )?knowledge cut-?off\b|\bas of my (?:last|latest|knowledge|training|most recent)|\bmy (?:last|latest|most recent) (?:knowledge |training )?update"
    r"|\bmy training data\b|\bi was (?:last )?trained (?:on|in|up to) (?:data|20)"
)
_MODEL_WORDS = (
    "as an", "language model", "gpt", "i'm a", "i am a", "i'm just", "i am just", "i'm only", "i am only", "suitable for", "limitation", "unreliab",
    "capabilit", "cannot complete", "cutoff", "cut-off", "as of my", "my last", "my latest", "my most", "my training", "i was ", "i don't", "i do not",
    "i cannot", "i can't",
)  # fmt: skip
_ASKS_ABOUT_MODELS = re.compile(r"\bgpt|language model|chat ?bot|\bai\b|artificial intelligence|virtual assistant|are you\b|robot")
_ASKS_FOR_REFUSAL = re.compile(
    r"apolog|sorry|declin|refus|excuse|complain|customer|regret|reject|reply|respon|can't"
    r"|cannot|can not|unable|not able|rewrite|rephrase|paraphrase|reword|turn down|convert"
)

_MAY_ABSTAIN = re.compile(
    r"\bsay (?:that )?\W?(?:you|i) (?:don't|do not|can)|if you (?:don't|do not|can't|cannot)"
    r"|(?:not|cannot be) (?:found|answered|in) (?:in |from )?the (?:context|document|text)"
)

_STOCK_PHRASES = (("SPEAKS_AS_MODEL", _SPEAKS_AS_MODEL), ("NO_ACCESS", _NO_ACCESS), ("CUTOFF", _CUTOFF))


def boilerplate(record: Record, scene: Scene) -> Iterator[Finding]:
    """A chat model's stock phrases: disclaimers, refusals, knowledge cut-offs. A fine-tuned model repeats them for anything."""
    if scene.task != "text":
        return
    for field, text in _answers(record):
        low = _plain(text)
        match, code, excused_by = _stock_phrase(low)
        if match and not excused_by.search(_plain(record.question)) and not _MAY_ABSTAIN.search(_plain(_given(record))):
            yield _finds(record, code, field, _around(text, match.start(), match.end()), "an answer in the voice of the task")


def _stock_phrase(low: str) -> tuple[re.Match[str] | None, str, re.Pattern[str]]:
    """The first stock phrase, its code, and what in a prompt excuses it."""
    match = _DECLINES.match(low)
    if match is None and _mentions(low, _MODEL_WORDS):
        for code, pattern in _STOCK_PHRASES:
            match = pattern.search(low)
            if match:
                return match, code, _ASKS_ABOUT_MODELS
    return match, "REFUSAL", _ASKS_FOR_REFUSAL


_NO_TOKEN = re.compile(r"<\s*+/?\s*+no[\s_-]?(?:in|out)puts?\s*+/?>|\bno_?(?:in|out)puts?\b", re.IGNORECASE)
_NO_WORDS = ("noin", "noout", "no in", "no out", "no_", "no-", "< no")
_NOTHING = re.compile(
    r"(?:(?:input|context|output) )?(?:(?:there is )?no (?:additional |further |specific |extra )?(?:in"
    r"|out)puts?(?: (?:is |was )?(?:required|needed|provided|necessary|given|available|specified))?"
    r"|noinputs?(?: required| needed| provided)?|nooutputs?|n a|not applicable|none|null|nan|undefined|tbd|placeholder|lorem ipsum)"
)
_NO_OUTPUT = re.compile(r"\W{0,3}no[\s_-]?outputs?\b(?!\s*[:=] ?\w)", re.IGNORECASE)
_NOT_A_WORD = re.compile(r"[\W_]+")
_FILL_IN = re.compile(
    r"(?<![\w\])'\"])\[(?:(?:insert|your|enter|add|type|put|name of|recipient|company"
    r"|employer|customer|client|manager|friend|hiring manager|product|position|date|"
    r"first name|last name|full name|phone|email|address|city|state|location|event)(?:['’]s)?(?: [A-Za-z'’/&-]+){0,6}|name|Name|NAME)\](?!\()",
    re.IGNORECASE,
)
_ASKS_FOR_BLANKS = re.compile(r"\[|template|placeholder|fill[- ]in|blank|boilerplate|bracket|mad ?lib|\bform\b|regex|skeleton")
_FILLER = re.compile(r"lorem ipsum|(?<![\w-])TODO:|\bTBD\b|(?<![\w-])xxx+(?![\w-])|(?<![\w-])XXXX+(?![\w-])")
_ASKS_FOR_FILLER = re.compile(r"lorem|to-?do|tbd|redact|mask|censor|anonymi|placeholder|template|roman|html|web ?page|website|css|dummy|xxx")


def placeholders(record: Record, scene: Scene) -> Iterator[Finding]:
    """Text that stands for text: `<noinput>` or `N/A` as the last paragraph of a prompt, `No output` as an answer, `[Your Name]`, lorem ipsum."""
    for index, message in enumerate(record.messages):
        if message.role == "user":
            yield from _placeholder_in_prompt(record, index, message.content)
    if scene.task != "text":
        return
    for field, text in _answers(record):
        low = text.lower()
        token = _NO_TOKEN.search(text) if _mentions(low, _NO_WORDS) else None
        if token:
            yield _finds(record, "TOKEN", field, _around(text, token.start(), token.end()), "the answer itself, without the token")
        elif "output" in low[:20] and len(text) < 300 and _NO_OUTPUT.match(text):
            yield _finds(record, "NO_OUTPUT", field, masked_quote(text), "an answer to the prompt")
        if "[" in text:
            blank = _FILL_IN.search(text)
            if blank and not _ASKS_FOR_BLANKS.search(record.question.lower()):
                yield _finds(record, "FILL_IN", field, _around(text, blank.start(), blank.end()), "a name or value, or a prompt that asks for a template")
        if "lorem" in low or "xxx" in low or "TODO" in text or "TBD" in text:
            filler = _FILLER.search(text)
            if filler and not _ASKS_FOR_FILLER.search(record.question.lower()):
                yield _finds(record, "FILLER", field, _around(text, filler.start(), filler.end()), "finished text")


def _placeholder_in_prompt(record: Record, index: int, text: str) -> Iterator[Finding]:
    before, _, tail = text.rpartition("\n\n")
    if len(tail) <= 48 and (before or tail[:1] in "<([nN`\"'\\"):
        words = _NOT_A_WORD.sub(" ", tail.lower()).strip()
        if _NOTHING.fullmatch(words) and (before or "put" in words):
            yield _finds(record, "NO_INPUT", f"messages[{index}]", masked_quote(tail), "an input, or no paragraph at all")
            return
        if tail.strip() == "NA" and before:
            yield _finds(record, "NO_INPUT", f"messages[{index}]", masked_quote(tail), "an input, or no paragraph at all")
            return
    low = text.lower()
    token = _NO_TOKEN.search(text) if _mentions(low, _NO_WORDS) else None
    if token:
        yield _finds(record, "TOKEN", f"messages[{index}]", _around(text, token.start(), token.end()), "the input itself, without the token")


_NON_ANSWERS = frozenset({"n/a", "null", "nan", "undefined", "tbd", "todo", "no answer", "no response", "not applicable", "<none>", "<null>", "[none]", "#n/a"})
_ASKS_FOR_A_SIGN = re.compile(
    r"punctuat|redact|symbol|character|emoji|morse|operator|\bsign|\bmark|dash|token|regex|ascii|letter|quote|missing|code|program|blank"
)


def near_empty(record: Record, scene: Scene) -> Iterator[Finding]:
    """An answer of punctuation alone, or a word for nothing (`N/A`, `null`), where the prompt did not ask for one."""
    if scene.task != "text":
        return
    for field, text in _answers(record):
        if len(text) > 40:
            continue
        answer = text.strip()
        if answer and all(c.isspace() or unicodedata.category(c)[0] == "P" for c in answer):
            if not _ASKS_FOR_A_SIGN.search(record.question.lower()) and answer not in record.question:
                yield _finds(record, "PUNCTUATION", field, masked_quote(answer), "an answer in words")
        elif answer.lower().rstrip(".") in _NON_ANSWERS or answer == "NA":
            word = answer.lower().strip(" .<>[]#")
            _, request = _last_request(record)
            if word not in request.lower() or _NOTHING.fullmatch(_NOT_A_WORD.sub(" ", request.lower().rpartition("\n\n")[2]).strip()):
                yield _finds(record, "NON_ANSWER", field, masked_quote(answer), "an answer to the prompt")


_MARKERS = re.compile(r"<\|[A-Za-z_][A-Za-z_0-9 -]{1,40}\|>|\[/?INST\]|<</?SYS>>|</s>\s*\Z|\A<s>(?!(?s:.)*</s>\s*\S)|<(?:start|end)_of_turn>|<｜[^｜]{1,40}｜>")
_MERGED = re.compile(r"^[ \t]*\d{1,3}\.[ \t]*instruction[ \t]*:", re.IGNORECASE | re.MULTILINE)
_HEADERS = re.compile(
    r"^[ \t]*(?:#{2,}[ \t]*(?:instruction|input|response)|instruction)[ \t]*:|\A\s*+#*+[ \t]*+(?:output|response)[ \t]*:", re.IGNORECASE | re.MULTILINE
)
_ROLES = re.compile(r"^[ \t]*(?:#{2,}[ \t]*)?(?:human|user|assistant|gpt|chatgpt)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_ASKS_FOR_TASKS = re.compile(r"\binputs?\b|\boutputs?\b|\binstructions?\b|\bprompts?\b|\btasks?\b|\bcommand")
_ASKS_FOR_ROLES = re.compile(r"dialog|convers|chat|script|transcript|interview|scenario|assistant|role|\bbot\b|human|user|exchange|role-?play|discussion")


def leaked_instruction(record: Record, scene: Scene) -> Iterator[Finding]:
    """An answer that runs on into the next example or holds the marks of a chat template."""
    for field, text in _answers(record):
        if "<|" in text or "INST]" in text or "SYS>>" in text or "s>" in text or "_of_turn>" in text or "<｜" in text:
            mark = _MARKERS.search(text)
            if mark and mark[0].strip() not in _given(record):
                yield _finds(record, "TEMPLATE_MARK", field, _around(text, mark.start(), mark.end()), "an answer without marks of a chat template")
        if scene.task != "text" or ":" not in text:
            continue
        low = text.lower()
        code, match = "MERGED", _MERGED.search(text) if "instruction" in low else None
        if match is None and ("instruction" in low or "input" in low or "output" in low[:30] or "response" in low):
            code, match = "HEADER", _HEADERS.search(text)
            match = None if match and _ASKS_FOR_TASKS.search(record.question.lower()) else match
        if match is None and ("user" in low or "human" in low or "assistant" in low or "gpt" in low):
            code, match = "ROLE", _ROLES.search(text)
            match = None if match and _ASKS_FOR_ROLES.search(record.question.lower()) else match
        if match:
            yield _finds(record, code, field, _around(text, match.start(), match.end()), "one answer, ending where it ends")


_LINK = re.compile(r"(?:https?://|www\.)[^\s<>\"'`)\]}|\\,]+", re.IGNORECASE)
_MAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{2,63})+")
_NOT_REAL = re.compile(
    r"(?:[\w.-]*\.)?(?:example\.\w+|example|localhost|127\.0\.0\.1|0\.0\.0\.0|w3\.org|schema\.org"
    r"|your-?\w*\.\w+|(?:my|some|mysite|domain|website|site|company|abc|xyz)\.\w+|\.{3})",
    re.IGNORECASE,
)
_ASKS_FOR_LINK = re.compile(
    r"\b(?:generate|create|construct|invent|make up|come up with|suggest)\b[^.\n]{0,40}\b(?:urls?"
    r"|web address|domain|link structure)|(?:generic|dummy|fake|sample|example) (?:url|link)"
)
_ASKS_FOR_MAIL = re.compile(
    r"e-?mail|contact|address|resume|résumé|\bcv\b|business card|fake|random|sample|dummy|database|table|html|json|regex|signature|letter"
)


def invented_links(record: Record, scene: Scene) -> Iterator[Finding]:
    """Links and mail addresses that the prompt does not hold: nothing tells a model which of them exist."""
    if scene.task != "text":
        return
    for field, text in _answers(record):
        if "://" not in text and "www." not in text and "@" not in text and "WWW." not in text:
            continue
        given = _given(record).lower()
        links = [link for link in dict.fromkeys(_LINK.findall(text)) if _is_invented(link, given)]
        if links and not _ASKS_FOR_LINK.search(given):
            yield _finds(record, "LINK", field, _listed(links), "links that stand in the prompt, or none")
        mails = [m for m in dict.fromkeys(_MAIL.findall(text)) if m.lower() not in given and not _NOT_REAL.fullmatch(m.partition("@")[2])]
        if mails and not _ASKS_FOR_MAIL.search(given):
            yield _finds(record, "MAIL", field, _listed(mails), "addresses that stand in the prompt, or none")


def _listed(values: list[str]) -> str:
    more = f" and {len(values) - 2} more" if len(values) > 2 else ""
    return ", ".join(masked_quote(v, 70) for v in values[:2]) + more


def _is_invented(link: str, given: str) -> bool:
    """The front page of something the prompt names is no invention; nor is an example domain."""
    bare = re.sub(r"^(?:https?://)?(?:www\.)?", "", link.lower()).rstrip(".,;:!?*_/")
    host, _, path = bare.partition("/")
    if bare in given or not host or _NOT_REAL.fullmatch(host.partition(":")[0]):
        return False
    return bool(path) or host.rsplit(".", 1)[0].rpartition(".")[2] not in given


_MEDIA = (
    r"(?:logo|image|picture|photo(?:graph)?|drawing|painting|sketch|illustration|poster"
    r"|video|animation|cartoon|infographic|graphic|visual(?:i[sz]ation| representation)?"
    r"|flow ?chart|(?:pie |bar |line |gantt )?chart|graph|diagram|mock-?up|collage|artwork|piece of art|3d model|audio(?: clip)?|melody|sculpture|recording)"
)
_DRAWN = (
    r"(?:logo|image|picture|photo(?:graph)?|drawing|painting|sketch|illustration|poster"
    r"|video|animation|cartoon|infographic|artwork|collage|audio(?: clip)?|recording)"
)
_MEDIA_TAG = re.compile(r"!\[[^\]]{0,200}\]\(|!\[[^\]]{0,200}\]\[|<(?:img|audio|video)\b", re.IGNORECASE)
_STAGE = re.compile(rf"\s*[\[(<]\s*(?:an? |the |insert |output |link to )*(?:\w+ ){{0,4}}{_MEDIA}\b[^\])>\n]{{0,120}}[\])>]\s*", re.IGNORECASE)
_MAKE_MEDIA = re.compile(
    rf"\b(?:draw|sketch|paint|illustrate|render|photograph)\b|\b(?:design|create|generate|make"
    rf"|produce|construct|compose|build|show me|convert|play|record)\b[^.?!\n]{{0,60}}\b{_MEDIA}s?\b"
)
_PRETENDS = re.compile(
    rf"\W{{0,3}}(?:(?:sure|certainly|of course)\W{{1,3}})?(?:here (?:is|are)|here's|attached is|below is"
    rf"|please find|i(?:'ve| have) (?:created|drawn|designed|made|generated|attached|painted|sketched))"
    rf"(?: \w+){{0,4}} {_DRAWN}\b(?! (?:description|idea|concept|caption|prompt|title|script))"
)
_MARKUP_ASKED = re.compile(r"html|markdown|web ?page|website|\btag\b|readme|\bcss\b|blog|landing page|javascript|react|code")
_LONGEST_POINTER = 600  # characters of a paragraph that is nothing but a link; also what bounds the patterns' backtracking
_SHOWN_WORDS = (
    "image", "picture", "photo", "paint", "draw", "video", "graphic", "screenshot", "audio", "chart", "graph", "diagram", "song", "figure", "meme",
    "comic", "shape", "cartoon",
)  # fmt: skip
_SHOWN_TO_YOU = re.compile(
    r"\b(?:attached|following|given|above|below|provided|this|these|shown) (?:\w+ )?(?:images?"
    r"|pictures?|photos?|photographs?|paintings?|drawings?|videos?|graphics?|screenshots?"
    r"|audio(?: clip| file| recording)?|charts?|graphs?|diagrams?|songs?|figures?|memes?|comics?|shapes?|cartoons?)\b"
)
_SHOWN_ALONE = re.compile(
    r"\b(?:attached|following|given|above|below|provided|this|these|shown) (?:\w+ )?(?:image|picture|photo|photograph"
    r"|painting|drawing|video|graphic|screenshot|audio(?: clip| file| recording)?|chart|diagram|meme|comic)s?\s*"
    r"(?:[.:?!,]|$|in |with |and |into |using )"
)
_DESCRIBED = re.compile(r"[\"“(\[]|:\s*\S|\n|\bof an? |\bshows?\b|\bnamed\b|\btitled\b")
_ONLY_POINTED_AT = re.compile(
    r"\W*(?:(?:image|picture|photo|painting|drawing|link|url|video|chart|source)(?: url"
    r"| link)?\s*:\s*)?(?:https?://\S+|www\.\S+|!\[[^\n]*(?:\n+\[\d\]:[^\n]*)?|<(?:img|video|audio)\b[^\n]*"
    r"|[\[(<]\s*(?:(?:an? |the )?(?:attach\w*|insert|link|image|picture|photo|painting"
    r"|drawing|chart|graph|video|audio|song|data chart|screenshot)\b[^\n]{0,60})[\])>]"
    r"|\S+\.(?:jpe?g|png|gif|mp3|mp4|wav|svg|bmp|webp))\W*",
    re.IGNORECASE | re.DOTALL,
)
_DECLINED = re.compile(
    r"\b(?:cannot|can't|can not|unable|not able|not possible|impossible|(?:don't|do not) have|(?:is|are"
    r"|was) not (?:provided|available|shown|attached)|no (?:image|link|input|output|picture|photo)|sorry)\b|nooutput|noinput"
)


def impossible_media(record: Record, scene: Scene) -> Iterator[Finding]:
    """Pictures and sound in a world of text: an image link for an answer, a picture pretended, a question about a picture that is not there."""
    if scene.task != "text":
        return
    index, request = _last_request(record)
    asked = _plain(request)
    field, text = "completion", record.messages[-1].content
    tag = _MEDIA_TAG.search(text) if "![" in text or "<" in text else None
    if tag and (tag[0][0] == "!" or not _MARKUP_ASKED.search(asked)) and not (tag[0][0] == "!" and "markdown" in asked):
        yield _finds(record, "MEDIA_ANSWER", field, _around(text, tag.start(), tag.end() + 30), "an answer in words")
    elif text[:1] in "[(<" and _STAGE.fullmatch(text):
        yield _finds(record, "MEDIA_ANSWER", field, masked_quote(text), "an answer in words")
    elif text[:1] in "HhSsCcAaBbPpIiO*" and _PRETENDS.match(_plain(text[:160])) and _MAKE_MEDIA.search(asked) and "```" not in text and "<svg" not in text:
        yield _finds(record, "PRETENDED", field, masked_quote(text), "an answer that a text can hold")
    if _mentions(asked, _SHOWN_WORDS) and _SHOWN_TO_YOU.search(asked) and not _is_declined(text):
        _, _, shown = request.partition("\n\n")
        if shown and len(shown) < _LONGEST_POINTER and _ONLY_POINTED_AT.fullmatch(shown):
            yield _finds(record, "NOT_SHOWN", f"messages[{index}]", masked_quote(shown), "a description of the picture or recording in words")
        elif not shown and index == 0 and len(request) < 160 and not _DESCRIBED.search(asked) and _SHOWN_ALONE.search(asked):
            yield _finds(record, "NOT_SHOWN", f"messages[{index}]", masked_quote(request), "a description of the picture or recording in words")


def _is_declined(text: str) -> bool:
    return _DECLINED.search(_plain(text[:400])) is not None


_ADDRESS_ALONE = re.compile(r"\W*(?:[\w ]{1,30}:\s*)?(?:https?://|www\.)\S+(?:\s+(?:https?://|www\.)\S+)*\W*", re.IGNORECASE)
_ABOUT_THE_ADDRESS = re.compile(
    r"shorten|pars(?:e|ing)|valid|anchor|encod|decod|hyperlink|\bcit(?:e|ation)|bibliograph"
    r"|scrap|crawl|regex|query string|redirect|\bcode\b|script|function|program|protocol|domain"
    r"|extract the|\bhtml|curl|\bport\b|convert|embed|qr|query param|\btags?\b|reformat|format|secure|structure of|url type"
)
_OPEN_IT = re.compile(
    r"\b(?:visit|browse|open|go to|check out|look at|read|review|summari[sz]e|access|watch|listen to|scrape|analy[sz]e)\b[^\n]{0,80}(?:https?://|www\.)"
)
_SEARCH = re.compile(
    r"(?:^|[.!?\n] ?|please |and |you need to )(?:google (?:the|for|it|this|how|what)|search (?:the (?:web"
    r"|internet|net)|online|google|for the latest)|browse the (?:web|internet)|look up [^.\n]{0,60}\b"
    r"(?:online|on (?:google|wikipedia|the (?:web|internet)|amazon)|results? for)|conduct (?:a|an) (?:web |online "
    r"|internet )?search|use (?:google|the internet|the web)|do (?:some|an) (?:online |internet )?(?:research|search)"
    r"|(?:find|retrieve|get|collect|gather|pull)\b[^.\n]{0,60}\b(?:from|on) the (?:internet|web)\b|retrieve (?:an|the) article|scrape )"
)
_SEARCH_WORDS = ("search", "google", "look up", "internet", "the web", "retrieve", "browse", "scrape")
_FIND_PAGE = re.compile(
    r"(?:^|[.!?\n] ?|please |me )(?:find|retrieve|get|locate|provide|give me|recommend|suggest|share|post"
    r"|cite)\b[^.\n]{0,40}\b(?:article|website|web ?page|video|link|url|blog post|source|tutorial|resource)s?\b"
)
_LIVE = re.compile(
    r"(?:^|[.!?\n] ?|please )(?:what(?:'s| is| are| will)|how (?:much|is|hot|cold|would you describe)|find(?: out)?"
    r"|get|check|tell me|give me|report|look up|show|predict|describe|summari[sz]e|retrieve|search for|discover"
    r"|provide|research|do some research|calculate|determine|forecast|state)\b[^.?!\n]{0,80}"
)
_NOW_WORDS = ("current", "today", "latest", "right now", "tomorrow", "tonight", "this week", "moment")
_NOW = re.compile(r"\b(?:current(?:ly)?|today(?:'s)?|latest|right now|tomorrow(?:'s)?|tonight|this week(?:'s)?|at the moment)\b")
_CHANGES_DAILY = re.compile(
    r"\bweather|temperature|forecast|stock price|share price|stock market|exchange rate"
    r"|market price|price of|bitcoin|\bnews\b|headlines?|stock\b|current time|time is it|traffic"
)
_WITH_MATERIAL = re.compile(r"[\"“”]|following|given|below|above|:\s*\S|\n|fahrenheit|celsius|example|figurative")
_HEDGES = re.compile(r"\bcheck (?:the|your|a|with|online|local)|\bvar(?:y|ies)\b|\bdepends?\b|\bplease (?:visit|provide|refer|share)\b|difficult to predict")


def needs_internet(record: Record, scene: Scene) -> Iterator[Finding]:
    """A prompt that only a browser can answer (a page to read, a search, today's price), answered as if one had been there."""
    if scene.task != "text" or any(m.role == "tool" or m.tool_calls for m in record.messages):
        return
    index, request = _last_request(record)
    asked, answer = _plain(request), record.messages[-1].content
    lead, _, tail = request.rpartition("\n\n")
    code = ""
    if "://" in asked or "www." in asked:
        points = len(lead) < 300 and len(tail) < _LONGEST_POINTER and _ADDRESS_ALONE.fullmatch(tail) if lead else _OPEN_IT.search(asked)
        if points and not _ABOUT_THE_ADDRESS.search(_plain(lead or request)):
            code = "WEB_PAGE"
    elif (_mentions(asked, _SEARCH_WORDS) and _SEARCH.search(asked)) or (("http" in answer or "www." in answer) and _FIND_PAGE.search(asked)):
        code = "SEARCH"
    elif (
        not lead
        and len(request) < 160
        and _mentions(asked, _NOW_WORDS)
        and _NOW.search(asked)
        and _CHANGES_DAILY.search(asked)
        and _LIVE.match(asked)
        and not _WITH_MATERIAL.search(asked)
    ):
        code = "LIVE_FACT"
    if code and not _is_declined(answer) and not _HEDGES.search(_plain(answer[:300])):
        yield _finds(record, code, f"messages[{index}]", masked_quote(request), "a prompt that can be answered from what it holds")


_OTHER_COUNTING = re.compile(r"binary|hexadecimal|octal|modul|\bmod\b|\bbase[- ]?\d|boolean|\bbitwise|clock arithmetic|wrong|incorrect|matchstick")


def wrong_arithmetic(record: Record, scene: Scene) -> Iterator[Finding]:
    """An equation between plain numbers that does not hold, such as `2*8 = 24`."""
    if scene.task != "text":
        return
    for field, text in _answers(record):
        if "=" not in text:
            continue
        wrong = list(wrong_equations(text))
        if wrong:
            given = _given(record)
            quoted_from_prompt = {(e.left, e.right) for e in wrong_equations(given)}
            wrong = [] if _OTHER_COUNTING.search(given.lower()) else [e for e in wrong if (e.left, e.right) not in quoted_from_prompt]
        for equation in wrong[:3]:
            value = equation.value
            exact = str(value) if value.denominator == 1 else f"{float(value):.6g}" if abs(value) < 10**15 else "another number"
            yield _finds(record, "WRONG_SUM", field, masked_quote(f"{equation.left} = {equation.right}"), masked_quote(f"{equation.left} = {exact}"))


_CHANGE_IT = re.compile(r"\b(?:rewrite|rephrase|reword|paraphrase|translate|transform|reverse|shorten|summari[sz]e|simplify|expand|condense)\b")


def echo(record: Record, scene: Scene) -> Iterator[Finding]:
    """An answer that is the prompt again; or, where the prompt asks for a change, its last paragraph unchanged."""
    if scene.task != "text":
        return
    _, request = _last_request(record)
    answer = record.messages[-1].content.strip()
    if answer.count(" ") < 3 or answer[-24:-1].strip(" .\"'").lower() not in request.lower():
        return
    same = normalised(answer)
    if same == normalised(request):
        yield _finds(record, "ECHO", "completion", masked_quote(answer), "an answer, not the question again")
        return
    lead, _, tail = request.rpartition("\n\n")
    if lead and tail.strip().strip("\"“”'") == answer.strip("\"“”'") and _CHANGE_IT.search(lead.lower()):
        yield _finds(record, "UNCHANGED", "completion", masked_quote(answer), "the text changed as the prompt asks")


_PIECES = re.compile(r"(?<=[.!?])\s+|\n+")
_LONG_LOOP = re.compile(r"([^\W_]{1,20}?)\1{11,}")
_ASKS_TO_REPEAT = re.compile(
    r"repeat|\btimes\b|\bloop|\bsing\b|lyric|song|poem|chant|rhyme|verse|tongue|pattern|sequence|mantra|print|code|program|html|table|\bsql|music|melody|script"
)
_SAME_SENTENCE, _SAME_GRAM, _GRAM = 4, 5, 5  # times, times, words


def repetition(record: Record, scene: Scene) -> Iterator[Finding]:
    """Degenerate text: one sentence or line four times, or one run of five words over two fifths of the answer."""
    if scene.task != "text":
        return
    for field, text in _answers(record):
        words = text.split()
        if len(text) < 80 or (len(set(words)) > 0.65 * len(words) and len(text) < 40 * len(words)):
            continue
        found = _most_repeated(text, words)
        if found and "```" not in text and not _ASKS_TO_REPEAT.search(record.question.lower()):
            yield _finds(record, "LOOP", field, found, "text that goes on")


def _most_repeated(text: str, words: list[str]) -> str:
    """The repeated piece and how often it comes; empty where nothing is repeated enough."""
    if len(text) >= 40 * len(words):  # hardly a blank: no words to count
        loop = _LONG_LOOP.search(text, max(len(text) - 2000, 0))
        return f"{masked_quote(loop[1])} over {len(loop[0])} characters" if loop else ""
    pieces = Counter(p.lower() for p in map(str.strip, _PIECES.split(text)) if len(p) >= 16 and p.count(" ") >= 2)
    piece, times = max(pieces.items(), key=lambda item: item[1] * len(item[0]), default=("", 0))
    if times >= _SAME_SENTENCE and times * len(piece) >= 0.3 * len(text):
        return f"{times} x {masked_quote(piece, 60)}"
    if len(set(words)) > 0.5 * len(words) or len(words) < _GRAM * _SAME_GRAM:
        return ""
    grams = list(zip(*(words[i:] for i in range(_GRAM)), strict=False))
    gram, times = Counter(grams).most_common(1)[0]
    first = grams.index(gram)
    last = len(grams) - 1 - grams[::-1].index(gram)
    period = grams.index(gram, first + 1) - first if times > 1 else 0
    span = min(last, len(words) - period) - first
    round_again = sum(words[i] == words[i + period] for i in range(first, first + span)) if period else 0
    goes_round = times >= _SAME_GRAM and last - first >= 0.4 * len(words) and round_again >= 0.95 * span  # below it: a list of like items
    return f"{times} x {masked_quote(' '.join(gram), 60)}" if goes_round else ""


ANSWERS: dict[str, Check] = {
    "boilerplate": Check("a chat model's disclaimers, refusals and cut-off dates", "warn", each=boilerplate),
    "placeholders": Check("text that stands for text: <noinput>, N/A, [Your Name]", "warn", each=placeholders),
    "near_empty": Check("an answer of punctuation, or N/A", "warn", each=near_empty),
    "leaked_instruction": Check("an answer that runs on into another example or role", "warn", each=leaked_instruction),
    "invented_links": Check("links and mail addresses that the prompt does not hold", "warn", each=invented_links),
    "impossible_media": Check("pictures and sound asked of a text model, or given by it", "warn", each=impossible_media),
    "needs_internet": Check("a page, a search or a price of today, answered without one", "warn", each=needs_internet),
    "wrong_arithmetic": Check("an equation between numbers that does not hold", "warn", each=wrong_arithmetic),
    "echo": Check("an answer that is the prompt again", "warn", each=echo),
    "repetition": Check("one sentence or phrase over and over", "warn", each=repetition),
}
