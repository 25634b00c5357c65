"""Writes training curves into the encoder bundle, as TensorBoard events and as a PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from searchforge.reporting.charts import CURVES, SIZE, History, draw_curve, recorded_curves

LOGS = "logs"
"""Folder of TensorBoard events in the bundle."""

PNG = "curves.png"

_EVENTS = "events.out.tfevents.training"  # TensorFlow's own file name would contain the host and the process id


def write(folder: Path, history: History) -> None:
    """Writes LOGS and PNG to a folder.

    Args:
      history: Metrics of each epoch; see trainer.fit.loop.TrainingResult.
    """
    _write_events(folder / LOGS, history)
    drawn = recorded_curves(history)
    figure = Figure(figsize=(SIZE[0] * len(drawn), SIZE[1]), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        draw_curve(axes, name, history, "black")
        axes.set_title(CURVES[name])
    figure.savefig(folder / PNG, metadata={"Software": None})


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
