"""Languages are told apart on real sentences, offline, without torch; mixed scripts are found and formulas are not."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest

from tuner.data.checks.language import LANGUAGE
from tuner.data.findings import Finding, Scene
from tuner.data.language import LANGUAGES, LEAST_SHARE, language_code, language_of, script_of, script_shares
from tuner.data.record import Message, Record
from tuner.data.spec import DataSpec

# Article 1 of the Universal Declaration of Human Rights, its first sentence or two.
SENTENCES = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en geweten.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i sumieniem.",
    "sv": "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki ja omatunto.",
    "hu": "Minden emberi lény szabadon születik és egyenlő méltósága és joga van. Az emberek, ésszel és lelkiismerettel bírván.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "ja": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "id": "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama.",
}


def record(prompt: str, completion: str) -> Record:
    return Record((Message("user", prompt), Message("assistant", completion)), "train.jsonl", 7, "train")


def mixed(prompt: str, completion: str = "x") -> list[Finding]:
    each = LANGUAGE["mixed_scripts"].each
    assert each is not None
    return list(each(record(prompt, completion), Scene(DataSpec.model_validate({"train": "train.jsonl"}))))


def test_real_sentences_are_told_apart() -> None:
    right = {code for code, text in SENTENCES.items() if language_of(text)[0] == code and language_of(text)[1] >= LEAST_SHARE}
    assert set(SENTENCES) - right == set()
    assert len(right) == 24


def test_a_record_is_in_the_language_of_its_answer() -> None:
    for code, text in SENTENCES.items():
        assert LANGUAGES[language_code(record(SENTENCES["en"], text))] == code


def test_a_short_label_or_json_answer_takes_the_language_of_the_question() -> None:
    assert LANGUAGES[language_code(record(SENTENCES["de"], "ja"))] == "de"
    assert LANGUAGES[language_code(record(SENTENCES["fr"], '{"name": "the quick brown fox jumps over it"}'))] == "fr"
    assert LANGUAGES[language_code(record(SENTENCES["es"], "```python\nfor value in values: print(value)\n```"))] == "es"


@pytest.mark.parametrize(("prompt", "completion"), [("hi", "ok"), ("2 + 2", "4"), ("", "?!"), ("https://www.example.com/a/long/path", "`code_is_no_prose`")])
def test_fewer_than_twenty_letters_of_prose_have_no_language(prompt: str, completion: str) -> None:
    assert language_code(record(prompt, completion)) == 0
    assert language_of(completion) == ("", 0.0)


def test_the_list_of_languages_is_an_index_with_an_empty_place_for_undecided() -> None:
    assert LANGUAGES[0] == "" and len(set(LANGUAGES)) == len(LANGUAGES) == 43
    assert set(SENTENCES) <= set(LANGUAGES)


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("abc", {"Latin": 1.0}),
        ("Привет ab", {"Cyrillic": 0.75, "Latin": 0.25}),
        ("你好", {"Han": 1.0}),
        ("مرحبا", {"Arabic": 1.0}),
        ("カタ漢字", {"Kana": 0.5, "Han": 0.5}),
        ("123 !?", {}),
    ],
)
def test_script_shares_count_letters_only(text: str, shares: dict[str, float]) -> None:
    assert script_shares(text) == shares


def test_scripts_of_code_points_agree_with_their_unicode_names() -> None:
    scripts = "Latin Greek Cyrillic Arabic Hebrew Devanagari Thai Hangul Armenian Georgian Bengali Tamil Ethiopic"
    names = {"Han": "CJK", **{script: script.upper() for script in scripts.split()}}
    agree = checked = 0
    for point in range(0x41, 0x10000):
        if unicodedata.category(chr(point)) in {"Lu", "Ll", "Lo"} and script_of(chr(point)) in names:
            checked += 1
            agree += names[script_of(chr(point))] in unicodedata.name(chr(point), "")
    assert checked > 40_000 and agree / checked > 0.995


@pytest.mark.parametrize(
    ("prompt", "completion", "field"),
    [
        ("Log in to pаypal now", "x", "messages[0]"),
        ("a", "Мoscow is big", "messages[1]"),
        ("a", "Пpивет", "messages[1]"),
        ("Αpple pie", "x", "messages[0]"),
        ("a", "micrоsоft", "messages[1]"),
    ],
)
def test_letters_of_another_script_in_a_word_are_found(prompt: str, completion: str, field: str) -> None:
    [f] = mixed(prompt, completion)
    assert (f.code, f.field) == ("HOMOGLYPH", field)
    assert "U+0" in f.found


@pytest.mark.parametrize(
    "text", ["Δx = 2πr, 5 μm, λ₀", "IT-специалист, SMSка, iPhone и Windows", "Ελλάδα and Россия", "αβ-crystallin, TGFβ, βcat", "naïve Zürich", "x² ∑ y"]
)
def test_formulas_and_borrowed_words_are_spared(text: str) -> None:
    assert mixed(text, text) == []


def test_the_sweep_covers_every_check_of_language() -> None:
    assert set(LANGUAGE) == {"mixed_scripts"}


def test_the_model_loads_without_torch_and_without_a_network() -> None:
    code = """
import socket, sys
def refuse(*a, **k): raise OSError("no network")
socket.socket.connect = refuse
from tuner.data.language import language_of
assert language_of("Alle Menschen sind frei und gleich an Rechten geboren.")[0] == "de"
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr == ""
