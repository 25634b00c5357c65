"""Worker process of test_loss: writes the loss and gradients of each preset, and of fine-tuning, to .npz files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainer import tiny_towers

IMAGES, PAIRS, CAPTIONS, IMAGE_WIDTH, TEXT_WIDTH = 12, 2, 2, 20, 30


def run(strategy: Any, folder: Path, rank: int, workers: int, tower: str) -> None:
    """Writes this worker's results to a folder.

    Args:
      strategy: Strategy that spans all workers.
      tower: Folder of a tiny image tower and of its images.
    """
    import tensorflow as tf

    from searchforge.config import TrainConfig
    from trainer.features.batches import TrainingSet
    from trainer.fit.finetuning import FinetuningRun, FinetuningTask
    from trainer.model.dual_encoder import DualEncoder, gradient_step
    from trainer.towers import TowerSpec

    share = IMAGES // workers
    part = slice(rank * share, (rank + 1) * share)
    for preset in ("best", "recipe2022"):
        captions = 1 if preset == "recipe2022" else CAPTIONS
        model = DualEncoder(TrainConfig(preset=preset, dim=8, ensemble_size=PAIRS, seed=5), IMAGE_WIDTH, TEXT_WIDTH)
        random = np.random.default_rng(1)
        images = random.normal(size=(IMAGES, PAIRS, IMAGE_WIDTH)).astype(np.float32)
        texts = random.normal(size=(IMAGES, PAIRS, captions, TEXT_WIDTH)).astype(np.float32)
        ids = random.integers(0, 15, (IMAGES, PAIRS, captions)).astype(np.int32)  # some captions are identical
        step = tf.function(gradient_step(strategy, model))
        loss, gradients = step(images[part], texts[part], ids[part], None)
        names = [variable.name for variable in model.trainable_variables]
        arrays = {f"{i} {name}": g.numpy() for i, (name, g) in enumerate(zip(names, gradients, strict=True))}
        np.savez(folder / f"{preset}.npz", loss=loss.numpy(), **arrays)

    config = TrainConfig(dim=8, ensemble_size=PAIRS, seed=5, tune_image="full", tune_micro_batch=4)
    specs = TowerSpec("image", f"saved_model:{tower}"), TowerSpec("text", "frozen")
    zeros = np.zeros(IMAGES, np.int32)
    features = np.zeros((1, IMAGES, tiny_towers.IMAGE_WIDTH), np.float32), np.zeros((IMAGES, TEXT_WIDTH), np.float32)
    model = DualEncoder(config, tiny_towers.IMAGE_WIDTH, TEXT_WIDTH)
    paths = [f"{tower}/{index}.png" for index in range(IMAGES)]
    data = TrainingSet(*features, captions=zeros[:, np.newaxis], caption_counts=zeros)
    tuning = FinetuningRun(FinetuningTask(config, data, specs, paths, [], model.state()), strategy, steps=1)
    texts, ids = random.normal(size=(IMAGES, 1, TEXT_WIDTH)).astype(np.float32), np.arange(IMAGES, dtype=np.int32)
    loss, (heads, kernels) = tuning.gradients(np.array(paths)[part], texts[part], ids[part, np.newaxis], None)
    arrays = {f"{i}": gradient.numpy() for i, gradient in enumerate([*heads, *kernels])}
    np.savez(folder / "tower.npz", loss=loss.numpy(), **arrays)


if __name__ == "__main__":
    from tensorflow import distribute  # reads the cluster from TF_CONFIG

    run(distribute.MultiWorkerMirroredStrategy(), Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
