"""A base's tokenizer folder for each named format: SmolLM2's real tokenizer, with a family's control tokens added where it lacks them.

Run as `python -m tests.template.format_bases` it writes the golden files anew; read the difference before keeping it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tuner.data.record import Message
from tuner.template.formats import FORMATS
from tuner.template.render import ChatTemplate, read_template
from tuner.template.spec import TemplateSpec

GOLDEN = Path(__file__).parent / "golden"

# What a family's own tokenizer has and SmolLM2's lacks: control tokens in the order they are added, then bos_token and eos_token.
# Phi-3's control tokens swallow the white space after them (rstrip), as in microsoft/Phi-3-mini-4k-instruct tokenizer.json.
FAMILIES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "gemma": (("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>"),
    "llama-3": (("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|begin_of_text|>", "<|end_of_text|>"),
    "phi": (("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<s>", "</s>"),
    "mistral-instruct": (("<s>", "</s>"), "<s>", "</s>"),
    "vicuna": (("<s>", "</s>"), "<s>", "</s>"),
    "zephyr": (("<s>", "</s>"), "<s>", "</s>"),
}
BEGINS_WITH_BOS = ("vicuna", "llama-3", "mistral-instruct", "gemma")


def format_base(name: str, smollm2: Path, folder: Path) -> Path:
    """The folder of a base that the format called `name` fits."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    config = json.loads((smollm2 / "tokenizer_config.json").read_text(encoding="utf-8"))
    controls, bos, eos = FAMILIES.get(name, ((), "<|im_start|>", "<|im_end|>"))
    tokenizer.add_special_tokens([AddedToken(t, rstrip=name == "phi" and t.startswith("<|"), normalized=False, special=True) for t in controls])
    if name in BEGINS_WITH_BOS:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": bos, "eos_token": eos, "pad_token": eos}), encoding="utf-8")
    return folder


USER, ANSWER = Message("user", "Name the colour of  grass.\n\nOne word."), Message("assistant", "Green")
SYSTEM = Message("system", "Be brief.")
CALL = json.dumps([{"id": "call00001", "type": "function", "function": {"name": "find_parcel", "arguments": {"id": 7, "where": "Köln"}}}])
CASES: dict[str, tuple[tuple[Message, ...], bool]] = {
    "prompt": ((USER,), True),
    "single turn": ((USER, ANSWER), False),
    "system": ((SYSTEM, USER, ANSWER), False),
    "multi-turn": ((USER, ANSWER, Message("user", "And snow?"), Message("assistant", "White")), False),
    "tools": (
        (Message("user", "Where is 7?"), Message("assistant", "", CALL), Message("tool", '{"at": "depot"}', None, "call00001"),
         Message("assistant", "At the depot.")), False,
    ),
}  # fmt: skip


def supported(name: str, case: str) -> bool:
    """What the header of a format promises of a case."""
    fmt = FORMATS[name]
    return {"system": fmt.system != "no", "multi-turn": fmt.multi_turn, "tools": fmt.tools}.get(case, True)


def open_format(name: str, folder: Path) -> tuple[ChatTemplate, Tokenizer]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return read_template(folder, TemplateSpec(format=name), tokenizer), tokenizer


def golden(name: str, folder: Path) -> dict[str, Any]:
    """Text and ids of every case the format supports, and what stands before and after the words of an answer, as the golden file holds them."""
    template, tokenizer = open_format(name, folder)
    family = "".join(f" {t}" for t in FAMILIES.get(name, ((), "", ""))[0])
    written: dict[str, Any] = {"tokenizer": "smollm2-135m-instruct" + family, "cases": {}, "answer": []}
    for case, (messages, more) in CASES.items():
        if supported(name, case):
            text = template.render(messages, more)
            written["cases"][case] = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
    said = written["cases"]["single turn"]["text"].removeprefix(written["cases"]["prompt"]["text"])
    stop = template.special_tokens["eos_token"] if FORMATS[name].stop == "eos_token" else FORMATS[name].stop
    written["answer"] = [said[: said.index(ANSWER.content)], stop]
    return written


def main() -> None:
    import tempfile

    from tests.conftest import ROOT
    from tuner.base import BaseSpec, resolve_base

    smollm2 = resolve_base(BaseSpec(model="smollm2-135m-instruct"), ROOT).folder
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in FORMATS:
            data = golden(name, format_base(name, smollm2, Path(scratch) / name))
            cases = ",\n".join(f"    {json.dumps(c)}: {json.dumps(v, ensure_ascii=False)}" for c, v in data["cases"].items())
            text = f'{{\n  "tokenizer": {json.dumps(data["tokenizer"])},\n  "answer": {json.dumps(data["answer"])},\n  "cases": {{\n{cases}\n  }}\n}}\n'
            (GOLDEN / f"{name}.json").write_text(text, encoding="utf-8")
            sys.stdout.write(f"{name}: {', '.join(data['cases'])}\n")


if __name__ == "__main__":
    main()
