"""The recipe's `artifact:` section: where versions are kept."""

from __future__ import annotations

from pydantic import Field

from tuner.section import Section


class ArtifactSpec(Section):
    """The store of versions."""

    store: str = Field(
        "adapters", description="folder of named, numbered versions, relative to the working folder; or the URL of one: s3://, gs://, hf://, file://"
    )
    keep_text: bool = Field(False, description="keep every record's messages in records.parquet; otherwise its hashes and place alone, never its text")
