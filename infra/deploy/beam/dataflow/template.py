"""Entry point of the Dataflow flex template: plans the embedding of a corpus and stages the job.

Dataflow starts the staged job after the launcher exits. The next `searchforge embed` of the same corpus, or the next
`reindex`, commits its shards.
"""

from __future__ import annotations

import logging

import click

from searchforge.config import Config
from searchforge.console.options import config_options, reports_errors
from searchforge.errors import JobError

logger = logging.getLogger("infra.deploy.beam.dataflow.template")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--encoder", required=True, help="Id of the encoder bundle.")
@click.option("--corpus", "corpus__source", required=True, help="Folder, glob, archive or list of images.")
@click.option("--shards", "embed__shards", type=int, help="Number of output shards.")
@click.option("--reuse_from", "embed__reuse_from", help="Id of an earlier run to build on, auto or none.")
@click.option("--runner", "embed__runner", default="DataflowRunner", help="Beam runner; set by the launcher.")
@click.option("--template_location", required=True, help="Location of the staged job; set by the launcher.")
@click.argument("embed__beam_options", nargs=-1, type=click.UNPROCESSED)
@reports_errors
@config_options
def main(config: Config, as_json: bool, encoder: str, template_location: str) -> None:
    """Stages a job that embeds an image corpus. Unknown options are passed to Beam."""
    from apache_beam.io.filesystems import FileSystems

    from beam_jobs.embed_images import embed_images

    options = (*config.embed.beam_options, f"--template_location={template_location}")
    staging = config.model_copy(update={"embed": config.embed.model_copy(update={"beam_options": options})})
    try:
        embed_images(staging, encoder)
    except JobError:  # the shards are missing because the job has not run yet
        if not FileSystems.exists(template_location):
            raise
        logger.info(f"staged in {template_location}; when the job has finished, `searchforge embed` commits its shards")


if __name__ == "__main__":
    main()
