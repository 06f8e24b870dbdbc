"""BERTScore over a real, tiny, random encoder against a naive loop of the paper's equations."""

from __future__ import annotations

import random
import string
from pathlib import Path

import numpy as np
import pytest

from tuner.errors import Refusal
from tuner.evaluate.metrics import Answer, catalogue
from tuner.evaluate.spec import MetricOptions

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "away", "from", "house", "blue", "sky", "is", "very", "big", "small", "and", ".", ",", "!"]
NAMES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")


def tiny_encoder(folder: Path) -> Path:
    """A four-layer BERT, 32 wide, 64 positions, with words and letters as its vocabulary."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)])
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)})
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny").parent


def found(folder: Path, answers: list[Answer], layer: int | None = None) -> dict[str, list[float]]:
    metrics = catalogue(MetricOptions(bertscore_model="tiny", bertscore_layer=layer), folder, NAMES)
    return {name: metrics[name].parts(answers)[:, 0].tolist() for name in NAMES}


def naive(folder: Path, said: str, wanted: str, layer: int) -> tuple[float, float, float]:
    """Zhang et al. 2020, §3, one pair at a time: every token with every token. As bert_score has it, [CLS] and [SEP] may be matched but are not averaged."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder / "tiny"), AutoModel.from_pretrained(folder / "tiny").eval()

    def vectors(text: str) -> list[np.ndarray]:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0].numpy()
        return [v / np.linalg.norm(v) for v in hidden]

    x, y = vectors(wanted), vectors(said)
    recall = sum(max(float(a @ b) for b in y) for a in x[1:-1]) / (len(x) - 2)
    precision = sum(max(float(a @ b) for a in x) for b in y[1:-1]) / (len(y) - 2)
    return precision, recall, 2 * precision * recall / (precision + recall)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 15)))


@pytest.mark.parametrize(("layer", "used"), [(None, 3), (2, 2)])
def test_bertscore_equals_a_naive_loop_over_tokens(folder: Path, layer: int | None, used: int) -> None:
    rng = random.Random(1)
    pairs = [(sentence(rng), sentence(rng)) for _ in range(12)]
    ours = found(folder, [Answer((wanted,), said) for said, wanted in pairs], layer)
    for i, (said, wanted) in enumerate(pairs):
        assert [ours[name][i] for name in NAMES] == pytest.approx(naive(folder, said, wanted, used), abs=1e-5)


def test_the_best_reference_counts_and_an_empty_answer_is_0(folder: Path) -> None:
    ours = found(folder, [Answer(("the blue sky", "a dog ran"), "a dog ran"), Answer(("a dog",), ""), Answer(("a dog",), None)])
    assert ours["bertscore_f1"] == pytest.approx([1, 0, 0], abs=1e-6)


def test_a_text_longer_than_the_encoder_takes_is_read_to_its_end(folder: Path) -> None:
    """200 words through 64 positions: two texts that differ in their last words only do not score 1."""
    long = " ".join(["the cat sat on"] * 50)
    ours = found(folder, [Answer((f"{long} a mat",), f"{long} a mat"), Answer((f"{long} a mat",), f"{long} big sky !")])
    assert ours["bertscore_recall"][0] == pytest.approx(1, abs=1e-5) and ours["bertscore_recall"][1] < 1 - 1e-4


def test_the_signature_names_model_digest_and_layer(folder: Path) -> None:
    metric = catalogue(MetricOptions(bertscore_model="tiny"), folder, ["bertscore_f1"])["bertscore_f1"]
    what = metric.facts().what
    assert "tiny (" in what and "layer 3 of 4" in what and str(folder) not in what


@pytest.mark.parametrize(("layer", "model", "field"), [(5, "tiny", "bertscore_layer"), (None, "none", "bertscore_model")])
def test_a_layer_or_folder_that_is_not_there_is_refused(folder: Path, layer: int | None, model: str, field: str) -> None:
    with pytest.raises(Refusal) as refusal:
        options = MetricOptions(bertscore_model=model, bertscore_layer=layer)
        catalogue(options, folder, ["bertscore_f1"])["bertscore_f1"].parts([Answer(("a",), "a")])
    assert refusal.value.problems[0].field == f"evaluate.options.{field}"
