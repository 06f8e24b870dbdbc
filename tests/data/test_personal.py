"""Every kind is found where its check digit is right and not where one digit is wrong; nothing that is found is ever shown."""

from __future__ import annotations

import json
import random
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from tuner.data.checks.personal import PERSONAL
from tuner.data.findings import Finding, Scene
from tuner.data.personal import KINDS, Hit, Redactor, find, hide, masked
from tuner.data.record import Message, Record
from tuner.data.spec import DataSpec
from tuner.errors import Refusal

CHOICE = random.Random(20240607)
ALNUM = string.ascii_letters + string.digits


def drawn(alphabet: str, length: int) -> str:
    return "".join(CHOICE.choice(alphabet) for _ in range(length))


# --- check digits by a second method ---------------------------------------------------------------------------------


def with_luhn(body: str) -> str:
    """Digit sums written out as text: double every other digit from the right, add all digits of all products."""
    products = "".join(str(int(c) * (2 if place % 2 == 0 else 1)) for place, c in enumerate(reversed(body)))
    return body + str(-sum(map(int, products)) % 10)


def remainder(digits: str, modulus: int) -> int:
    """School division, digit by digit."""
    rest = 0
    for c in digits:
        rest = (rest * 10 + int(c)) % modulus
    return rest


def iban(country: str, bban: str) -> str:
    letters = {c: str(10 + i) for i, c in enumerate(string.ascii_uppercase)}
    check = 98 - remainder("".join(letters.get(c, c) for c in bban + country + "00"), 97)
    return f"{country}{check:02d}{bban}"


def with_mod_11_10(body: str) -> str:
    """ISO 7064 as recursion: the check digit is the one that makes the last sum congruent to 1."""
    product = 10
    for c in body:
        product = (((product + int(c)) % 10) or 10) * 2 % 11
    return next(body + c for c in string.digits if (product + int(c)) % 10 == 1)


def with_verhoeff(body: str) -> str:
    """D5 as symmetries of a pentagon: a digit is what it does to the corners, and multiplying is doing one after the other."""
    corners = [tuple((corner + turn) % 5 for corner in range(5)) for turn in range(5)]
    corners += [tuple((turn - corner) % 5 for corner in range(5)) for turn in range(5)]

    def times(a: int, b: int) -> int:
        return corners.index(tuple(corners[a][corners[b][corner]] for corner in range(5)))

    def permuted(digit: int, rounds: int) -> int:
        for _ in range(rounds):
            digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
        return digit

    check = 0
    for place, c in enumerate(reversed(body), 1):
        check = times(check, permuted(int(c), place % 8))
    return next(body + str(d) for d in range(10) if times(check, d) == 0)


def with_cpf(body: str) -> str:
    """Weights counted upwards: the remainder modulo eleven is the digit itself, ten being zero."""
    first = sum(int(c) * w for w, c in enumerate(body, 1)) % 11 % 10
    second = sum(int(c) * w for w, c in enumerate(f"{body}{first}")) % 11 % 10
    return f"{body[:3]}.{body[3:6]}.{body[6:9]}-{first}{second}"


def with_pesel(body: str) -> str:
    return body + str(sum(int(c) * w for c, w in zip(body, (9, 7, 3, 1) * 3, strict=False)) % 10)


def with_bsn(body: str) -> str | None:
    check = sum(int(c) * w for c, w in zip(body, range(9, 1, -1), strict=True)) % 11
    return f"{body}{check}" if check < 10 else None


def with_nir(body: str) -> str:
    return f"{body}{97 - remainder(body, 97):02d}"


def with_dni(number: str) -> str:
    return number + "TRWAGMYFPDXBNJZSQVHLCKE"[remainder(number, 23)]


def tax_id_body() -> str:
    """Ten digits of which one is there twice, one never, the others once."""
    digits = list(string.digits)
    CHOICE.shuffle(digits)
    digits[9] = digits[CHOICE.randrange(9)]
    CHOICE.shuffle(digits)
    while digits[0] == "0":
        CHOICE.shuffle(digits)
    return "".join(digits)


def fours(value: str) -> str:
    return " ".join(value[i : i + 4] for i in range(0, len(value), 4))


