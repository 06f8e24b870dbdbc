"""The model card of a version: README.md, filled from the run and nothing else."""

from __future__ import annotations

import json
from typing import Any


def card(facts: dict[str, Any]) -> str:
    """Markdown with the front matter the Hugging Face Hub reads. `facts` is the manifest without its file list."""
    base, data, training = facts["base"], facts["data"], facts["training"]
    front = {"library_name": "peft", "base_model": base["name"], "tags": ["lora", "tuner"], "pipeline_tag": "text-generation"}
    splits = "\n".join(f"| {name} | {s['records']:,} | `{s['digest'][7:19]}` |" for name, s in data["splits"].items())
    dropped = sum(data["dropped"].values())
    code = f"tuner {facts['versions']['tuner']}, commit {facts['code']['commit'] or 'unknown'}" + (
        ", with uncommitted changes" if facts["code"]["dirty"] else ""
    )
    system = facts["template"]["spec"]["system"]
    prompt = f", and this system prompt: {json.dumps(system, ensure_ascii=False)}" if system else ""
    findings = f"{data['findings']['warning']:,} warnings, {data['findings']['note']:,} notes (findings.json)"
    return f"""---
{json.dumps(front, indent=2)}
---

# {facts["name"]}, version {facts["version"]}

A {facts["method"]["kind"]} adapter{_settings(facts["method"])} for {base["name"]}{_parent(facts)},
trained {training["steps"]} steps on {data["splits"]["train"]["records"]:,} records; training loss {training["first_loss"]:.3f} to {training["last_loss"]:.3f}.

| | |
|---|---|
| base | {base["name"]}, {base["origin"]}, weights `{base["weight_digest"][7:19]}` |
| recipe | recipe.yaml (as written), resolved.yaml (every default filled in), digest `{facts["recipe_digest"][7:19]}` |
| code | {code} |
| seed | {facts["seed"]} |

## Data

| split | records | digest |
|---|---|---|
{splits}

{dropped:,} records dropped by checks; {findings}. records.parquet names every record used by file, line and hash{_texts(data)}.

## Evaluation

Results are added under `evaluations/`, one folder an evaluation, each with its report. No folder there means: not evaluated.

## Use

```python
import tuner
adapter = tuner.load_adapter("{facts["name"]}@{facts["version"]}")   # checks every digest first
print(adapter.answer("..."))
```

Plain PEFT loads the same folder: `peft.PeftModel.from_pretrained(base, folder)`. Use this folder's tokenizer and chat template{prompt}.
"""


def _settings(method: dict[str, Any]) -> str:
    """Rank, alpha and what else the kind has of its own."""
    said = [f"{name} {method[name]:g}" for name in ("rank", "alpha", "block_size", "virtual_tokens") if method.get(name) is not None]
    return f" ({', '.join(said)})" if said else ""


def _texts(data: dict[str, Any]) -> str:
    """What else the table of records holds, where the recipe asked for it."""
    return ", and holds the text of each (artifact.keep_text): who may read this folder may read them" if data.get("keep_text") else ""


def _parent(facts: dict[str, Any]) -> str:
    parent = (facts.get("lineage") or {}).get("parent")
    return f", continued from {parent['name']}@{parent['version']}" if parent else ""
