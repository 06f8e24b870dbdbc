"""BERTScore with an encoder from a local folder: how near an answer's tokens are to the reference's, in context.

It refuses a folder without config, tokenizer or safetensors, and anything that would run code or fetch. Static embeddings are no encoder:
what they would give is not this metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.errors import refuse
from tuner.evaluate.metric_types import Answer, Sums

if TYPE_CHECKING:
    import torch

    Tokens = tuple[torch.Tensor, torch.Tensor]  # unit vectors (T, d); weights (T,), 0 on special tokens

BATCH = 32
PRECISION, RECALL, F1 = 0, 1, 2
_NO_LIMIT = 1_000_000  # tokenizers that know no limit say 10^30


class BertScorer:
    """An encoder, opened when the first answer is scored. Pairs already scored are remembered: precision, recall and F1 share them."""

    def __init__(self, folder: Path, layer: int | None, where: str, field: str) -> None:
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            refuse(where, field, f"{folder.name}: no config.json, or no .safetensors", "a local folder with an encoder in the Transformers layout",
                   "save one there with save_pretrained, tokenizer included")  # fmt: skip
        self.folder, self.layer, self.where, self.field = folder, layer, where, field
        self.known: dict[tuple[str, str], tuple[float, float, float]] = {}

    def parts(self, which: int, answers: Sequence[Answer]) -> Sums:
        """(n, 2): precision, recall or F1 of each answer, best over references, and 1."""
        pairs = [[(_whole(a.text or ""), _whole(r)) for r in a.references] for a in answers]
        self._score([p for p in dict.fromkeys(p for of in pairs for p in of) if p not in self.known])
        best = [max(self.known[p][which] for p in of) for of in pairs]
        return np.array([[b, 1.0] for b in best], dtype=np.float64).reshape(-1, 2)

    def signature(self) -> str:
        """Which model and layer, so that another's figure can be compared."""
        from tuner.fingerprint import digest_file

        digests = [digest_file(f).removeprefix("sha256:")[:12] for f in sorted(self.folder.glob("*.safetensors"))]
        return f"{self.folder.name} ({', '.join(digests)}) layer {self._layer} of {self._layers}, no idf, no baseline rescaling"

    def _score(self, pairs: list[tuple[str, str]]) -> None:
        if not pairs:
            return
        tokens = self._encoded(sorted({text for pair in pairs for text in pair}))
        for said, wanted in pairs:
            self.known[said, wanted] = greedy_match(tokens[said], tokens[wanted])

    def _encoded(self, texts: list[str]) -> dict[str, Tokens]:
        """Every text's tokens. One longer than the encoder takes is read in consecutive windows: no token is cut."""
        import torch

        found: dict[str, list[Tokens]] = {text: [] for text in texts}
        by_length = sorted(texts, key=len)
        for start in range(0, len(by_length), BATCH):
            batch = by_length[start : start + BATCH]
            for index, vectors, weights in self._windows(batch):
                found[batch[index]].append((vectors, weights))
        return {text: (torch.cat([v for v, _ in parts]), torch.cat([w for _, w in parts])) for text, parts in found.items()}

    def _windows(self, texts: list[str]) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        import torch

        tokenizer, model = self._model
        windows = {"truncation": True, "max_length": self._longest, "return_overflowing_tokens": True}
        rows = tokenizer(texts, padding=True, return_special_tokens_mask=True, return_tensors="pt", **windows)
        of_text, special = rows.pop("overflow_to_sample_mapping").tolist(), rows.pop("special_tokens_mask").bool()
        for start in range(0, len(of_text), BATCH):
            part = {name: value[start : start + BATCH].to(model.device) for name, value in rows.items()}
            with torch.inference_mode():
                hidden = model(**part, output_hidden_states=True).hidden_states[self._layer].float().cpu()
            for row, vectors in enumerate(hidden):
                here = part["attention_mask"][row].bool().cpu()
                weights = (~special[start + row][here]).float()
                yield of_text[start + row], torch.nn.functional.normalize(vectors[here], dim=-1), weights

    @property
    def _layers(self) -> int:
        return int(self._config.num_hidden_layers)

    @property
    def _layer(self) -> int:
        if self.layer is not None and self.layer > self._layers:
            refuse(self.where, "evaluate.options.bertscore_layer", self.layer, f"1 to {self._layers}, the layers of {self.folder.name}", "take a lower layer")
        return self.layer or max(1, round(0.75 * self._layers))

    @property
    def _longest(self) -> int:
        limit = self._model[0].model_max_length
        positions = int(getattr(self._config, "max_position_embeddings", 512))
        return min(int(limit), positions) if limit < _NO_LIMIT else positions - 2  # RoBERTa's positions start at 2

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        try:
            found = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            refuse(
                self.where, self.field, f"{self.folder.name}: {type(error).__name__}", "an encoder that transformers knows without further code", "take another"
            )
        if found.is_encoder_decoder:
            refuse(self.where, self.field, f"{self.folder.name}: encoder and decoder", "an encoder such as BERT, RoBERTa or MiniLM", "take an encoder alone")
        return found

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        from tuner.base import pick_device, quiet_libraries

        quiet_libraries()
        options = {"local_files_only": True, "trust_remote_code": False}
        model = AutoModel.from_pretrained(self.folder, config=self._config, use_safetensors=True, **options)
        return AutoTokenizer.from_pretrained(self.folder, use_fast=True, **options), model.float().eval().to(pick_device())


def _whole(text: str) -> str:
    """Half a surrogate pair is no character, and tokenizers take none."""
    return text.encode("utf-8", "replace").decode()


def greedy_match(said: Tokens, wanted: Tokens) -> tuple[float, float, float]:
    """Precision, recall and F1: each token of one side with its most similar of the other (Zhang et al. 2020, arXiv 1904.09675, eq. 1 and §3).

    Special tokens can be matched but are not averaged over, as in bert_score@0.3.13 utils.py:greedy_cos_idf. A side without tokens gives 0.
    """
    similar = said[0] @ wanted[0].T
    if not said[1].any() or not wanted[1].any():
        return 0.0, 0.0, 0.0
    precision = float((similar.max(dim=1).values * said[1]).sum() / said[1].sum())
    recall = float((similar.max(dim=0).values * wanted[1]).sum() / wanted[1].sum())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0
