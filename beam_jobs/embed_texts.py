"""Embeds a text corpus: `python -m beam_jobs.embed_texts`, or `embed_texts()` from Python.

A corpus is a plain text, CSV, TSV or JSON Lines file, or a folder or glob of such files. Options it does not know are
passed to Beam.
"""

from __future__ import annotations

from beam_jobs.cli import embed_command
from searchforge.artifacts.manifest import Manifest
from searchforge.config import Config


def embed_texts(config: Config, encoder: str) -> Manifest:
    """Embeds the texts of the corpus; see `beam_jobs.embed.embed`."""
    from beam_jobs.embed import embed  # lazy, so that the command can silence the messages of importing Beam

    return embed(config, encoder, "texts")


main = embed_command("texts", "Embeds a text corpus into sharded TFRecords. Other options are passed to Beam.")

if __name__ == "__main__":
    main()
