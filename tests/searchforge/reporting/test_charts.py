"""Charts are SVG that is safe to embed in a page, and the same data give the same bytes."""

from __future__ import annotations

from xml.etree import ElementTree

from searchforge.reporting.charts import training_curves

HISTORY = [
    {"epoch": epoch, "loss": 5.0 / epoch, "learning_rate": 0.002, "temperature": 0.05, "seconds": 3.0}
    for epoch in (1, 2, 3)
]


def test_svgs_are_xml_without_scripts_or_external_references() -> None:
    drawn = training_curves(HISTORY)
    assert [(title, description) for title, description, _ in drawn] == [
        (title, f"{title} by epoch") for title in ("Loss", "Learning rate", "Temperature")
    ]
    for _, _, text in drawn:
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        for element in root.iter():
            assert not element.tag.endswith(("script", "image", "foreignObject"))
            assert element.get("{http://www.w3.org/1999/xlink}href", "#").startswith("#")
        assert "epoch" in {element.text for element in root.iter()}  # as text, in the colour of the page
    assert training_curves(HISTORY) == drawn


def test_one_epoch_is_drawn_and_none_is_not() -> None:
    assert [title for title, _, _ in training_curves([{"epoch": 1, "loss": 2.0}])] == ["Loss"]
    assert training_curves([]) == []


def test_an_invalid_history_is_not_drawn() -> None:
    for history in (None, "loss", 3, [1, 2], [{"epoch": "first", "loss": "low"}], [{"loss": float("nan"), "epoch": 1}]):
        assert training_curves(history) == []
