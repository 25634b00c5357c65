"""A Beam job that encodes shards, for corpora too big for one machine: one element a shard, on any runner."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from indexer.encoding.encoded_shards import Quantizer, encoded, part_name
from searchforge.artifacts.manifest import Manifest, ShardInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.beam_runner import runner_option
from searchforge.errors import JobError, SearchforgeError, UsageError
from searchforge.hashing import sha256_bytes


class EncodeShard(beam.DoFn):
    """Writes the part of a shard, unless it is there.

    Args:
      root: of the workspace, which the workers can reach.
      folder: in the workspace, for the parts.
    """

    def __init__(self, root: str, folder: str, quantizer: Quantizer) -> None:
        self._root, self._folder, self._quantizer = root, folder, quantizer

    def setup(self) -> None:
        self._storage = Workspace(self._root).storage

    def process(self, shard: ShardInfo) -> None:
        part = f"{self._folder}/{part_name(shard)}"
        if self._storage.exists(part):
            return
        name = f"embeddings/{shard.run}/{shard.name}"
        try:
            data = self._storage.read(name)
        except FileNotFoundError:
            raise JobError(f"{self._root}/{name} is missing; embed the corpus again") from None
        if (found := sha256_bytes(data)) != shard.sha256:
            raise JobError(f"{name} has SHA-256 {found}, the manifest says {shard.sha256}; embed the corpus again")
        self._storage.write(part, encoded(data, self._quantizer, name))


def encode_with_beam(
    workspace: Workspace,
    manifest: Manifest,
    quantizer: Quantizer,
    folder: str,
    runner: str = "DirectRunner",
    beam_options: Sequence[str] = (),
) -> None:
    """Writes the part of every shard of an embedding run, the same bytes that `encode_shards` writes.

    Args:
      quantizer: travels to the workers with the job.
      folder: in the workspace, of the quantizer; `workspace.storage` holds the parts afterwards.
      runner: any Beam runner; DirectRunner runs in this process.
      beam_options: passed to the runner as they are.

    Raises:
      JobError: the job failed; parts that are written are kept.
    """
    shards = [shard.model_copy(update={"run": shard.run or manifest.id}) for shard in manifest.shards]
    arguments = [runner_option(runner), *beam_options]
    try:
        options = PipelineOptions(arguments)
    except SystemExit:  # of its parser of arguments, which has said why
        raise UsageError(f"index.beam_options {list(beam_options)} are not options of Beam; mend them") from None
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(shards)
                | "Spread" >> beam.Reshuffle()
                | "Encode" >> beam.ParDo(EncodeShard(workspace.root, folder, quantizer))
            )
    except SearchforgeError:
        raise
    except Exception as error:  # every runner has its own; none of them concerns the user's shell
        raise JobError(
            f"the Beam job failed: {error}\nWritten parts are kept in {workspace.root}/{folder}; run the command again"
        ) from error
