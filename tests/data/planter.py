"""A hundred thousand made records with a thousand faults planted at known lines: what the doctor must find, and nothing else.

`python -m tests.data.planter FOLDER RECORDS FAULTS` writes train.jsonl and held_out.jsonl, runs the doctor over them in this process (torch
is never loaded here, so it works on every core) and writes found.json. Sentences come from word lists large enough that no two records are
nearly the same by chance; they hold no names, numbers or links, so that no other check has a reason to speak.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tuner.data.checks import CHECKS
from tuner.data.doctor import examine
from tuner.data.findings import Scene
from tuner.data.spec import DataSpec
from tuner.data.splits import read_splits

Place = tuple[str, int, str, str]  # (split, line, check, code)


def listed(words: str, parted_by: str | None = None) -> list[str]:
    return [word.strip() for word in words.split(parted_by)]


THINGS = listed("""lantern kettle ladder saddle violin compass blanket anchor basket hammer mirror candle bucket wagon barrel chisel needle pillow trumpet
    helmet curtain drawer bottle shovel carpet bicycle telescope umbrella hammock teapot bookcase wardrobe rowing-boat wheelbarrow accordion chandelier
    typewriter gramophone workbench greenhouse weathervane birdcage grindstone sundial windmill cupboard armchair doorbell fountain hourglass
    spinning-wheel lighthouse chessboard rocking-horse toolbox suitcase doorstep bridge cellar orchard stable harbour chimney balcony staircase attic""")
KINDS = listed("""old wooden copper painted broken heavy narrow polished rusty borrowed forgotten precious green crimson silver hollow crooked sturdy
    delicate dusty enormous faded gilded handmade ivory leaky mended noisy ornate patched quaint ragged scratched slender tarnished uneven velvet
    weathered yellow antique bronze cracked dented elegant fragile glossy humble iron jolly knotted linen marble neat oval plain quiet round striped""")
PEOPLE = listed("""baker carpenter sailor teacher gardener blacksmith tailor miller shepherd potter weaver librarian watchmaker fisherman clerk painter
    nurse innkeeper glazier cobbler violinist porter ferryman stonemason beekeeper printer cooper rope-maker surveyor apothecary organist bookbinder""")
DEEDS = listed("""repaired carried measured painted borrowed sold cleaned lifted described polished moved wrapped stored traded weighed examined mended
    copied delivered hid collected sketched tested returned unpacked labelled balanced fastened loosened admired inspected sharpened varnished rebuilt""")
PLACES = listed("""market mill river chapel tavern library workshop meadow quarry harbour castle forest bakery village schoolhouse monastery vineyard
    lakeside crossroads barracks observatory theatre museum nursery brewery foundry boathouse granary almshouse tollgate watchtower cloister""")
TIMES = listed("""before sunrise|after the harvest|during the storm|late in the autumn|on a foggy morning|at the end of winter|while the bells were ringing|
    shortly before supper|in the middle of the fair|on the longest day of summer|when the snow had melted|after the first frost|as the ferry was leaving|
    during the great drought|on the eve of the festival|when nobody was looking""", "|")  # fmt: skip
REASONS = listed("""to please a stranger|because the roof was leaking|to settle an old quarrel|for the travelling players|so that the children could sleep|
    to keep the rain away|for a wedding in the valley|because winter was coming|to make room for guests|as a gift for the abbot|to win a foolish wager|
    in exchange for a sack of flour|so that nobody would notice|to frighten the crows|for the sake of good order|because of a promise""", "|")  # fmt: skip
MANNERS = listed("slowly carefully proudly quietly hastily cheerfully reluctantly patiently secretly boldly gently clumsily eagerly gravely nervously kindly")


@dataclass
class Planting:
    """Lines of both files as bytes, and every finding they must give."""

    train: list[bytes]
    held_out: list[bytes]
    expected: list[Place] = field(default_factory=list)


Pair = tuple[str, str]


def made_pair(dice: random.Random) -> Pair:
    """A question of about forty-five words and its answer of about thirty-five, on the same things."""
    one, other = dice.sample(THINGS, 2)
    kind, other_kind, third_kind = dice.sample(KINDS, 3)
    person, friend, third = dice.sample(PEOPLE, 3)
    place, home = dice.sample(PLACES, 2)
    deed, next_deed, last_deed = dice.sample(DEEDS, 3)
    when, then = dice.sample(TIMES, 2)
    why, reason = dice.sample(REASONS, 2)
    how, also = dice.sample(MANNERS, 2)
    question = (
        f"In a story the {person} {how} {deed} the {kind} {one} near the {place} {when}, {why}. {then.capitalize()} the {friend} {next_deed} "
        f"a {other_kind} {other} from the {home}, and the {third_kind} {third} watched {also}. What became of the {kind} {one}, and who kept the {other}?"
    )
    answer = (
        f"The {kind} {one} stayed with the {person}, who {last_deed} it {also} {then}. The {other_kind} {other} was kept by the {friend} "
        f"of the {home}, {reason}, although the {third} of the {place} had {how} asked for it."
    )
    return question, answer


def as_line(pair: Pair) -> bytes:
    turns = [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return json.dumps({"messages": turns}, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Bed:
    """What a fault may use: the clean pairs of train, those of held_out that are left, dice, and the place of a clean record before it."""

    train: list[Pair]
    held_out: list[Pair]
    dice: random.Random
    earlier: int


Sown = tuple[bytes, str, str]  # the line, the check that must speak, its code
Plant = Callable[[Bed, Pair], Sown]


def _duplicate_key(bed: Bed, pair: Pair) -> Sown:
    return as_line(pair)[:-1] + b', "messages": []}', "unreadable", "DUPLICATE_KEY"


def _not_a_number(bed: Bed, pair: Pair) -> Sown:
    return as_line(pair)[:-1] + b', "score": NaN}', "unreadable", "NOT_FINITE"


def _broken_json(bed: Bed, pair: Pair) -> Sown:
    line = as_line(pair)
    return line[: bed.dice.randrange(20, len(line) - 3)], "unreadable", "BROKEN_JSON"


def _invalid_utf8(bed: Bed, pair: Pair) -> Sown:
    return as_line(pair).replace(b"story", b"st\xf6ry", 1), "unreadable", "ENCODING"


def _unknown_role(bed: Bed, pair: Pair) -> Sown:
    return as_line(pair).replace(b'"assistant"', b'"asistant"'), "structure", "ROLE"


def _empty_completion(bed: Bed, pair: Pair) -> Sown:
    return as_line((pair[0], bed.dice.choice(["", " ", "\n\n", "\u3000", "\u00a0\t"]))), "empty_completion", "EMPTY"


def _exact_duplicate(bed: Bed, pair: Pair) -> Sown:
    return as_line(bed.train[bed.earlier]), "exact_duplicates", "DUPLICATE"


def _near_duplicate(bed: Bed, pair: Pair) -> Sown:
    question, answer = bed.train[bed.earlier]
    words = question.split()
    place = bed.dice.randrange(10, len(words) - 10)
    words[place : place + 2] = ["chartreuse", "samovar"]  # two words side by side: four shingles of some forty-five
    return as_line((" ".join(words), answer)), "near_duplicates", "NEAR"


def _contradiction(bed: Bed, pair: Pair) -> Sown:
    return as_line((bed.train[bed.earlier][0], pair[1])), "contradictions", "CONTRADICTION"


def _personal_data(bed: Bed, pair: Pair) -> Sown:
    if bed.dice.random() < 0.5:
        said, code = f"write to {bed.dice.choice(PEOPLE)}.{bed.dice.choice(PLACES)}@{bed.dice.choice(KINDS)}post.net about it", "EMAIL"
    else:
        said, code = f"charge it to card {_card_number(bed.dice)}", "CARD"
    return as_line((f"{pair[0]} Please {said}.", pair[1])), "personal_data", code


def _card_number(dice: random.Random) -> str:
    """Sixteen digits of a Visa card with a right check digit (Luhn, ISO/IEC 7812-1), in fours."""
    digits = [4, *(dice.randrange(10) for _ in range(14))]
    total = sum(d if i % 2 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits))
    text = "".join(map(str, [*digits, -total % 10]))
    return " ".join(text[i : i + 4] for i in range(0, 16, 4))


def _mojibake(bed: Bed, pair: Pair) -> Sown:
    said = bed.dice.choice(["the café’s owner – a señora – agreed", "it was the baker’s – not the miller’s – naïve mistake", "a jalapeño costs £3 in the café"])
    return as_line((pair[0], f"{pair[1]} As they say: {said.encode().decode('cp1252')}.")), "mojibake", "MOJIBAKE"


def _overlap(bed: Bed, pair: Pair) -> Sown:
    return as_line(bed.held_out.pop()), "overlap", "OVERLAP"


FAULTS: dict[str, Plant] = {
    "duplicate key": _duplicate_key, "NaN": _not_a_number, "broken JSON": _broken_json, "invalid UTF-8": _invalid_utf8, "unknown role": _unknown_role,
    "empty completion": _empty_completion, "exact duplicate": _exact_duplicate, "near duplicate": _near_duplicate, "contradiction": _contradiction,
    "personal data": _personal_data, "mojibake": _mojibake, "overlap of splits": _overlap,
}  # fmt: skip


def plant(records: int, faults: int, seed: int) -> Planting:
    """`records` lines of train with `faults` of them bad, of all kinds in turn, and a fiftieth as many of held_out."""
    dice = random.Random(seed)
    train, held_out = ([made_pair(dice) for _ in range(count)] for count in (records, records // 50))
    made = Planting([as_line(p) for p in train], [as_line(p) for p in held_out])
    places = dice.sample(range(records), 2 * faults)  # a fault and the clean record it may copy
    left = list(held_out)
    for number in range(faults):
        earlier, place = sorted(places[2 * number : 2 * number + 2])
        kind = list(FAULTS)[number % len(FAULTS)]
        line, check, code = FAULTS[kind](Bed(train, left, dice, earlier), train[place])
        made.train[place] = line
        made.expected.append(("train", place + 1, check, code))
        if kind == "contradiction":
            made.expected.append(("train", earlier + 1, check, code))  # both sides of it are shown
    return made


QUIET_CHECKS = ("templates", "redundancy", "coverage")  # they speak of a whole file, and these sentences are written from a template


def main(folder: Path, records: int, faults: int) -> None:
    """Plant, examine, and write what was expected and what was found."""
    made = plant(records, faults, seed=records)
    (folder / "train.jsonl").write_bytes(b"\n".join(made.train) + b"\n")
    (folder / "held_out.jsonl").write_bytes(b"\n".join(made.held_out) + b"\n")
    files = {"train": "train.jsonl", "held_out": "held_out.jsonl"}
    spec = DataSpec.model_validate({**files, "references": "one", "checks": {name: "off" for name in QUIET_CHECKS if name in CHECKS}})
    began = time.monotonic()
    checked = examine(read_splits(spec, folder, seed=0), Scene(spec), CHECKS)
    seconds = time.monotonic() - began
    found = sorted((f.split, f.line, f.check, f.code) for f in checked.findings)
    accounts = [(a.file, a.read, len(checked.splits[a.split]), a.rejected) for a in checked.splits.accounts]
    told = {"seconds": seconds, "expected": sorted(made.expected), "found": found, "accounts": accounts}
    (folder / "found.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
