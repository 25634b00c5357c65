"""Training curves: as TensorBoard events and a PNG in the encoder bundle, and as SVG for reports."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LOGS = "logs"
"""Folder of the bundle for `tensorboard --logdir`."""

PNG = "curves.png"

CURVES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "temperature": "Temperature",
    "heldout_r_at_10": "R@10, held-out captions",
}
"""What is drawn where an epoch has it, and its title."""

History = Sequence[Mapping[str, float]]
"""One mapping an epoch: `epoch` (from 1), the mean `loss`, and any other of CURVES at the epoch's end."""

_EVENTS = "events.out.tfevents.training"  # TensorFlow's own name holds the machine's and the process's
_INK, _LINE = "#010203", "#3b82d0"  # the first stands for the page's colour of text
_SIZE = (4.2, 2.6)  # inches


def write(folder: Path, history: History) -> None:
    """Writes LOGS and PNG into a folder."""
    _write_events(folder / LOGS, history)
    names = _names(history)
    figure = Figure(figsize=(_SIZE[0] * len(names), _SIZE[1]), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw(axes, name, history, "black")
        axes.set_title(CURVES[name])
    figure.savefig(folder / PNG, metadata={"Software": None})


def svgs(history: History) -> dict[str, str]:
    """Returns an `<svg>` element by title. Text has the colour of its surroundings; there is no script in it."""
    drawn = {}
    for name in _names(history):
        figure, file = Figure(figsize=_SIZE, layout="constrained"), io.StringIO()
        _draw(figure.subplots(), name, history, _INK)
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
            empty = {"Creator": None, "Date": None, "Format": None, "Type": None}
            figure.savefig(file, format="svg", transparent=True, metadata=empty)
        text = file.getvalue()
        drawn[CURVES[name]] = text[text.index("<svg") :].replace(_INK, "currentColor")
    return drawn


def _names(history: History) -> list[str]:
    return [name for name in CURVES if any(name in epoch for epoch in history)]


def _draw(axes: Axes, name: str, history: History, ink: str) -> None:
    points = [(epoch["epoch"], epoch[name]) for epoch in history if name in epoch]
    axes.plot([x for x, _ in points], [y for _, y in points], color=_LINE, marker=".", linewidth=1.5)
    axes.set_xlabel("epoch", color=ink)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.tick_params(colors=ink)
    axes.grid(alpha=0.2, color=ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)


def _write_events(folder: Path, history: History) -> None:
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for epoch in history:
            for name in epoch.keys() - {"epoch"}:
                tf.summary.scalar(name, epoch[name], step=int(epoch["epoch"]))
    writer.close()
    for path in folder.iterdir():
        path.rename(folder / _EVENTS)
