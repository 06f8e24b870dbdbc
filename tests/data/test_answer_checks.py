"""The checks of answers find what they name, spare the answers that only look alike, and never trust a sum they cannot read."""

from __future__ import annotations

import json
import random
import unicodedata
from fractions import Fraction

import pytest

from tuner.data.checks.answers import ANSWERS
from tuner.data.checks.arithmetic import wrong_equations
from tuner.data.findings import Finding, Scene
from tuner.data.record import Message, Record
from tuner.data.spec import DataSpec

Pair = tuple[str, str]  # prompt, completion

PROMPT, ANSWER = "messages[0]", "completion"
URL = "https://www.bbc.com/news/world-56684150"
LOOP = "I think that it is good and I agree. "
GOOD = "The capital of France is Paris, which lies on the Seine."


def record(prompt: str, completion: str) -> Record:
    return Record((Message("user", prompt), Message("assistant", completion)), "train.jsonl", 7, "train")


def scene(task: str = "text") -> Scene:
    return Scene(DataSpec.model_validate({"train": "train.jsonl", "task": task}))


def found(check: str, example: Record, task: str = "text") -> list[Finding]:
    each = ANSWERS[check].each
    assert each is not None
    return list(each(example, scene(task)))


# check: (records with the fault, its code and field), records without it
SAMPLES: dict[str, tuple[list[tuple[Pair, str, str]], list[Pair]]] = {
    "boilerplate": (
        [
            (("Name a film.", "As an AI language model, I have no favourite."), "SPEAKS_AS_MODEL", ANSWER),
            (("Name a film.", "I'm sorry, but I cannot assist with that."), "REFUSAL", ANSWER),
            (("Draw a pie chart.", "Sorry, the task involves creating a visual output."), "REFUSAL", ANSWER),
            (("Who won?", "I don't have access to real-time information."), "NO_ACCESS", ANSWER),
            (("Who won?", "As of my last update, it was France."), "CUTOFF", ANSWER),
            (("Paint a cat.", "This is something a GPT language model cannot do."), "SPEAKS_AS_MODEL", ANSWER),
        ],
        [
            ("Are you an AI?", "Yes, I am an AI assistant."),
            ("Write an apology.", "I'm sorry, but I cannot attend the meeting."),
            ("What are language models?", "A language model does not understand; this language model cannot see."),
            ("How was the film?", "I can't help falling in love with it. I'm sorry I missed the start."),
            ("Where is my order?", "I'm sorry to hear that. Your order arrives today."),
            ("If you don't know, say that you don't know. Who?", "I cannot answer that from the context."),
        ],
    ),
    "placeholders": (
        [
            (("Name a film.\n\nnoinput", "Alien"), "NO_INPUT", PROMPT),
            (("Name a film.\n\nN/A", "Alien"), "NO_INPUT", PROMPT),
            (("Name a film.\n\nNo input required.", "Alien"), "NO_INPUT", PROMPT),
            (('Name a film.\n\n"<noinput>"', "Alien"), "NO_INPUT", PROMPT),
            (("Name a film.\n\nnone", "Alien"), "NO_INPUT", PROMPT),
            (("Fill the gap: the boy <noinput> the ball", "kicked"), "TOKEN", PROMPT),
            (("Add a subtitle.", "<noinput>\nA Leap of Faith"), "TOKEN", ANSWER),
            (("Design a poster.", "<No Output - this is a visual task.>"), "NO_OUTPUT", ANSWER),
            (("Write a letter.", "Dear Sir,\nBest regards,\n[Your Name]"), "FILL_IN", ANSWER),
            (("Write a letter.", "lorem ipsum dolor"), "FILLER", ANSWER),
        ],
        [
            ("Name a film.\n\nNone of them may be old.", "Alien"),
            ("Does the function take input?", "No input is needed; it has no output."),
            ("none", "All right."),
            ("Write a letter template.", "Dear [Name],"),
            ("Sort it.", "[name for name in names]; a[name]; [link](http://x)"),
            ("Write XXX in Arabic numerals.", "XXX is 30."),
            ("What is NA?", "NA may stand for sodium."),
        ],
    ),
    "near_empty": (
        [
            (("Name a film.", "..."), "PUNCTUATION", ANSWER),
            (("Name a film.", "-"), "PUNCTUATION", ANSWER),
            (("Name a film.", "N/A"), "NON_ANSWER", ANSWER),
            (("Name a film.", "null"), "NON_ANSWER", ANSWER),
            (("Name a film.\n\nN/A", "N/A"), "NON_ANSWER", ANSWER),
        ],
        [
            ("Which punctuation mark ends a question?", "?"),
            ("Which of these are prime: 4, 6?", "None"),
            ("Smile.", "😀"),
            ("What does f return: null or 1?", "null"),
            ("2 + 2", "4"),
        ],
    ),
    "leaked_instruction": (
        [
            (("Praise a teacher.", "She was patient.\n14. Instruction: Explain self-awareness.\n14. Input:"), "MERGED", ANSWER),
            (("Praise a teacher.", "She was patient.\n### Instruction:\nSay more."), "HEADER", ANSWER),
            (("Praise a teacher.", "Output: She was patient."), "HEADER", ANSWER),
            (("Praise a teacher.", "She was patient.\nHuman: And now?"), "ROLE", ANSWER),
            (("Praise a teacher.", "She was patient.<|im_end|>"), "TEMPLATE_MARK", ANSWER),
            (("Praise a teacher.", "She was patient. [/INST]"), "TEMPLATE_MARK", ANSWER),
            (("Praise a teacher.", "She was patient.</s>"), "TEMPLATE_MARK", ANSWER),
        ],
        [
            ("Give me a recipe.", "Soup\nInstructions:\n1. Boil water.\n2. Add salt."),
            ("Write code that sorts.", "sort(x)\n# Output: [1, 2]\nOutput: [1, 2]"),
            ("Write a dialogue.", "User: Hi\nAssistant: Hello"),
            ("What does <|im_end|> mean?", "<|im_end|> ends a turn."),
            ("Write an example input and output.", "Input: 1\nOutput: 2"),
            ("Format it.", "<s>struck</s> through"),
        ],
    ),
    "invented_links": (
        [
            (("Name a source.", f"See {URL}."), "LINK", ANSWER),
            (("Name a source.", "See www.madeup-site.org/page"), "LINK", ANSWER),
            (("Who can help?", "Write to help@acme-corp.com."), "MAIL", ANSWER),
            (("Who can help?", "![x](https://i.imgur.com/a.png)"), "LINK", ANSWER),
        ],
        [
            (f"Shorten {URL}.", f"{URL} is short."),
            ("Write a request.", "GET http://localhost:8080/x and https://example.com/y"),
            ("How do I use a decorator?", "@app.route is one."),
            ("What is the site of Google?", "www.google.com"),
            ("Make up an email address for Jo.", "jo@acme-corp.com"),
            ("Write SVG.", 'xmlns="http://www.w3.org/2000/svg"'),
        ],
    ),
    "impossible_media": (
        [
            (("Create a logo.", "![alt text](https://i.imgur.com/f.png)"), "MEDIA_ANSWER", ANSWER),
            (("Sing it.", "<audio src='song.mp3'>"), "MEDIA_ANSWER", ANSWER),
            (("Create a flow chart.", "[Flow Chart]"), "MEDIA_ANSWER", ANSWER),
            (("Draw a picture of a cat.", "Here is a picture of a cat sleeping."), "PRETENDED", ANSWER),
            (("Describe this photo.\n\nhttps://x.org/a.jpg", "A lake."), "NOT_SHOWN", PROMPT),
            (("Describe the attached image.", "A lake."), "NOT_SHOWN", PROMPT),
            (("What is in the following picture?\n\n[image of a lake]", "A lake."), "NOT_SHOWN", PROMPT),
        ],
        [
            ("Write an HTML page.", '<img src="a.png">'),
            ("Describe this painting: The Starry Night", "It swirls."),
            ("Describe the attached image.", "No image is attached; I cannot see it."),
            ("Summarise the following chart.\n\nSales: 3, 4, 5", "They rise."),
            ("Draw a box in text.", "+--+\n|  |\n+--+"),
            ("Write an image caption.", "Here is a caption: a cat."),
        ],
    ),
    "needs_internet": (
        [
            ((f"Summarise this article.\n\n{URL}", "It says much."), "WEB_PAGE", PROMPT),
            ((f"Read {URL} and list its points.", "One, two."), "WEB_PAGE", PROMPT),
            (("Search the web for the best ice cream.", "Vanilla."), "SEARCH", PROMPT),
            (("Find an article about bees.", f"Here: {URL}"), "SEARCH", PROMPT),
            (("What is the weather in Rome today?", "Sunny, 25 degrees."), "LIVE_FACT", PROMPT),
            (("Find the current stock price of Acme.", "$12.50"), "LIVE_FACT", PROMPT),
        ],
        [
            (f"Extract the domain of this URL.\n\n{URL}", "bbc.com"),
            ("What is the weather in Rome today?", "I cannot know today's weather."),
            ("How do I search the web?", "Use a search engine."),
            ('Classify: "The weather is freezing today!"', "Negative"),
            ("Write a poem about today's weather.", "O sun."),
            ("What is the latest news in this text?\n\nThe king is dead, say all the papers of the town.", "The king is dead."),
        ],
    ),
    "wrong_arithmetic": (
        [
            (("How many?", "2*8 = 24 hours"), "WRONG_SUM", ANSWER),
            (("How many?", "He has <<48/2=25>>25 clips."), "WRONG_SUM", ANSWER),
            (("How much?", "$1,200 x 3 = $3,500."), "WRONG_SUM", ANSWER),
            (("How many?", "12 + 15 + 18 = 55"), "WRONG_SUM", ANSWER),
            (("How many?", "(34 / 5 = 6.4)"), "WRONG_SUM", ANSWER),
        ],
        [
            ("How many?", "48/2 = <<48/2=24>>24, then 24 + 48 = 72."),
            ("How much?", "$1,200 x 3 = $3,600; 20% of it is $720; 100 + 10% = 110; 1/3 = 33%"),
            ("How long?", "60 * 2 = 2 hours; 2/3 = 0.67; 10/3 = 3; 28 / 1/5 = 140"),
            ("Solve.", "2x - 3 = 5; x = 4; y - 5 + 3 = 8; f(2) + 3 = 9"),
            ("When?", "1990-1995 = 5 years; weeks 1-2 = 14 days; 09:00-0130 = 0730"),
            ("Add in binary.", "1 + 1 = 10"),
            ("Is 2 + 2 = 5 right?", "2 + 2 = 5 is not right."),
            ("Wie viel?", "1.000 + 500 = 1.500 und 2,5 * 2 = 5"),
        ],
    ),
    "echo": (
        [
            (("Create a looping GIF of a cat.", "Create a looping GIF of a cat."), "ECHO", ANSWER),
            (("Where is the next station?", "  where is the next STATION?"), "ECHO", ANSWER),
            (("Translate into French.\n\nThe cat is on the mat.", "The cat is on the mat."), "UNCHANGED", ANSWER),
        ],
        [
            ("hello", "hello"),
            ("Correct the sentence.\n\nThe cat is on the mat.", "The cat is on the mat."),
            ("Where is the next station?", "The next station is Rome."),
            ("Rewrite it.\n\nThe cat is on the mat.", "On the mat is the cat."),
        ],
    ),
    "repetition": (
        [
            (("Say something.", LOOP * 6), "LOOP", ANSWER),
            (("Say something.", "It was the best thing of all and " * 12), "LOOP", ANSWER),
            (("说点什么", "好的好的" * 40), "LOOP", ANSWER),
            (("Say something.", "very " * 60), "LOOP", ANSWER),
        ],
        [
            ("Repeat it six times.", LOOP * 6),
            ("Sort cheese from bread.", "".join(f"{x} is a type of cheese.\n" for x in ("Brie", "Gouda", "Feta", "Edam", "Pecorino", "Cheddar"))),
            ("Say something.", LOOP * 3),
            ("Draw a line.", "-" * 300),
            ("Say something.", " ".join(f"word{n}" for n in range(200))),
        ],
    ),
}


