"""Embeds a text corpus: `python -m beam_jobs.embed_texts`, or `embed_texts()` from Python.

A corpus is a file of lines, CSV or JSON Lines, or a folder or glob of them. Options that are not its own go to Beam.
"""

from __future__ import annotations

from beam_jobs.cli import embed_command
from searchforge.artifacts.manifest import Manifest
from searchforge.config import Config


def embed_texts(config: Config, encoder: str) -> Manifest:
    """Embeds the texts of the corpus; see `beam_jobs.embed.embed`."""
    from beam_jobs.embed import embed  # imports Beam, whose own notices the command keeps from its user

    return embed(config, encoder, "texts")


main = embed_command("texts", "Embeds a text corpus into sharded TFRecords. Further options go to Beam as they are.")

if __name__ == "__main__":
    main()