def many(make: Callable[[], str | None], count: int = 12) -> list[str]:
    values = (make() for _ in range(10 * count))
    return [value for value in values if value][:count]


def cards() -> list[str]:
    starts = {"4": 16, "51": 16, "55": 16, "2221": 16, "2720": 16, "34": 15, "37": 15, "6011": 16, "65": 16, "3530": 16, "62": 16}
    plain = [with_luhn(start + drawn(string.digits, length - 1 - len(start))) for start, length in starts.items()]
    grouped = [fours(value) for value in plain if len(value) == 16] + [f"{v[:4]}-{v[4:10]}-{v[10:]}" for v in plain if len(v) == 15]
    return [*grouped, *(f"{value}" for value in plain if value[0] != "2")]


def personnummer() -> list[str]:
    """Born on days 1 to 28; one with its day raised by 60, as coordination numbers have it; one of a person of over a hundred."""
    days = [f"{drawn(string.digits, 2)}0{drawn('123456789', 1)}{day:02d}" for day in (1, 10, 28, 63, 88)]
    return [f"{day}{mark}{with_luhn(day + drawn(string.digits, 3))[6:]}" for day, mark in zip(days, "----+", strict=True)]


PEM_BODY = "\n".join(drawn(ALNUM + "+/", 64) for _ in range(6))


def pem(kind: str, body: str = PEM_BODY) -> str:
    return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----"