def test_every_check_of_answers_finds_its_fault_and_spares_good_records() -> None:
    swept = 0
    for check, (bad, good) in SAMPLES.items():
        assert len(bad) >= 3 and len(good) >= 3
        for pair, code, field in bad:
            assert [(f.code, f.field) for f in found(check, record(*pair))] == [(code, field)], (check, pair)
        for pair in good:
            assert found(check, record(*pair)) == [], (check, pair)
        swept += 1
    assert swept == len(ANSWERS) == 10


def test_every_finding_names_what_was_found_and_a_fix_without_raw_control_characters() -> None:
    seen = 0
    for check, (bad, _) in SAMPLES.items():
        for (prompt, completion), code, _field in bad:
            dirty = (
                record(prompt, completion + "\x1b[2J\u202e")
                if code not in {"PUNCTUATION", "NON_ANSWER", "ECHO", "UNCHANGED", "NOT_SHOWN"}
                else record(prompt, completion)
            )
            for f in found(check, dirty):
                assert f.found and f.accepted and "line 7" in f.fix and len(f.found) < 250
                assert not {unicodedata.category(c) for c in f.found + f.accepted + f.fix} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}, (check, prompt)
                seen += 1
    assert seen >= 45


def test_label_and_json_tasks_are_spared_the_checks_of_free_text() -> None:
    swept = 0
    for check, (bad, _) in SAMPLES.items():
        for pair, code, field in bad:
            for task in ("label", "json"):
                assert all(f.code == code for f in found(check, record(*pair), task))
                if field == ANSWER and code != "TEMPLATE_MARK":
                    assert found(check, record(*pair), task) == [], (check, pair, task)
        swept += 1
    assert swept == len(ANSWERS)


