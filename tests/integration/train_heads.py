"""Trains heads on random features.

python -m tests.integration.train_heads RAY_ADDRESS WORKSPACE RUN IMAGES RESULT.npz
"""

from __future__ import annotations

import sys

import numpy as np

from searchforge.config import TrainConfig
from tests.trainer.fit.test_loop import random_set
from trainer.fit.checkpoints import CheckpointStore
from trainer.fit.head_training import HeadTask
from trainer.fit.loop import fit
from trainer.ray_cluster import Allocation, ray_cluster

EPOCHS = 10


def main(address: str, workspace: str, name: str, images: str, result: str) -> None:
    config = TrainConfig(epochs=EPOCHS, batch_size=8, dim=16, ensemble_size=1, workers=2, ray_address=address)
    task = HeadTask(config, random_set(int(images)))
    with ray_cluster(config):
        trained = fit(task, CheckpointStore(workspace), name, Allocation(workers=2))
    history = np.array([list(epoch.values()) for epoch in trained.history])
    np.savez(result, history=history, **trained.weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
