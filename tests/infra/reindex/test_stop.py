"""A run that receives SIGTERM or SIGINT records that it was stopped and releases its lease."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from infra.cli.main import main
from infra.reindex import journal, lease
from searchforge.config import TrainConfig
from searchforge.native_output import import_quietly
from tests.infra.forked import fork
from tests.infra.reindex.scenario import make_scenario
from trainer.ray_cluster import ray_cluster


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    scenario = make_scenario(tmp_path)
    config, output = tmp_path / "config.yaml", tmp_path / "output"
    config.write_text(scenario.config.model_dump_json())
    import_quietly("apache_beam")
    process = fork(lambda: main(["reindex", "--config", str(config)]), output)
    while "\nindex\n" not in (output.read_text() if output.exists() else ""):
        assert not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT), output.read_text()
        time.sleep(0.002)
    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    said = output.read_text()
    assert os.waitstatus_to_exitcode(status) == 1, said
    assert f"stopped by {number.name} at index" in said.splitlines()[-1] and "Traceback" not in said
    (run,) = journal.runs(scenario.workspace.storage)
    assert (run.state, run.error, run.failed_stage) == ("failed", f"stopped by {number.name}", "index")
    assert run.failures == 0  # a stopped run does not count as failed
    held = lease.read(scenario.workspace.storage)
    assert held and held.state == "free"


def test_ray_leaves_signal_handlers_alone() -> None:
    def stop(*_: object) -> None: ...

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with ray_cluster(TrainConfig()):
            assert signal.getsignal(signal.SIGTERM) is stop and signal.getsignal(signal.SIGINT) is stop
        assert signal.getsignal(signal.SIGTERM) is stop and signal.getsignal(signal.SIGINT) is stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
