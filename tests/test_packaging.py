"""Packaging: Beam can ship the project to its workers."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.stager import Stager

ROOT = Path(__file__).parent.parent
PACKAGES = ("searchforge", "trainer", "beam_jobs", "indexer", "serving_check", "infra")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Returns a copy of the package's sources, so that building leaves no files in the project."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_setup_file_stages_every_module(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    staged = tmp_path / "staged"
    staged.mkdir()
    options = PipelineOptions(["--setup_file", str(checkout / "setup.py"), "--sdk_location", "container"])
    Stager.create_job_resources(options, str(staged))
    archive = next(staged.rglob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        shipped = {name.partition("/")[2] for name in tar.getnames()}
    for package in PACKAGES:
        modules = {f"{package}/{path.relative_to(ROOT / package)}" for path in (ROOT / package).rglob("*.py")}
        assert modules | {f"{package}/py.typed"} <= shipped
    for folder, count in (
        ("infra/serve/static", 3),
        ("searchforge/reporting/templates", 3),
        ("serving_check/report/templates", 10),
        ("trainer/evaluation/templates", 2),
    ):
        files = {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
        assert len(files) >= count and files <= shipped
