"""Races publishers while readers verify the live release, on a local folder and on a Google Cloud Storage server.

    python -m tests.bench.release_races [--rounds 100] [--publishers 20] [--readers 1000] [--kills 20] [--only bucket]

In each round, all publishers read the pointer and then publish different releases: exactly one must win. In some rounds
one publisher is killed. In further, mixed rounds, a publisher, a rollback, a promotion and two prunes run concurrently.
Readers repeatedly read the pointer and its files and verify the SHA-256 of each file. They must not see a missing file
(unless releases are being deleted and the pointer has changed), other bytes than the pointer lists, or a pointer older
than their previous one. Prints counts as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from infra.releases import channels
from infra.releases.pruning import prune
from infra.releases.releases import list_releases, promote, publish, require_complete, rollback
from searchforge.artifacts.workspace import Workspace
from searchforge.console.options import quiet_libraries
from searchforge.errors import ConflictError, GateError, SearchforgeError, UsageError
from tests.infra.releases.sample_artifacts import commit_checked
from tests.integration.gcs_server import serving_gcs

READER_PROCESSES = 4
VARIANTS = 4
"""Number of releases per publisher; after as many rounds, they are already stored unless they were pruned."""

PAUSE_SECONDS = {"folder": 0.6, "bucket": 4.0}
"""Mean pause of a reader between reads; without it, the readers alone would keep two cores busy."""

_CONTEXT = multiprocessing.get_context("forkserver")
_POINTER = "releases/CURRENT.json"


def race(
    root: str, rounds: int, publishers: int, readers: int, kills: int, mixed: int, seed: int = 0
) -> dict[str, Any]:
    """Runs races on the releases in `root`, a folder or gs:// URL; returns counts.

    Args:
      rounds: Number of rounds in which publishers race.
      kills: Number of these rounds in which a publisher is killed.
      mixed: Number of mixed rounds.
    """
    rng, start = random.Random(seed), time.monotonic()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        source = Workspace(scratch)
        checks = [commit_checked(source, f"s{number}", kilobytes=2) for number in range(publishers * VARIANTS)]
        target = Workspace(root)
        publish(source, target, commit_checked(source, "first", kilobytes=2))
        promote(target, "production", "staging", channels.read(target.storage).pointer.release)
        with _team(scratch, root, publishers) as team, _reading(root, readers) as (deleting, gather):
            killed = set(rng.sample(range(rounds), min(kills, rounds)))
            for number in range(rounds):
                chosen = [checks[worker * VARIANTS + number % VARIANTS] for worker in range(publishers)]
                _race_once(target, team, chosen, rng if number in killed else None, counts)
            deleting.set()
            for _ in range(mixed):
                commands = [("publish", rng.choice(checks)), ("rollback", ""), ("promote", "")]
                team.run([*commands, ("prune", ""), ("prune", "")][: len(team.workers)], counts)
                require_complete(target, str(channels.read(target.storage).pointer.release))
                counts["mixed_rounds"] += 1
            reading = gather()
        prune(target, keep=1, min_age_days=0)
        damaged = [release.id for release in list_releases(target) if release.damaged]
    return {
        "root": root.partition("://")[0] if "://" in root else "folder",
        "rounds": rounds,
        "publishers": publishers,
        "readers": readers,
        **counts,
        **reading,
        "damaged_releases": len(damaged),
        "seconds": round(time.monotonic() - start, 1),
    }


def _race_once(
    target: Workspace, team: Team, chosen: list[str], rng: random.Random | None, counts: Counter[str]
) -> None:
    """Runs one round and counts whether exactly one publisher won and the others reported that they did not."""
    before = channels.read(target.storage).pointer
    results = team.run([("publish", check) for check in chosen], counts, victim=rng)
    after = channels.read(target.storage).pointer
    winners = [result["release"] for result in results if result and result["release"]]
    dead = results.count(None)
    if after.serial != before.serial + 1 or after.previous != before.release:
        counts["rounds_without_exactly_one_write"] += 1
    if winners != [after.release] and not (dead and not winners):
        counts["rounds_without_exactly_one_winner"] += 1
    counts["rounds_with_one_winner"] += winners == [after.release]
    counts["rounds_won_by_the_killed"] += bool(dead and not winners)
    counts["killed"] += dead
    require_complete(target, str(after.release))


class Team:
    """Processes that each run one command at the same time."""

    def __init__(self, source: str, root: str, count: int) -> None:
        self._arguments = (source, root, _environment())
        self.workers = [self._start() for _ in range(count)]

    def run(
        self, commands: list[tuple[str, str]], counts: Counter[str], victim: random.Random | None = None
    ) -> list[dict[str, Any] | None]:
        """Runs one command per worker; returns their results, None for a killed worker."""
        used = self.workers[: len(commands)]
        for (_, pipe), command in zip(used, commands, strict=True):
            pipe.send(command)
        for _, pipe in used:
            pipe.recv()  # the worker has read the pointer
        for _, pipe in used:
            pipe.send("go")
        killed = victim.randrange(len(used)) if victim else None
        if victim and killed is not None:
            time.sleep(victim.uniform(0, 0.1))
            used[killed][0].kill()
        results: list[dict[str, Any] | None] = []
        for index, (process, pipe) in enumerate(used):
            try:
                results.append(pipe.recv())
            except (EOFError, ConnectionResetError):
                results.append(None)
            if index == killed:
                process.join()
                self.workers[index] = self._start()
        for result in results:
            if result:
                counts[f"{result['command']}: {result['outcome']}"] += 1
        return results

    def end(self) -> None:
        for process, pipe in self.workers:
            pipe.close()
            process.join(60)

    def _start(self) -> tuple[BaseProcess, Connection]:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_work, args=(*self._arguments, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours


@contextlib.contextmanager
def _team(source: str, root: str, count: int) -> Iterator[Team]:
    _CONTEXT.set_forkserver_preload(["infra.releases.pruning", "searchforge.storage.local", "google.cloud.storage"])
    team = Team(source, root, count)
    try:
        yield team
    finally:
        team.end()


def _environment() -> dict[str, str]:
    """Returns the variables to pass to workers, since the fork server keeps the environment of its own start."""
    names = ("STORAGE_EMULATOR_HOST", "XDG_CACHE_HOME")
    return {name: os.environ[name] for name in names if name in os.environ}


def _work(source: str, root: str, environment: dict[str, str], pipe: Connection) -> None:
    """Runs commands received from a pipe until it is closed."""
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # discards the commands' messages
    checked, target = Workspace(source), Workspace(root)
    with contextlib.suppress(EOFError):
        while True:
            command, check = pipe.recv()
            expected = channels.read(target.storage)
            pipe.send("ready")
            pipe.recv()
            release, outcome = None, "done"
            try:
                if command == "publish":
                    release = publish(checked, target, check, expected=expected).id
                elif command == "rollback":
                    rollback(target)
                elif command == "promote":
                    promote(target, "staging", "canary")
                else:
                    prune(target, keep=3, min_age_days=0)
            except (ConflictError, UsageError, GateError):
                outcome = "lost"
            except SearchforgeError as error:
                outcome = f"failed: {error}"
            pipe.send({"command": command, "outcome": outcome, "release": release})


@contextlib.contextmanager
def _reading(root: str, readers: int) -> Iterator[tuple[Any, Any]]:
    """Runs readers, each of which reads at least once before the race and once after it.

    Yields:
      An event to set when releases start being deleted, and a function that stops the readers and returns total counts.
    """
    stop, deleting, results = _CONTEXT.Event(), _CONTEXT.Event(), _CONTEXT.Queue()
    started = _CONTEXT.Semaphore(0)
    counts = [len(range(part, readers, READER_PROCESSES)) for part in range(READER_PROCESSES)]
    processes = [
        _CONTEXT.Process(
            target=_read_all, args=(root, _environment(), count, part, started, stop, deleting, results), daemon=True
        )
        for part, count in enumerate(counts)
    ]
    for process in processes:
        process.start()
    for _ in range(readers):
        started.acquire()

    def gather() -> dict[str, Any]:
        stop.set()
        total: Counter[str] = Counter(reads=0, files_verified=0, violations=0)
        for _ in processes:
            total.update(results.get(timeout=300))
        return dict(total)

    try:
        yield deleting, gather
    finally:
        stop.set()
        for process in processes:
            process.join(60)


def _read_all(
    root: str, environment: dict[str, str], count: int, part: int, started: Any, stop: Any, deleting: Any, results: Any
) -> None:
    """Runs `count` readers as threads until `stop` is set, then puts their total counts into `results`."""
    os.environ.update(environment)
    threading.stack_size(256 << 10)
    totals = [Counter[str]() for _ in range(count)]
    threads = [
        threading.Thread(
            target=_read_loop, args=(root, random.Random(part * 10_000 + index), started, stop, deleting, total)
        )
        for index, total in enumerate(totals)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(dict(sum(totals, Counter())))


def _read_loop(root: str, rng: random.Random, started: Any, stop: Any, deleting: Any, total: Counter[str]) -> None:
    source = BucketSource(root) if "://" in root else FolderSource(root)
    pause, serial = PAUSE_SECONDS["bucket" if "://" in root else "folder"], -1
    last = False
    while not last:
        last = stop.is_set()
        first = serial < 0
        fault, serial = _read_once(source, serial, deleting, total)
        if fault:
            total["violations"] += 1
            total[f"violation: {fault}"] += 1
        if first:
            started.release()
            time.sleep(rng.uniform(0, pause))  # keeps the readers out of step
        time.sleep(rng.uniform(0.5, 1.5) * pause)


def _read_once(source: Any, serial: int, deleting: Any, total: Counter[str]) -> tuple[str, int]:
    """Reads the live release once; returns a violation or an empty string, and the pointer's serial."""
    data = source.get(_POINTER)
    if data is None:
        return "no pointer", serial
    try:
        pointer = json.loads(data)
    except ValueError:
        return "an incomplete pointer", serial
    if pointer["serial"] < serial:
        return "an older pointer", serial
    for file in pointer["files"].values():
        content = source.get(f"releases/{file['path']}")
        if content is None:
            if deleting.is_set() and json.loads(source.get(_POINTER))["serial"] != pointer["serial"]:
                total["moved_on"] += 1
                return "", pointer["serial"]
            return "a missing file", pointer["serial"]
        if len(content) != file["bytes"] or hashlib.sha256(content).hexdigest() != file["sha256"]:
            return "other bytes than the pointer lists", pointer["serial"]
        total["files_verified"] += 1
    total["reads"] += 1
    return "", pointer["serial"]


