"""The HTML report is complete and offline, whatever the captions, file names and categories are."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from searchforge.artifacts.encoder import EncoderInfo
from tests.html_page import HOSTILE, LONG, Page
from trainer.evaluation.report import (
    EvaluationReport,
    FoundImage,
    Group,
    IntervalEstimate,
    QuantizationComparison,
    QuantizedTextEncoder,
    RejectedImage,
    RetrievalMetrics,
    WorstQuery,
    summary,
)
from trainer.evaluation.report_html import render


def _report(
    texts: list[str], training: dict[str, Any] | None = None, forms: QuantizationComparison | None = None
) -> EvaluationReport:
    """Returns a report in which each text is a caption, an image's id, a category, a reason and a setting."""
    share = IntervalEstimate(value=0.7, low=0.65, high=0.75)
    median = IntervalEstimate(value=3, low=2, high=4)
    found = RetrievalMetrics(
        queries=5000, images=1000, gallery=1000, r_at_1=share, r_at_5=share, r_at_10=share, median_rank=median
    )
    encoder = EncoderInfo(
        id="encoder",
        fingerprint="f" * 64,
        preprocessing="decode|resize(8,8,bilinear)|scale(-1,1)",
        dim=8,
        image_tower=texts[0],
        text_tower="text",
        sequence_length=32,
        files={},
        report={"settings": dict.fromkeys(texts, texts[0]), **(training or {})},
    )
    return EvaluationReport(
        id="evaluation",
        encoder=encoder,
        data={"captions": texts, "images": "images"},
        text_to_image=found,
        image_to_text=found,
        by_length=(Group(name="1 to 5 words", text_to_image=found),),
        by_category=tuple(Group(name=text, text_to_image=found) for text in texts),
        worst=tuple(
            WorstQuery(
                caption=text,
                own=FoundImage(id=text, score=0.1),
                rank=900,
                hits=(FoundImage(id="other", score=0.9), FoundImage(id=text, score=0.1)),
            )
            for text in texts
        ),
        rejected=tuple(RejectedImage(id=text, reason="unreadable", detail=text, captions=5) for text in texts),
        forms=forms,
        versions={"python": "3"},
        seconds={"total": 1.0},
    )


def _failed(text: str) -> QuantizationComparison:
    """Returns a comparison in which the text is the name of a quantization and its error."""
    forms = {text: QuantizedTextEncoder(error=text)}
    return QuantizationComparison(queries=1, gallery=1, tensorflow=1.0, chosen="int8", forms=forms)


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_stays_text(text: str) -> None:
    page = Page(render(_report([text], forms=_failed(text)), {}))
    page.assert_harmless()
    assert page.text.count(text) >= 6
    assert page.shape == Page(render(_report(["a"], forms=_failed("a")), {})).shape


def test_nothing_is_loaded_and_no_script_may_run(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (300, 200), "red").save(path)
    history = [{"epoch": 1, "loss": 2.0, "learning_rate": 0.1}, {"epoch": 2, "loss": 1.0, "learning_rate": 0.1}]
    page = Page(render(_report(["a"], {"history": history}), {"a": path.read_bytes}))
    page.assert_harmless()
    (picture,) = page.style.split("url(data:image/jpeg;base64,")[1:]  # once, however often it is shown
    data = base64.b64decode(picture.partition(")")[0])
    with Image.open(io.BytesIO(data)) as thumbnail:
        assert max(thumbnail.size) <= 200 and len(data) < 20_000
    assert [tag for tag, _ in page.tags].count("svg") == 2


def test_a_picture_that_cannot_be_read_is_an_empty_frame(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"not an image")
    page = Page(render(_report(["a"]), {"a": (tmp_path / "a").read_bytes}))
    frames = [found.get("aria-label") for _, found in page.tags if "empty" in str(found.get("class")).split()]
    assert frames == ["a", "other", "a"]


def test_a_long_text_is_folded_but_complete() -> None:
    page = Page(render(_report([LONG]), {}))
    assert LONG in page.text and "(10,000 characters)" in page.text
    assert ("details", {}) in page.tags


def test_characters_that_html_cannot_represent_are_replaced() -> None:
    page = render(_report(["a\x00b\x1b[31m"]), {})
    assert "\x00" not in page and "\x1b" not in page and "a\ufffdb\ufffd[31m" in page


def test_metrics_are_shown_with_their_gallery() -> None:
    compared = {
        "int8": QuantizedTextEncoder(bytes=23_000_000, ms=3.94, r_at_10=0.7, mean_cosine=1.0),
        "float32": QuantizedTextEncoder(error="x"),
    }
    forms = QuantizationComparison(queries=100, gallery=1000, tensorflow=0.71, chosen="int8", forms=compared)
    report = _report(["a"], forms=forms)
    text = Page(render(report, {})).text
    assert "70.0 of 100 captions find their own image among the first 10 of 1,000 images" in text
    assert "(65.0 to 75.0)" in text and "gallery of 1,000" in text
    assert "int8 (chosen)" in text and "23.0" in text and "3.9" in text
    assert "int8 (chosen)            23.0 MB    3.9 ms  R@10 70.0" in summary(report)
    assert "rank 900" in text and "unreadable" in text


def test_categories_that_are_not_shown_are_counted() -> None:
    text = Page(render(_report([f"kind {i}" for i in range(130)]), {})).text
    assert "and 30 more categories, see report.json" in text


def test_the_report_survives_json_and_terminals() -> None:
    report = _report([*HOSTILE, LONG, "\x1b[31mred"], forms=_failed("\x1b[31mred"))
    assert EvaluationReport.model_validate(json.loads(json.dumps(report.model_dump(mode="json")))) == report
    assert "\x1b" not in summary(report)


def test_a_report_without_a_comparison_of_quantizations_is_read_and_shown() -> None:
    report = _report(["a"])
    old = report.model_dump(mode="json")
    del old["forms"]
    assert EvaluationReport.model_validate(old) == report
    assert "Quantizations of the text encoder" not in Page(render(report, {})).text
    assert "quantizations of the text encoder" not in summary(report)
