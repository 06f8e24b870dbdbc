"""records.parquet: every record a version used, by file, line, split and hash, never its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner.template.tokens import Row


def write_records(path: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    """One row a record, in the order they were read, with its token counts."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    table = [
        {
            "split": split, "file": r.record.file, "line": r.record.line, "hash": r.record.hash,
            "prompt_tokens": r.prompt_tokens, "row_tokens": len(r.input_ids), "loss_tokens": r.completion_tokens,
        }
        for split, of in rows.items()
        for r in of
    ]  # fmt: skip
    parquet.write_table(arrow.Table.from_pylist(table), path)


def records_hashes(path: Path, splits: Sequence[str]) -> frozenset[str]:
    """Content hashes of the records of these splits."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, columns=["split", "hash"])
    return frozenset(h for split, h in zip(table["split"].to_pylist(), table["hash"].to_pylist(), strict=True) if split in splits)
