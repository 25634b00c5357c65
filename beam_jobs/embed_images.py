"""Embeds an image corpus: `python -m beam_jobs.embed_images`, or `embed_images()` from Python.

Options it does not know are passed to Beam, for example `--runner=FlinkRunner --flink_master=localhost:8081`.
"""

from __future__ import annotations

from beam_jobs.cli import embed_command
from searchforge.artifacts.manifest import Manifest
from searchforge.config import Config


def embed_images(config: Config, encoder: str) -> Manifest:
    """Embeds the images of the corpus; see `beam_jobs.embed.embed`."""
    from beam_jobs.embed import embed  # lazy, so that the command can silence the messages of importing Beam

    return embed(config, encoder, "images")


main = embed_command("images", "Embeds an image corpus into sharded TFRecords. Other options are passed to Beam.")

if __name__ == "__main__":
    main()
