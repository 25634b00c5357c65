"""A run that is asked to end writes down that it was, frees its lease, and leaves the rest to the next one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.reindex import journal, lease
from searchforge.config import TrainConfig
from tests.infra.tiny_reindex import make_world
from trainer.cluster import ray_cluster


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_in_order(tmp_path: Path, number: signal.Signals) -> None:
    world = make_world(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(world.config.model_dump_json())
    command = [sys.executable, "-m", "infra", "reindex", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if line == "index\n":
            process.send_signal(number)
    assert process.wait() == 1, "".join(said)
    assert f"stopped by {number.name} at index" in said[-1] and "Traceback" not in "".join(said)
    (run,) = journal.runs(world.workspace.storage)
    assert (run.state, run.error, run.failed_stage) == ("failed", f"stopped by {number.name}", "index")
    assert run.failures == 0  # nothing is wrong with the corpus or the configuration
    held = lease.read(world.workspace.storage)
    assert held and held.state == "free"


def test_ray_leaves_the_handlers_of_signals_alone() -> None:
    def stop(*_: object) -> None: ...

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with ray_cluster(TrainConfig()):
            assert signal.getsignal(signal.SIGTERM) is stop and signal.getsignal(signal.SIGINT) is stop
        assert signal.getsignal(signal.SIGTERM) is stop and signal.getsignal(signal.SIGINT) is stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
