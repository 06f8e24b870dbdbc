"""A version's folder without tuner: plain transformers and PEFT, the prompt and the stop tokens as it was trained.

    python recipes/inference/plain_peft.py adapters/banking-intents/3 path/to/base "I lost my card"

What tuner checks first (digests, weights, the right base) is not checked here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def answer(folder: Path, base: Path, question: str, max_new_tokens: int = 256) -> str:
    """The greedy answer."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    system = manifest["template"]["spec"].get("system")  # the recipe's system prompt is not part of the chat template
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]

    tokenizer = AutoTokenizer.from_pretrained(folder)  # the version's own: with its chat template and its new tokens
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))  # before the adapter, which brings the new rows
    model = PeftModel.from_pretrained(model, folder.resolve()).eval()

    stops = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        listed = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
        stops |= set(listed if isinstance(listed, list) else [listed])
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(stops), pad_token_id=min(stops))
    return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    sys.stdout.write(answer(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]) + "\n")