class FolderSource:
    """Reads releases from a folder, as an app does."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def get(self, path: str) -> bytes | None:
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None


class BucketSource:
    """Reads releases from a public bucket over a persistent HTTP connection, as an app does."""

    def __init__(self, root: str) -> None:
        host = urlsplit(os.environ["STORAGE_EMULATOR_HOST"])
        self._connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=120)
        self._prefix = f"/{root.removeprefix('gs://')}"

    def get(self, path: str) -> bytes | None:
        try:
            self._connection.request("GET", quote(f"{self._prefix}/{path}"))
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):  # the server closed an idle connection
            self._connection.close()
            return self.get(path)
        if response.status == 404:
            return None
        assert response.status == 200, f"{path}: {response.status}"
        return data


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 100), ("publishers", 20), ("readers", 1000), ("kills", 20), ("mixed", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=("folder", "bucket"))
    options = parser.parse_args()
    quiet_libraries()
    counts = (options.rounds, options.publishers, options.readers, options.kills, options.mixed)
    report = {}
    with tempfile.TemporaryDirectory() as scratch:
        if options.only != "bucket":
            report["folder"] = race(f"{scratch}/public", *counts)
        if options.only != "folder":
            with serving_gcs(Path(scratch)) as url:
                os.environ["STORAGE_EMULATOR_HOST"] = url
                from searchforge.storage.gcs_client import gcs_client

                gcs_client().create_bucket("races")
                report["bucket"] = race("gs://races/public", *counts)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
