"""Charts of the reports: inline SVG in the colour of the page's text, and the curves of a training.

The same data give the same bytes, and no text in a chart is read as a formula.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LINE = "#3b82d0"
"""Colour of a chart that shows one thing; it stands out from light and from dark paper."""

INK = "#010203"
"""Stands for the colour of the page's text."""

SIZE = (4.2, 2.6)
"""Width and height in inches: labels stay readable where a phone shows it at its own width."""

CURVES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "temperature": "Temperature",
    "heldout_r_at_10": "R@10, held-out captions",
}
"""What is drawn where an epoch of a training has it, and its title."""

History = Sequence[Mapping[str, Any]]
"""One mapping an epoch: `epoch` (from 1), the mean `loss`, and any other of CURVES at the epoch's end."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
}
_NOTHING = {"Creator": None, "Date": None, "Format": None, "Type": None}


def svg(draw: Callable[[Axes], None], name: str, size: tuple[float, float] = SIZE) -> str:
    """Returns an `<svg>` element without script or links that lead out; what is drawn in INK has the text's colour.

    Args:
      draw: draws into the axes.
      name: of the chart; what charts of a page refer to in themselves is told apart by it.
      size: in inches.
    """
    file = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata=_NOTHING)
    text = file.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])  # ids that all charts have, and nothing refers to
    return text.replace(INK, "currentColor")


def frame(axes: Axes, ink: str = INK) -> None:
    """Gives axes the plain look of all charts: a faint grid, and lines on the left and below."""
    axes.tick_params(colors=ink)
    axes.grid(alpha=0.2, color=ink)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)


def training_curves(history: Any) -> dict[str, str]:
    """Returns an `<svg>` element by title, of every curve that the training recorded; none where it is no History."""
    if not isinstance(history, Sequence) or not all(isinstance(epoch, Mapping) for epoch in history):
        return {}
    return {CURVES[name]: svg(partial(draw_curve, name=name, history=history), name) for name in names(history)}


def names(history: History) -> list[str]:
    """Returns the keys of CURVES that an epoch has."""
    return [name for name in CURVES if _points(history, name)]


def draw_curve(axes: Axes, name: str, history: History, ink: str = INK) -> None:
    """Draws one of CURVES by epoch."""
    points = _points(history, name)
    axes.plot([x for x, _ in points], [y for _, y in points], color=LINE, marker=".", linewidth=1.5)
    axes.set_xlabel("epoch", color=ink)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    frame(axes, ink)


def is_number(value: object) -> bool:
    """Whether a value out of a JSON file can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _points(history: History, name: str) -> list[tuple[float, float]]:
    return [
        (epoch["epoch"], epoch[name])
        for epoch in history
        if is_number(epoch.get("epoch")) and is_number(epoch.get(name))
    ]
