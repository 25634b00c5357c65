"""Publishers that race, while readers verify whatever is live: on a local folder, and on a Google Cloud Storage server.

    python -m tests.bench.release_races [--rounds 100] [--publishers 20] [--readers 1000] [--kills 20] [--only bucket]

In a round all publishers read the pointer, then all publish something else: exactly one may win. In some rounds one of
them is killed on its way. Then rounds follow in which a publisher, a rollback, a promotion and two prunes run at once.
Each reader goes round: the pointer, its files, their SHA-256. It may find no file missing (unless releases are deleted
and the pointer has moved on), no other bytes than those that were announced, and no pointer older than its last one.
The counts are printed as JSON.
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
from tests.infra.releases.release_world import commit_checked
from tests.integration.gcs_server import serving_gcs

READER_PROCESSES = 4
VARIANTS = 4
"""Of what a publisher publishes: from the fifth round on it is stored already, unless it was pruned."""

PAUSE_SECONDS = {"folder": 0.6, "bucket": 4.0}
"""Of a reader between two rounds, on average; without it the readers alone keep two cores busy."""

_CONTEXT = multiprocessing.get_context("forkserver")
_POINTER = "releases/CURRENT.json"


def race(
    root: str, rounds: int, publishers: int, readers: int, kills: int, mixed: int, seed: int = 0
) -> dict[str, Any]:
    """Races for the releases of `root`, a folder or gs:// URL; returns the counts.

    Args:
      kills: rounds of the first kind in which a publisher is killed.
      mixed: rounds of the second kind.
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
    """One round; asserts that exactly one publisher won, and that the others said that they did not."""
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
    """Processes that run one command each, all at the same moment."""

    def __init__(self, source: str, root: str, count: int) -> None:
        self._arguments = (source, root, _environment())
        self.workers = [self._start() for _ in range(count)]

    def run(
        self, commands: list[tuple[str, str]], counts: Counter[str], victim: random.Random | None = None
    ) -> list[dict[str, Any] | None]:
        """Returns what each worker did; None: it was killed."""
        used = self.workers[: len(commands)]
        for (_, pipe), command in zip(used, commands, strict=True):
            pipe.send(command)
        for _, pipe in used:
            pipe.recv()  # has read the pointer
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
    """What workers need of it: the fork server keeps that of its own start."""
    names = ("STORAGE_EMULATOR_HOST", "XDG_CACHE_HOME")
    return {name: os.environ[name] for name in names if name in os.environ}


def _work(source: str, root: str, environment: dict[str, str], pipe: Connection) -> None:
    """Runs commands that come through a pipe until it is closed."""
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the commands say of each race
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
    """Runs readers, each of which has read once before the race and reads once more after it.

    Yields:
      An event that says that releases are deleted from now on, and a function that stops the readers and adds up their
      counts.
    """
    stop, deleting, results = _CONTEXT.Event(), _CONTEXT.Event(), _CONTEXT.Queue()
    started = _CONTEXT.Semaphore(0)
    share = [len(range(part, readers, READER_PROCESSES)) for part in range(READER_PROCESSES)]
    processes = [
        _CONTEXT.Process(
            target=_read_all, args=(root, _environment(), count, part, started, stop, deleting, results), daemon=True
        )
        for part, count in enumerate(share)
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
    """Runs `count` readers as threads until `stop`; hands their counts over."""
    os.environ.update(environment)
    threading.stack_size(256 << 10)
    totals = [Counter[str]() for _ in range(count)]
    threads = [
        threading.Thread(
            target=_read_round, args=(root, random.Random(part * 10_000 + index), started, stop, deleting, total)
        )
        for index, total in enumerate(totals)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(dict(sum(totals, Counter())))


def _read_round(root: str, rng: random.Random, started: Any, stop: Any, deleting: Any, total: Counter[str]) -> None:
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
            time.sleep(rng.uniform(0, pause))  # so that the readers do not stay in step
        time.sleep(rng.uniform(0.5, 1.5) * pause)


def _read_once(source: Any, serial: int, deleting: Any, total: Counter[str]) -> tuple[str, int]:
    """Returns what is wrong with what is live, or nothing, and the pointer's serial."""
    data = source.get(_POINTER)
    if data is None:
        return "no pointer", serial
    try:
        pointer = json.loads(data)
    except ValueError:
        return "half a pointer", serial
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
            return "other bytes than announced", pointer["serial"]
        total["files_verified"] += 1
    total["reads"] += 1
    return "", pointer["serial"]


class FolderSource:
    """What an app sees of a folder."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def get(self, path: str) -> bytes | None:
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None


class BucketSource:
    """What an app sees of a public bucket: plain HTTP, on a connection that is kept."""

    def __init__(self, root: str) -> None:
        host = urlsplit(os.environ["STORAGE_EMULATOR_HOST"])
        self._connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=120)
        self._prefix = f"/{root.removeprefix('gs://')}"

    def get(self, path: str) -> bytes | None:
        try:
            self._connection.request("GET", quote(f"{self._prefix}/{path}"))
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):  # the server let go of an idle connection
            self._connection.close()
            return self.get(path)
        if response.status == 404:
            return None
        assert response.status == 200, f"{path}: {response.status}"
        return data


def main() -> None:
    """The command line."""
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
