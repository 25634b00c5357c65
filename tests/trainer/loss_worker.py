"""One worker of test_loss: loss and gradients of its part of a batch, into an .npz file a preset."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

IMAGES, CAPTIONS, IMAGE_WIDTH, TEXT_WIDTH = 12, 2, 20, 30


def run(folder: Path, rank: int, workers: int) -> None:
    """Runs under TF_CONFIG."""
    import tensorflow as tf

    from searchforge.config import TrainConfig
    from trainer.dual_encoder import DualEncoder, gradient_step

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    for preset in ("best", "recipe2022"):
        captions = 1 if preset == "recipe2022" else CAPTIONS
        model = DualEncoder(TrainConfig(preset=preset, dim=8, seed=5), IMAGE_WIDTH, TEXT_WIDTH)
        random = np.random.default_rng(1)
        images = random.normal(size=(IMAGES, IMAGE_WIDTH)).astype(np.float32)
        texts = random.normal(size=(IMAGES, captions, TEXT_WIDTH)).astype(np.float32)
        ids = random.integers(0, 15, (IMAGES, captions)).astype(np.int32)  # some captions read the same
        share = IMAGES // workers
        part = slice(rank * share, (rank + 1) * share)
        step = tf.function(gradient_step(strategy, model))
        loss, gradients = step(images[part], texts[part], ids[part], None)
        names = [variable.name for variable in model.trainable_variables]
        arrays = {f"{i} {name}": g.numpy() for i, (name, g) in enumerate(zip(names, gradients, strict=True))}
        np.savez(folder / f"{preset}.npz", loss=loss.numpy(), **arrays)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
