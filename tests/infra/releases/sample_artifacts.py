"""Commits minimal encoders, searchers and checks for tests."""

from __future__ import annotations

from typing import Any

from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE, EncoderInfo
from searchforge.artifacts.workspace import Workspace
from searchforge.hashing import sha256_file

FILES = ("text_searcher.tflite", "image_searcher.tflite")


def commit_encoder(workspace: Workspace, id: str, dim: int = 4) -> None:
    """Commits an encoder bundle that every stage except embedding accepts."""
    info = EncoderInfo(
        id=id,
        fingerprint=id,
        preprocessing="decode|resize(8,8,bilinear)|scale(-1,1)",
        dim=dim,
        image_tower="none",
        text_tower="none",
        sequence_length=0,
        files={TEXT_TFLITE: "", IMAGE_TFLITE: ""},
        report={},
    )
    with workspace.create("encoders", id) as staging:
        (staging.path / "saved_model").mkdir()
        (staging.path / "saved_model" / "weights").write_text("weights")
        staging.commit(info.model_dump())


def commit_searcher(workspace: Workspace, id: str, kilobytes: int = 0, **marker: Any) -> None:
    """Commits a searcher with unique files.

    Args:
      kilobytes: Approximate size of each file.
      marker: Additional fields of build.json.
    """
    with workspace.create("searchers", id) as staging:
        for file in FILES:
            (staging.path / file).write_text(f"{id} {file}" + "." * kilobytes * 1000)
        staging.commit({"id": id, **marker})


def commit_check(
    workspace: Workspace,
    id: str,
    searcher: str,
    passed: bool = True,
    latency: float = 5.0,
    page: str | None = None,
    **report: Any,
) -> dict[str, Any]:
    """Commits a check of a searcher; returns report.json.

    Args:
      page: Content of report.html; None omits the file.
      report: Fields of report.json that replace the defaults.
    """
    folder = workspace.local("searchers", searcher)
    content = {
        "id": id,
        "passed": passed,
        "gates": [{"name": "recall_at_10", "passed": passed, "detail": "0.97 meets the minimum of 0.95"}],
        "searcher": searcher,
        "fingerprint": "f" * 64,
        "files": {
            file: {"sha256": sha256_file(folder / file), "bytes": (folder / file).stat().st_size} for file in FILES
        },
        "figures": {"images": 10, "recall_at_10": 0.97, "latency_p50_ms": latency},
        "corpus": {"rejected_by_reason": {}},
        "provenance": {"encoder": "e", "embeddings": "m", "searcher": searcher},
        **report,
    }
    with workspace.create("checks", id) as staging:
        if page is not None:
            (staging.path / "report.html").write_text(page)
        staging.commit(content)
    return content


def commit_checked(
    workspace: Workspace,
    name: str,
    passed: bool = True,
    latency: float = 5.0,
    kilobytes: int = 0,
    page: str | None = None,
) -> str:
    """Commits a searcher with unique files and a check of it; returns the check's id."""
    commit_searcher(workspace, name, kilobytes)
    return str(commit_check(workspace, f"check-{name}-{passed}", name, passed, latency, page)["id"])
