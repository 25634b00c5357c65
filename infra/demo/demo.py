"""The demo: draws a captioned corpus, goes the whole way on it, and answers five held-out queries."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra import api
from infra.demo.scenes import write_scenes
from searchforge.captions.dataset import load_captions, split_heldout
from searchforge.config import Config
from searchforge.errors import UsageError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from serving_check.measurement.search import Hit

LIGHT = {"ensemble_size": 1, "views": 1}
"""Settings of training unless they are given: drawn scenes need no more, and are done sooner."""

QUERIES = 5
HITS = 5


@dataclass(frozen=True)
class DemoReport:
    """What the demo did.

    Attributes:
      queries: five held-out captions.
      expected: the id of each one's own image.
      answers: hits of each, from the published file.
      contact_sheet: PNG of queries and hits.
    """

    run: api.RunReport
    queries: tuple[str, ...]
    expected: tuple[str, ...]
    answers: tuple[list[Hit], ...]
    contact_sheet: str


def run_demo(config: Config, scenes: int, seed: int) -> DemoReport:
    """Runs the demo in the configuration's workspace, a local folder.

    Raises:
      UsageError: the workspace is not a local folder, or the configuration names data of its own.
    """
    if "://" in config.workspace:
        raise UsageError(f"the demo needs a local workspace, got {config.workspace}; set --workspace to a folder")
    if config.data.captions or config.data.images:
        raise UsageError("the demo makes its own corpus; use `searchforge run` for yours")
    logger.info(
        f"demo: draw {scenes} captioned scenes, train on a local Ray cluster of {config.train.workers} workers, embed "
        f"with Beam, index, check and publish into {config.workspace}. Training takes longest; it first "
        "measures this machine and then says how long it will take"
    )
    corpus = Path(config.workspace) / "corpus"
    captions = write_scenes(corpus, scenes, seed)
    data = config.data.model_copy(update={"captions": (str(captions),), "images": str(corpus / "images")})
    light = {key: value for key, value in LIGHT.items() if key not in config.train.model_fields_set}
    config = config.model_copy(update={"data": data, "train": config.train.model_copy(update=light)})
    run = api.run(config)
    heldout = split_heldout(load_captions(config), config).heldout
    chosen = heldout[:: max(1, len(heldout) // QUERIES)][:QUERIES]
    queries = tuple(image.captions[0] for image in chosen)
    expected = tuple(image.id for image in chosen)
    answers = tuple(api.search_many(config, queries, HITS))
    sheet = Path(config.workspace) / "contact-sheet.png"
    api.write_contact_sheet(config, queries, answers, expected=expected, path=sheet)
    return DemoReport(run, queries, expected, answers, str(sheet))
