"""Draws the charts of HTML reports as inline SVG, and the curves of a training run.

The same data give the same bytes. Lines and labels take the colour of the page's text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LINE = "#3b82d0"
"""Colour of a chart with one series; legible on light and dark backgrounds."""

TEXT_COLOUR = "#010203"
"""Placeholder that `svg` replaces by the colour of the page's text."""

SIZE = (4.2, 2.6)
"""Width and height in inches, small enough for labels to stay legible at the width of a phone."""

CURVES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "temperature": "Temperature",
    "heldout_r_at_10": "R@10, held-out captions",
}
"""Titles of the curves of a training run, by key of an epoch's record."""

History = Sequence[Mapping[str, Any]]
"""One mapping for each epoch: `epoch` (from 1), the mean `loss`, and any other key of CURVES."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # labels come from data: a dollar sign starts no formula
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def svg(
    draw: Callable[[Axes], None], name: str, size: tuple[float, float] = SIZE, keep_aspect_ratio: bool = True
) -> Markup:
    """Returns an `<svg>` element without scripts or external references.

    Args:
      draw: Draws into the axes; whatever has TEXT_COLOUR gets the colour of the page's text.
      name: Name of the chart, unique within its page; ids inside the element derive from it.
      size: Width and height in inches.
      keep_aspect_ratio: Whether the chart keeps its proportions when it is scaled.
    """
    file = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every chart, and nothing refers to them
    if not keep_aspect_ratio:
        text = text.replace("<svg ", '<svg preserveAspectRatio="none" ', 1)
    return Markup(text)


def style_axes(axes: Axes, colour: str = TEXT_COLOUR) -> None:
    """Gives axes the look that all charts share: a faint grid, and spines only on the left and at the bottom."""
    axes.tick_params(colors=colour)
    axes.grid(alpha=0.2, color=colour)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colour)


def training_curves(history: Any) -> list[tuple[str, str, Markup]]:
    """Returns the title, a description and an `<svg>` element of every curve; none if `history` is not a History."""
    if not isinstance(history, Sequence) or not all(isinstance(epoch, Mapping) for epoch in history):
        return []
    return [
        (CURVES[name], f"{CURVES[name]} by epoch", svg(partial(draw_curve, name=name, history=history), name))
        for name in recorded_curves(history)
    ]


def recorded_curves(history: History) -> list[str]:
    """Returns the keys of CURVES that at least one epoch has."""
    return [name for name in CURVES if _points(history, name)]


def draw_curve(axes: Axes, name: str, history: History, colour: str = TEXT_COLOUR) -> None:
    """Draws one of CURVES by epoch."""
    points = _points(history, name)
    axes.plot([x for x, _ in points], [y for _, y in points], color=LINE, marker=".", linewidth=1.5)
    axes.set_xlabel("epoch", color=colour)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    style_axes(axes, colour)


def is_number(value: object) -> bool:
    """Returns whether a value from a JSON file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _points(history: History, name: str) -> list[tuple[float, float]]:
    return [
        (epoch["epoch"], epoch[name])
        for epoch in history
        if is_number(epoch.get("epoch")) and is_number(epoch.get(name))
    ]