def test_a_good_record_passes_every_check_of_answers() -> None:
    assert [f for check in ANSWERS for f in found(check, record("What is the capital of France?", GOOD))] == []


def test_earlier_assistant_turns_are_read_too() -> None:
    turns = (Message("user", "How many?"), Message("assistant", "2*8 = 24"), Message("user", "Sure?"), Message("assistant", "As an AI, I am."))
    chat = Record(turns, "f", 1, "train")
    assert [(f.code, f.field) for f in found("wrong_arithmetic", chat)] == [("WRONG_SUM", "messages[1]")]
    assert [(f.code, f.field) for f in found("boilerplate", chat)] == [("SPEAKS_AS_MODEL", "completion")]


def test_a_record_with_tools_may_know_today() -> None:
    call = json.dumps([{"type": "function", "function": {"name": "weather", "arguments": {}}}])
    turns = (
        Message("user", "What is the weather in Rome today?"),
        Message("assistant", "", tool_calls=call),
        Message("tool", "25"),
        Message("assistant", "25 degrees."),
    )
    assert found("needs_internet", Record(turns, "f", 1, "train")) == []


def test_links_of_a_tool_result_are_not_invented() -> None:
    turns = (Message("user", "Find it."), Message("assistant", "", tool_calls="[]"), Message("tool", URL), Message("assistant", f"See {URL}"))
    assert found("invented_links", Record(turns, "f", 1, "train")) == []


