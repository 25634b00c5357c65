"""Beam job that encodes shards on any runner, one element per shard, for corpora too large for one machine."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from indexer.corpus.shard_file import StoredShard
from indexer.encoding.encoded_shards import QuantizerLike, encode_shard_bytes, encoded_shard_name
from searchforge.artifacts.manifest import Manifest, ShardInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.beam_runner import interruptible, runner_option
from searchforge.errors import JobError, SearchforgeError, UsageError
from searchforge.proxy import bypass_proxy


class EncodeShard(beam.DoFn):
    """Encodes a shard unless its encoded form exists.

    Args:
      root: Root of the workspace, which workers must be able to reach.
      folder: Folder in the workspace for encoded shards.
    """

    def __init__(self, root: str, folder: str, quantizer: QuantizerLike) -> None:
        self._root, self._folder, self._quantizer = root, folder, quantizer

    def setup(self) -> None:
        self._storage = Workspace(self._root).storage

    def process(self, shard: ShardInfo) -> None:
        target = f"{self._folder}/{encoded_shard_name(shard)}"
        if self._storage.exists(target):
            return
        file = StoredShard(self._storage, f"embeddings/{shard.run}/{shard.name}", shard.sha256)
        self._storage.write(target, encode_shard_bytes(file.read_bytes(), self._quantizer, str(file)))


def encode_with_beam(
    workspace: Workspace,
    manifest: Manifest,
    quantizer: QuantizerLike,
    folder: str,
    runner: str = "DirectRunner",
    beam_options: Sequence[str] = (),
) -> None:
    """Encodes every shard of an embedding run like `encode_shards`.

    The result is byte-identical, given the same CPU instruction set and library versions.

    Args:
      quantizer: Sent to the workers with the job.
      folder: Folder in the workspace for the encoded shards of this quantizer.
      runner: Any Beam runner; DirectRunner runs in this process.
      beam_options: Passed to the runner unchanged.

    Raises:
      UsageError: Beam does not accept the options.
      JobError: The job failed; shards that are already encoded are kept.
    """
    shards = [shard.model_copy(update={"run": shard.run or manifest.id}) for shard in manifest.shards]
    arguments = [runner_option(runner), *beam_options]
    bypass_proxy()
    try:
        options = PipelineOptions(arguments)
    except SystemExit:  # from its argument parser, which has printed the reason
        raise UsageError(f"index.beam_options {list(beam_options)} are not valid Beam options; correct them") from None
    try:
        with interruptible(), beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(shards)
                | "Spread" >> beam.Reshuffle()
                | "Encode" >> beam.ParDo(EncodeShard(workspace.root, folder, quantizer))
            )
    except SearchforgeError:
        raise
    except Exception as error:  # every runner has its own exception types
        raise JobError(
            f"the Beam job failed: {error}\nEncoded shards are kept in {workspace.root}/{folder}; run the command again"
        ) from error
