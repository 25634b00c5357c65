"""The `searchforge` command line: the group of all commands.

Commands import heavy modules when they run, so that `--help` is fast.
"""

from __future__ import annotations

import click

from infra.cli import embeddings_commands, encoder_commands, operation_commands, pipeline_commands, release_commands
from searchforge import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Turn a corpus of photos into a verified on-device search model."""


main.add_command(encoder_commands.encoder)
main.add_command(embeddings_commands.embeddings)
for _module in (pipeline_commands, release_commands, operation_commands):
    for _command in vars(_module).values():
        if isinstance(_command, click.Command):
            main.add_command(_command)