# kind: (text around the value, {} its place; values; texts in which one digit, letter or circumstance is wrong)
SAMPLES: dict[str, tuple[str, list[str], list[str]]] = {
    "email": ("Write to {} today.", ["jane.carter80@gmail.com", "x+tag@mail.firm.co.uk", "M@uni-köln.de", "J_D@sub.a-b.io"],
              ["jane@example.com", "a@b.example.org", "you@yourcompany.com", "x@host.invalid", "user@domain.com", "git@github.com",
               "me@users.noreply.github.com",
               "logo@2x.png", "@handle", "a@b", "lodash@4.17.21"]),
    "phone": ("I can be had at {} in the evening",
              ["+1 415 555 2671", "+44 20 7946 0958", "+49 30 901820", "+33 6 12 34 56 78", "+91 98765 43217", "(415) 555-2671", "415-555-2671", "415.555.2671",
               "1-800-273-8255", "020 7946 0958", "07911 123456", "030 901820", "0171 / 123 45 67", "06 12 34 56 78", "0049 30 901820"],
              ["+1 115 555 2671", "115-555-2671", "415-155-2671", "+999 20 7946 0958", "4155552671", "415 555 2671", "00 7946 0958", "order no. 415-555-2671",
               "phone 123-456-7890", "2018-2019-2020", "page 4-12-1999", "phone: see order 4155552671", "account number 4155552671, call me"]),
    "card": ("Paid with {} yesterday", cards(), ["0000 0000 0000 0000", "order 4111111111111111", "1234 5678 9012 3456"]),
    "iban": ("IBAN: {}.",
             ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", iban("MT", "MALT011000012345MTLCAST001S"),
              *(iban("DE", drawn(string.digits, 18)) for _ in range(6)), *(fours(iban("NL", "ABNA" + drawn(string.digits, 10))) for _ in range(6))],
             [iban("DE", drawn(string.digits, 17)), iban("QQ", drawn(string.digits, 18)), "DE89 3704 0044"]),
    "us_ssn": ("she has {} on file", ["536-22-1847", "001-01-0001", "899-99-9998"],
               ["666-22-1847", "000-22-1847", "936-22-1847", "536-00-1847", "536-22-0000", "536221847", "123-45-6789", "078-05-1120", "5536-22-1847",
                "536-22-18475", "part no. 536-22-1847"]),
    "uk_nino": ("his is {} he said", ["AB123456C", "JG 10 37 59 A", "WX999999D"],
                ["BG123456C", "DA123456C", "AO123456C", "AB123456E", "AB12345C", "AB1234567C", "ab123456c", "order AB123456C"]),
    "de_tax_id": ("Meine Steuer-ID ist {}", ["36574261809", "65929970489", *(with_mod_11_10(tax_id_body()) for _ in range(12))],
                  ["Steuer-ID 11111111111", "Rechnung 36574261809"]),
    "es_dni": ("con {} y", ["12345678Z", "X1234567L", *(with_dni(drawn("345", 1) + drawn(string.digits, 7)) for _ in range(12))],
               ["12345678A", "X1234567A", "12345678z", "1234567Z", with_dni("20240115")]),
    "fr_nir": ("son {} est",
               ["2 55 08 14 168 025 38", *(with_nir(f"1{drawn(string.digits, 2)}0{drawn('123456789', 1)}{drawn(string.digits, 8)}") for _ in range(12))],
               [with_nir("2551314168025"), with_nir("3550814168025")]),
    "it_codice_fiscale": ("il codice {} di", ["RSSMRA85T10A562S", "MRTMTT25D09F205Z", "mrtmtt25d09f205z"],
                          ["RSSMRA85T10A562T", "RSSMRA85T11A562S", "RSSMRA85F10A562S"]),
    "nl_bsn": ("mijn BSN is {}", ["111222333", *many(lambda: with_bsn(drawn("123456789", 1) + drawn(string.digits, 7)))],
               ["order 111222333", "111222333 stuks"]),
    "in_aadhaar": ("Aadhaar {} is mine", ["2341 2341 2346", *(fours(with_verhoeff(drawn("23456789", 1) + drawn(string.digits, 10))) for _ in range(12))],
                   ["2341 2341 2346", "Aadhaar " + with_verhoeff("13412341234"), "2018 2019 2020"]),
    "br_cpf": ("o meu {} e", ["390.533.447-05", *(with_cpf(drawn(string.digits, 9)) for _ in range(12))], ["111.111.111-11", "39053344705"]),
    "pl_pesel": ("PESEL: {}",
                 ["44051401359", *(with_pesel(f"{drawn(string.digits, 2)}{month}{drawn('12', 1)}{drawn('12345678', 1)}{drawn(string.digits, 4)}")
                                   for month in ("01", "12", "21", "32", "81", "92"))],
                 ["44051401359", "PESEL " + with_pesel("4413140135"), "PESEL " + with_pesel("4405320135")]),
    "se_personnummer": ("jag har {} alltså", ["811228-9874", "19811228-9874", "640823-3234", *personnummer()],
                        ["811328-" + with_luhn("811328987")[6:], "811232-" + with_luhn("811232987")[6:], "8112289874", "811228-987"]),
    "ca_sin": ("My SIN is {}", ["123-456-782", *(with_luhn(drawn("1234567", 1) + drawn(string.digits, 7)) for _ in range(12))],
               ["123-456-782", "SIN 046-454-286"]),
    "ip": ("blocked 81.169.145.7 and {} today", ["81.169.145.66", "213.73.91.35", "5.9.164.112"],
           ["192.168.1.17", "10.20.30.41", "127.0.0.1", "203.0.113.77", "256.1.12.40", "version 8.34.21.91", "v8.34.21.91", "Chrome/58.34.30.110", "8.8.8.8",
            "5.1.2.3", "81.169.145.0", "81.169.145.66.2", "Acrobat 11.4.23.2"]),
    "ipv6": ("it is {} there", ["2a00:1450:4001:82a::200e", "2a02:908:1252:a120:71b8:9a2d:3a6f:1b2c"],
             ["2001:db8::1:2:3", "fe80::1:2:3", "12:30:45", "std::dec::2a00", "2a00:1450:4001:82a::20:0e::1", "2606:4700:4700::1111"]),
    "url_credential": ("use {} now", ["https://bob:s3cr3tpw@db.firm.io", "postgres://app:hG7tR2kq@10.0.0.4", "redis://:k9Lm2Qz8@cache.internal.firm.io"],
                       ["https://user:password@db.firm.io", "https://db.firm.io:8080/x@y", "https://user:${PW}@db.firm.io", "https://a:s3cr3tpw@example.com",
                        "https://u:<token>@firm.io"]),
    "aws_key": ("id {} there", ["AKIA" + drawn("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16), "ASIAQ4GW5JTXM2RLK7BZ"],
                ["AKIAIOSFODNN7EXAMPLE", "AKIAQ4GW5JTXM2RLK7B", "AKIAXXXXXXXXXXXXXXXX", "XAKIAQ4GW5JTXM2RLK7BZ"]),
    "github_token": ("use {} now", ["ghp_" + drawn(ALNUM, 36), "gho_" + drawn(ALNUM, 36), "github_pat_" + drawn(ALNUM, 82)],
                     ["ghp_" + drawn(ALNUM, 35), "ghp_" + "x" * 36, "ghz_" + drawn(ALNUM, 36)]),
    "gitlab_token": ("use {} now", ["glpat-" + drawn(ALNUM, 20)], ["glpat-" + drawn(ALNUM, 19), "glpat-your_token_goes_here_1"]),
    "slack_token": ("use {} now", ["xoxb-" + drawn(string.digits, 12) + "-" + drawn(ALNUM, 24)], ["xoxb-your-token-here-please", "xoxz-" + drawn(ALNUM, 24)]),
    "openai_key": ("use {} now", ["sk-" + drawn(ALNUM, 48) + "7", "sk-proj-" + drawn(ALNUM + "_-", 64) + "x", "sk-or-v1-" + drawn("0123456789abcdef", 64)],
                   ["sk-" + "x" * 48, "sk-" + drawn(ALNUM, 12), "sk-learn-how-to-fine-tune-models-2024", "task-" + drawn(ALNUM, 48)]),
    "anthropic_key": ("use {} now", ["sk-ant-api03-" + drawn(ALNUM + "_-", 93) + "AA"], ["sk-ant-api03-...", "sk-ant-" + "x" * 40]),
    "google_key": ("use {} now", ["AIza" + drawn(ALNUM, 35)], ["AIza" + drawn(ALNUM, 34), "AIza" + drawn(ALNUM, 36)]),
    "stripe_key": ("use {} now", ["sk_live_" + drawn(ALNUM, 24), "rk_test_" + drawn(ALNUM, 24)],
                   ["pk_live_" + drawn(ALNUM, 24), "sk_live_" + "x" * 24, "sk_live_" + drawn(ALNUM, 12)]),
    "huggingface_token": ("use {} now", ["hf_" + drawn(ALNUM, 34)], ["hf_" + drawn(ALNUM, 20), "hf_" + "x" * 34, "hf_hub_download_of_a_long_function_name"]),
    "npm_token": ("use {} now", ["npm_" + drawn(ALNUM, 36)], ["npm_" + drawn(ALNUM, 35), "npm_config_registry_of_the_package_manager"]),
    "pypi_token": ("use {} now", ["pypi-AgEIcHlwaS5vcmc" + drawn(ALNUM, 60)], ["pypi-" + drawn(ALNUM, 20), "pypi-server"]),
    "sendgrid_key": ("use {} now", ["SG." + drawn(ALNUM, 22) + "." + drawn(ALNUM, 43)], ["SG." + drawn(ALNUM, 21) + "." + drawn(ALNUM, 43), "msg.text.body"]),
    "azure_storage_key": ("Name=x;{};Suffix", ["AccountKey=" + drawn(ALNUM + "+/", 86) + "=="], ["AccountKey=" + drawn(ALNUM, 40), "AccountKey=<your key>"]),
    "jwt": ("Bearer {} sent", ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"],
            ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0", "eyJ.eyJ.x"]),
    "private_key": ("keep\n{}\nsafe", [pem(f"{kind}PRIVATE KEY") for kind in ("", "RSA ", "OPENSSH ", "EC ")],
                    [pem("PRIVATE KEY", "..."), pem("CERTIFICATE"), pem("PUBLIC KEY")]),
    "assigned_secret": ("DB_PASSWORD={}", ["hunter2!", "Tr0ub4dor&3", "I443Y3f3uE7z", "pa55-W0rd-9x"],
                        ["password: ********", "password=changeme123", "password = os.environ['DB2_PW']", "api_key: YOUR_API_KEY_1", "secret: <secret1>",
                         "token = next_token2()", "The password is required.", "the secret is perseverance and 10 years", "password: password123",
                         "api_key=${KEY_1}", "token: tokenizer.model2", "pwd: /home/ann/dir2", "password must be 8 characters"]),
}  # fmt: skip
CASES = [(kind, around, value) for kind, (around, values, _) in SAMPLES.items() for value in values]
CHECKED_DIGITS = {
    "card",
    "iban",
    "de_tax_id",
    "es_dni",
    "fr_nir",
    "it_codice_fiscale",
    "nl_bsn",
    "in_aadhaar",
    "br_cpf",
    "pl_pesel",
    "se_personnummer",
    "ca_sin",
}

NATURAL = [
    "Your order 4532015112830366 has shipped, tracking number 1Z999AA10123456784, invoice 2024-000123.",
    "Order no. 10277855563, ticket #483920174, case 00123456789 and part number 536-22-1847.",
    "commit 3f786850e387550fdab836ed7e6dc881de23001b and sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "ISBN 978-3-16-148410-0, ISBN-13: 9783161484100, ISSN 2049-3630, EAN 4006381333931, doi 10.1000/182",
    "Python 3.11.4, Chrome 120.0.6099.109, build 10.0.19045.3803, nginx/1.25.3, firmware 2.14.7.33, section 5.1.2.3",
    "2023-05-06 12:30:45, 06/05/2023, 6.5.2023, 1999-12-31T23:59:59Z, 20240115, 2018 2019 2020 2021",
    "1718000000, 1718000000000, timestamp: 1718000000123456, 09:00 - 17:00",
    "It costs $1,299.99 or 1.299,99 €, 12 345 678 901 in all, about 4,500,000 people, +3.5 % a year",
    "550e8400-e29b-41d4-a716-446655440000 and {6F9619FF-8B86-D011-B42D-00CF4FC964FF}",
    "48/2 = <<48/2=24>>24, 500-250-200, 3.141592653589793238, 2.718281828459045, 6.02214076e+23, 2**64 = 18446744073709551616",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16, 01 02 03, 2 4 8 16 32 64 128 256 512 1024 2048 4096 8192",
    "x = [0.12345678, -1234567890, 9876543210]; for (i = 0; i < 1000000000; i++) a[i] += 4155552671;",
    "The ratio is 415:555:2671, the score 21-15 21-18, the room 020-7946, the flight LH 4123 on 12-10-2024.",
    "Call me at seven. My phone was stolen on 12.10.2024; it cost 1299.00 and had 256 GB.",
    "The token is the smallest unit; the key is 42. A password has 12 characters. Secret: none.",
    "tokens: 128000, api: v1.2.3, key = lambda x2: x2.id, token=token1, secret_key_base_64_enabled",
    "@property def f(self): return A@B.T; see https://docs.python.org:443/3/library/re.html#re.A and ratio@2x.png",
    "user@localhost, ssh git@github.com:org/repo.git, root@10.0.0.1, http://localhost:8080, 192.168.0.12, 0.0.0.0, 255.255.255.0",
    "In 1984 123456 people bought 78 boxes of 90 pens each, i.e. 550,000 pens (550000).",
    "GPU 0000:3b:00.0, MAC 00:1A:2B:3C:4D:5E, colour #1a2b3c4d, hex 0xDEADBEEF12345678, base64 SGVsbG8gd29ybGQhISE=",
]


def kinds_in(text: str) -> set[str]:
    return {hit.kind for hit in find(text)}


def record(*texts: str) -> Record:
    roles = ("user", "assistant")
    return Record(tuple(Message(roles[i % 2], text) for i, text in enumerate(texts)), "rows.jsonl", 7, "train")  # type: ignore[arg-type]


def findings(*texts: str, check: str | None = None) -> list[Finding]:
    scene = Scene(DataSpec.model_validate({"train": "rows.jsonl"}))
    return [found for name, row in PERSONAL.items() if check in (None, name) and row.each for found in row.each(record(*texts), scene)]


# --- finding ---------------------------------------------------------------------------------------------------------


def test_every_kind_has_values_to_find_and_near_misses_to_leave() -> None:
    swept = [kind for kind, (_, values, misses) in SAMPLES.items() if values and len(misses) >= 1]
    assert set(swept) == set(KINDS) and len(swept) == 35
    assert {kind.group for kind in KINDS.values()} == {"personal", "secret"} and len(CASES) >= 180


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_value_of_each_kind_is_found_at_exactly_its_place(kind: str) -> None:
    around, values, _ = SAMPLES[kind]
    for value in values:
        text = around.replace("{}", value)
        start = text.rindex(value)
        assert Hit(kind, start, start + len(value)) in find(text), (kind, value, find(text))


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_near_miss_of_each_kind_is_not_taken_for_it(kind: str) -> None:
    for miss in SAMPLES[kind][2]:
        assert kind not in kinds_in(f"It says {miss} here"), (kind, miss)


def test_one_wrong_digit_undoes_every_number_with_a_check_digit() -> None:
    """CPF's second remainder is folded from eleven values onto ten: there only the check digits themselves are changed."""
    tried: Counter[str] = Counter()
    for kind, around, value in CASES:
        if kind in CHECKED_DIGITS:
            places = [i for i, c in enumerate(value) if c.isdigit()]
            for place in places[-2:] if kind == "br_cpf" else places:
                wrong = value[:place] + str((int(value[place]) + 1) % 10) + value[place + 1 :]
                assert kind not in kinds_in(around.replace("{}", wrong)), (kind, value, wrong)
                tried[kind] += 1
    assert tried.keys() == CHECKED_DIGITS and sum(tried.values()) > 1000


@pytest.mark.parametrize("text", NATURAL)
def test_numbers_and_words_of_ordinary_text_are_left_alone(text: str) -> None:
    assert [(hit.kind, text[hit.start : hit.end]) for hit in find(text)] == []


def test_a_bare_run_of_digits_needs_a_word_that_says_what_it_is() -> None:
    bare = {"phone": ("my phone number is {}", "8956235478"), "us_ssn": ("ssn is {}", "536221847"), "card": ("card {}", with_luhn("222112345678901")),
            "nl_bsn": ("BSN {}", "111222333"), "pl_pesel": ("pesel {}", "44051401359"), "de_tax_id": ("IdNr. {}", "36574261809"),
            "ca_sin": ("social insurance number {}", "123456782"), "in_aadhaar": ("aadhaar no {}", "234123412346"), "br_cpf": ("CPF {}", "39053344705"),
            "se_personnummer": ("personnummer {}", "8112289874")}  # fmt: skip
    for kind, (said, value) in bare.items():
        assert kinds_in(said.replace("{}", value)) == {kind} and kinds_in(f"we sold {value} of them") == set(), kind


def test_of_two_hits_on_the_same_characters_the_longer_one_stays() -> None:
    text = "see postgres://ann:hG7tR2kq@db.firm.io and password=ghp_" + drawn(ALNUM, 36)
    assert [hit.kind for hit in find(text)] == ["url_credential", "github_token"]


def test_hits_are_sorted_and_never_overlap() -> None:
    for _ in range(200):
        text = " ".join(around.replace("{}", value) for _, around, value in CHOICE.sample(CASES, 4))
        hits = find(text)
        assert all(a.end <= b.start for a, b in pairwise(hits)) and len(hits) >= 2


def test_two_numbers_on_one_line_are_two_hits_and_a_year_is_no_part_of_one() -> None:
    text = "call 415-555-2671 or +1 415 555 2672 2023, not 020 7946 0958"
    assert [text[hit.start : hit.end] for hit in find(text)] == ["415-555-2671", "+1 415 555 2672", "020 7946 0958"]


@pytest.mark.parametrize(
    "unit",
    ["a@", "a.", "1 ", "1-", "x://a:b", "-----BEGIN PRIVATE KEY-----\n", "password: a1b2c3d4 ", "2a00:", "+1 ", "joe@gmail.com ", "415-555-2671 ", "\u0130"],
)
def test_a_long_text_of_repeated_beginnings_is_read_in_linear_time(unit: str) -> None:
    """0.6 s were the slowest for 200,000 characters (2024, one core); a pattern that backtracks takes minutes."""
    start = time.process_time()
    find(unit * (100_000 // len(unit)))
    assert time.process_time() - start < 5


# --- showing ---------------------------------------------------------------------------------------------------------


def inner(value: str) -> Iterable[str]:
    """Every three neighbouring letters or digits of the middle third."""
    value = "".join(c for c in value if c.isalnum())
    third = len(value) // 3
    middle = value[third : -third or None]
    return (middle[i : i + 3] for i in range(max(1, len(middle) - 2)))


def test_a_mask_shows_nothing_of_the_middle_of_a_value() -> None:
    shown = 0
    for kind, _, value in CASES:
        mask = masked(value, Hit(kind, 0, len(value)))
        assert "…" in mask and len(mask) < 40 and not any(part in mask for part in inner(value) if len(part) == 3), (kind, value, mask)
        shown += 1
    assert shown == len(CASES)


def test_masks_read_as_documented() -> None:
    examples = {"email": ("jane@gmail.com", "j…@…"), "card": ("4111 1111 1111 1111", "4…1 (16 digits)"),
                "openai_key": ("sk-" + "a1B2" * 12, "sk-…(51 characters)"),
                "url_credential": ("https://bob:s3cr3tpw@db.firm.io", "https://…:…@…"), "iban": ("DE89 3704 0044 0532 0130 00", "D…0 (22 characters)"),
                "assigned_secret": ("hunter2!", "…(8 characters)")}  # fmt: skip
    for kind, (value, mask) in examples.items():
        assert masked(value, Hit(kind, 0, len(value))) == mask


def test_a_hidden_text_keeps_its_words_and_loses_its_values() -> None:
    assert hide("Mail jane@gmail.com, card 4111 1111 1111 1111!") == "Mail j…@…, card 4…1 (16 digits)!"
    for _, around, value in CASES:
        hidden = hide(around.replace("{}", value))
        assert value not in hidden and hide(hidden) == hidden
    assert all(hide(text) == text for text in NATURAL)


# --- redacting -------------------------------------------------------------------------------------------------------


def test_one_value_gets_one_placeholder_across_texts_however_it_is_spelt() -> None:
    redactor = Redactor(["all"])
    texts = ["ask Jane@gmail.com or bob@gmail.com", "again: jane@GMAIL.com", "call (415) 555-2671", "or +1 415-555-2671, or 020 7946 0958",
             "card 4111 1111 1111 1111", "card 4111-1111-1111-1111", "DE89370400440532013000 is de89 3704 0044 0532 0130 00"]  # fmt: skip
    assert [redactor.redact(text)[0] for text in texts] == [
        "ask [EMAIL_1] or [EMAIL_2]", "again: [EMAIL_1]", "call [PHONE_1]", "or [PHONE_1], or [PHONE_2]",
        "card [CARD_1]", "card [CARD_1]", "[IBAN_1] is [IBAN_1]"]  # fmt: skip


def test_redaction_counts_every_replacement_by_kind() -> None:
    text, counts = Redactor(["all"]).redact("a1@gmail.com a1@gmail.com b2@gmail.com password=hunter2! 415-555-2671")
    assert counts == {"email": 3, "assigned_secret": 1, "phone": 1}
    assert text == "[EMAIL_1] [EMAIL_1] [EMAIL_2] password=[ASSIGNED_SECRET_1] [PHONE_1]"
    assert Redactor(["all"]).redact(NATURAL[0]) == (NATURAL[0], Counter())


def test_only_the_chosen_kinds_are_replaced() -> None:
    text = "jane@gmail.com, 415-555-2671, password=hunter2!"
    assert Redactor(["phone"]).redact(text)[0] == "jane@gmail.com, [PHONE_1], password=hunter2!"
    assert Redactor(["secret"]).redact(text)[0] == "jane@gmail.com, 415-555-2671, password=[ASSIGNED_SECRET_1]"
    assert Redactor(["personal"]).redact(text)[0] == "[EMAIL_1], [PHONE_1], password=hunter2!"
    assert Redactor([]).redact(text) == (text, Counter())


@pytest.mark.parametrize("kinds", [["all"], ["email", "phone"], ["secret"]])
def test_redacting_what_is_redacted_changes_nothing(kinds: list[str]) -> None:
    redactor, replaced = Redactor(kinds), 0
    for _ in range(600):
        text = CHOICE.choice([" ", "", "\n", ", ", "/", " x "]).join(
            CHOICE.choice([around.replace("{}", value), value]) for _, around, value in CHOICE.sample(CASES, 3)
        )
        once, counts = redactor.redact(text)
        replaced += counts.total()
        assert redactor.redact(once) == (once, Counter()) and Redactor(kinds).redact(once) == (once, Counter())
        assert not {hit.kind for hit in find(once)} & redactor.kinds
    assert replaced > 100


def test_numbering_is_the_same_for_the_same_texts_in_the_same_order() -> None:
    texts = [around.replace("{}", value) for _, around, value in CASES]
    first, second = Redactor(["all"]), Redactor(["all"])
    assert [first.redact(text) for text in texts] == [second.redact(text) for text in texts]


def test_an_unknown_kind_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refusal) as refusal:
        Redactor(["emial"])
    problem = refusal.value.problems[0]
    assert problem.field == "data.redact" and "email" in problem.accepted and problem.try_ == "write email"


# --- checks ----------------------------------------------------------------------------------------------------------


def test_a_finding_names_message_and_kind_and_never_carries_the_value() -> None:
    told = 0
    for kind, around, value in CASES:
        for found in findings("hello", around.replace("{}", value)):
            flat = json.dumps(found.as_dict(), ensure_ascii=False)
            assert value not in flat and found.field == "messages[1]" and found.code.lower() in KINDS
            assert f"data.redact: [{found.code.lower()}]" in found.fix and "delete line 7" in found.fix
            told += found.code == kind.upper()
    assert told == len(CASES)


def test_a_message_has_one_finding_a_kind_with_the_number_of_values() -> None:
    found = findings("a1@gmail.com b2@gmail.com c3@gmail.com d4@gmail.com", "and 415-555-2671", "e5@gmail.com", check="personal_data")
    assert [(f.code, f.field, f.found) for f in found] == [
        ("EMAIL", "messages[0]", "4 times: a…@…, b…@…, c…@…, …"), ("PHONE", "messages[1]", "4…1 (10 digits)"), ("EMAIL", "messages[2]", "e…@…")]  # fmt: skip


def test_personal_data_warns_secrets_refuse_and_each_sees_only_its_own() -> None:
    text = "jane@gmail.com password=hunter2!"
    assert [f.code for f in findings(text, check="personal_data")] == ["EMAIL"] and [f.code for f in findings(text, check="secrets")] == ["ASSIGNED_SECRET"]
    assert (PERSONAL["personal_data"].default, PERSONAL["secrets"].default) == ("warn", "refuse")


def test_arguments_of_tool_calls_are_read_too() -> None:
    call = Message("assistant", "", tool_calls='[{"name": "send", "arguments": {"to": "jane@gmail.com"}}]')
    rows = PERSONAL["personal_data"].each
    assert rows and [f.code for f in rows(Record((Message("user", "x"), call), "f", 1, "train"), Scene(DataSpec.model_validate({"train": "f"})))] == ["EMAIL"]


def test_clean_records_have_no_findings() -> None:
    assert findings(*NATURAL) == []


def test_redaction_reaches_tool_calls_tools_names_and_columns_and_leaves_json_whole() -> None:
    import json

    from tuner.data.redaction import redacted
    from tuner.data.splits import Splits

    call = json.dumps([{"function": {"name": "pay", "arguments": '{"card": 4111111111111111, "to": "john.doe@acme-mail.com"}'}}])
    tools = json.dumps([{"description": "mail john.doe@acme-mail.com"}])
    record = Record((Message("user", "pay", name="john.doe@acme-mail.com", tools=tools), Message("assistant", "", call)), "a", 1, "train",
                    {"card": 4111111111111111, "john.doe@acme-mail.com": "x"})  # fmt: skip
    answer = Record((Message("user", "q"), Message("assistant", '{"card": 4111111111111111}')), "a", 2, "train")
    splits, counts = redacted(Splits({"train": [record, answer]}, ()), ["all"], json_answers=True)
    first, second = splits["train"]
    assert "4111111111111111" not in repr(splits) and "john.doe" not in repr(splits) and counts["card"] == 3 and counts["email"] == 4
    arguments = json.loads(json.loads(first.messages[1].tool_calls or "")[0]["function"]["arguments"])
    assert arguments == {"card": "[CARD_1]", "to": "[EMAIL_1]"} and json.loads(second.completion) == {"card": "[CARD_1]"}
