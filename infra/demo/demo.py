"""The demo: draws a captioned corpus, runs every stage on it, and searches it with five held-out captions."""

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

if TYPE_CHECKING:
    from serving_check.measurement.search import Hit

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, dict[str, int]] = {
    "train": {"ensemble_size": 1, "views": 1},
    "index": {"queries": 2_000},
}
"""Settings by section, unless the configuration sets them: drawn scenes need no more."""

QUERIES = 5
HITS = 5


@dataclass(frozen=True)
class DemoReport:
    """Result of the demo.

    Attributes:
      run: Report of the run of all stages.
      queries: Held-out captions.
      expected: Id of each caption's image.
      answers: Hits for each caption from the published searcher.
      contact_sheet: Path of a PNG with the queries and their hits.
    """

    run: api.RunReport
    queries: tuple[str, ...]
    expected: tuple[str, ...]
    answers: tuple[list[Hit], ...]
    contact_sheet: str


def run_demo(config: Config, scenes: int, seed: int) -> DemoReport:
    """Runs the demo in the configuration's workspace, a local folder.

    Raises:
      UsageError: The workspace is not a local folder, or the configuration names a corpus.
    """
    if "://" in config.workspace:
        raise UsageError(f"the demo needs a local workspace, got {config.workspace}; set --workspace to a folder")
    if config.data.captions or config.data.images:
        raise UsageError("the demo draws its own corpus; use `searchforge run` for yours")
    logger.info(
        f"demo: draw {scenes} captioned scenes, train on a local Ray cluster with {config.train.workers} workers, "
        f"embed with Beam, index, check and publish into {config.workspace}; training takes longest and estimates its "
        "time after a short measurement"
    )
    corpus = Path(config.workspace) / "corpus"
    captions = write_scenes(corpus, scenes, seed)
    data = config.data.model_copy(update={"captions": (str(captions),), "images": str(corpus / "images")})
    config = config.model_copy(update={"data": data})
    for name, defaults in DEFAULTS.items():
        section = getattr(config, name)
        settings = {key: value for key, value in defaults.items() if key not in section.model_fields_set}
        config = config.model_copy(update={name: section.model_copy(update=settings)})
    run = api.run(config)
    heldout = split_heldout(load_captions(config), config).heldout
    chosen = heldout[:: max(1, len(heldout) // QUERIES)][:QUERIES]
    queries = tuple(image.captions[0] for image in chosen)
    expected = tuple(image.id for image in chosen)
    results = tuple(api.search_many(config, queries, HITS))
    sheet = Path(config.workspace) / "contact-sheet.png"
    api.write_contact_sheet(config, queries, results, expected=expected, path=sheet)
    return DemoReport(run, queries, expected, results, str(sheet))
