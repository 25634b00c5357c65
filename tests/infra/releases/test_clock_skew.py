"""A machine with a clock that is years off publishes, lists and prunes correctly, since times come from the storage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from infra.releases.releases import list_releases, publish
from searchforge.artifacts.workspace import Workspace
from tests.infra.releases.sample_artifacts import commit_checked

SKEWED_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += atol(getenv("SKEW_SECONDS"));
  return result;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to change the clock of a process")
@pytest.mark.parametrize("years", [-5, 5])
def test_a_wrong_clock_deletes_neither_too_much_nor_too_little(tmp_path: Path, years: int) -> None:
    (tmp_path / "skew.c").write_text(SKEWED_CLOCK)
    library = tmp_path / "skew.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "skew.c", "-ldl"], check=True)
    skew = {"LD_PRELOAD": str(library), "SKEW_SECONDS": str(years * 365 * 86400)}
    workspace = Workspace(str(tmp_path / "workspace"))
    checks = [commit_checked(workspace, name) for name in ("a", "b", "c", "d")]
    old, *young = [publish(workspace, workspace, check).id for check in checks[:3]]
    moment = (datetime.now(timezone.utc) - timedelta(days=30)).timestamp()
    for path in (Path(workspace.root) / "releases" / old).iterdir():
        os.utime(path, (moment, moment))
    pointer = Path(workspace.root) / "releases" / "CURRENT.json"
    content = json.loads(pointer.read_text())
    content["history"] = [entry for entry in content["history"] if entry["release"] != old]
    pointer.write_text(json.dumps(content))
    upload = Path(workspace.root) / "releases" / "half"
    upload.mkdir()
    (upload / "file").write_text("an upload in progress")

    publishing = ["publish", "--check", checks[3], "--workspace", workspace.root]
    pruning = ["prune", "--keep", "1", "--min-age", "7d", "--json", "--workspace", workspace.root]
    code = f"""
import time
from infra.cli.main import main
main({publishing!r}, standalone_mode=False)
print("|", time.time(), "|")
main({pruning!r}, standalone_mode=False)
"""
    command, environment = [sys.executable, "-c", code], {**os.environ, **skew}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    _, seen, pruned = result.stdout.split("|")
    assert abs(float(seen) - time.time() - years * 365 * 86400) < 3600
    assert json.loads(pruned)["releases"] == [old]
    releases = list_releases(workspace)
    assert [release.id for release in releases][1:] == young[::-1], "the latest by the storage's clock comes first"
    assert abs(datetime.fromisoformat(releases[0].created) - datetime.now(timezone.utc)) < timedelta(hours=1)
    assert (upload / "file").exists()