def by_hand(numbers: list[int], signs: list[str]) -> Fraction:
    """A second implementation: products first, then the sum, by two plain loops."""
    terms, ops = [Fraction(numbers[0])], []
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            terms[-1] = terms[-1] * number
        elif sign == "/":
            terms[-1] = terms[-1] / number
        else:
            ops.append(sign)
            terms.append(Fraction(number))
    total = terms[0]
    for sign, term in zip(ops, terms[1:], strict=True):
        total = total + term if sign == "+" else total - term
    return total


def shown(value: Fraction, places: int) -> str:
    """`value` rounded half up to `places`, by integer division."""
    scaled = value * 10**places
    whole = (2 * abs(scaled.numerator) + scaled.denominator) // (2 * scaled.denominator)
    digits = str(whole).rjust(places + 1, "0")
    text = digits if places == 0 else f"{digits[:-places]}.{digits[-places:]}"
    return f"-{text}" if value < 0 and whole else text


def test_random_equations_are_judged_as_fractions_by_hand_judge_them() -> None:
    rng = random.Random(7)
    judged = 0
    for _ in range(3000):
        numbers = [rng.randint(1, 400) for _ in range(rng.randint(2, 5))]
        signs = [rng.choice("+-*/") for _ in numbers[1:]]
        value, places = by_hand(numbers, signs), rng.randint(2, 4)
        side = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
        right = shown(value, 0) if value.denominator == 1 else shown(value, places)
        wrong = shown(value + Fraction(rng.choice([-7, -3, 3, 7]), 1 if value.denominator == 1 else 10**places), 0 if value.denominator == 1 else places)
        assert list(wrong_equations(f"So {side} = {right}.")) == [], (side, right)
        equations = list(wrong_equations(f"So {side} = {wrong}."))
        assert equations == [(side, wrong, value)]
        judged += 1
    assert judged == 3000


@pytest.mark.parametrize(
    "text",
    ["9**9**9**9 = 2", "10 / 0 = 3", "((((((((((((((((1+1))))))))))))))))=3", "1.2.3 + 1 = 9", "2 ^ 0.5 = 7", "0 ^ -1 = 5", "5 + = 3", "= 3", "3 ="],
)
def test_what_cannot_be_read_for_certain_is_left_alone(text: str) -> None:
    assert list(wrong_equations(text)) == []


def test_hostile_text_is_checked_in_time_linear_in_its_length() -> None:
    parts = (
        "<",
        "<\t",
        "1=",
        "1+",
        "[",
        "![",
        "https://",
        "www.",
        "a@",
        "\n",
        " ",
        "\t",
        "no ",
        "x ",
        "(",
        "as an ",
        "- ",
        "#",
        "here is ",
        "/",
        "search ",
        "<<1",
    )
    for part in parts:
        hostile = part * 20_000 + "!"
        for check in ANSWERS:
            found(check, record(hostile, hostile))
            found(check, record(f"Describe this photo.\n\n{hostile}", f"noinput instruction: output {hostile}"))
