"""Connections between local processes avoid the HTTP proxy that the environment names."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from infra.cli.doctor import check_proxy
from infra.cli.main import main
from searchforge.proxy import bypass_proxy, proxies

_ECHO = "/test/echo"
_NO_GRPC_PROXY = "no_grpc_proxy"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Removes proxies from the environment and restores it at the end."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy"):
        for written in (name, name.upper()):
            monkeypatch.setenv(written, "")  # so that a later change is undone, too
            monkeypatch.delenv(written)
    monkeypatch.setenv(_NO_GRPC_PROXY, "")
    monkeypatch.delenv(_NO_GRPC_PROXY)
    return monkeypatch


@pytest.fixture
def proxy(environment: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A proxy that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment.setenv("http_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield listener


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a gRPC server that returns what it receives."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    echo = grpc.server(
        ThreadPoolExecutor(1), handlers=[grpc.method_handlers_generic_handler("test", {"echo": handler})]
    )
    port = echo.add_insecure_port("127.0.0.1:0")
    echo.start()
    yield f"127.0.0.1:{port}"
    echo.stop(None).wait()


@pytest.mark.parametrize("exempt", ["", "example.org", "*"])
def test_grpc_reaches_a_local_process_despite_a_proxy(
    environment: pytest.MonkeyPatch, proxy: socket.socket, server: str, exempt: str
) -> None:
    environment.setenv("no_proxy", exempt)
    bypass_proxy()
    with grpc.insecure_channel(server, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert channel.unary_unary(_ECHO)(b"hello", timeout=10) == b"hello"


def test_hosts_are_added_to_those_that_are_exempt_already(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy:3128")
    environment.setenv("no_proxy", "example.org, 10.0.0.0/8")
    environment.setenv("NO_PROXY", "example.com")
    bypass_proxy("10.1.2.3")
    bypass_proxy("10.1.2.3")
    expected = "example.org,10.0.0.0/8,example.com,localhost,127.0.0.1,::1,10.1.2.3"
    assert {os.environ[name] for name in ("no_proxy", "NO_PROXY", _NO_GRPC_PROXY)} == {expected}


def test_an_exemption_of_all_hosts_is_kept(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "http://proxy:3128")
    environment.setenv("no_proxy", "*")
    bypass_proxy()
    assert (os.environ["no_proxy"], os.environ[_NO_GRPC_PROXY]) == ("*", "localhost,127.0.0.1,::1")


def test_without_a_proxy_the_environment_stays_as_it_is() -> None:
    bypass_proxy("10.1.2.3")
    assert not {"no_proxy", "NO_PROXY", _NO_GRPC_PROXY} & os.environ.keys()


def test_commands_exempt_local_processes(proxy: socket.socket, tmp_path: Path) -> None:
    CliRunner().invoke(main, ["releases", "--workspace", str(tmp_path)])
    assert os.environ["no_proxy"] == "localhost,127.0.0.1,::1"


def test_the_doctor_names_proxies_without_their_passwords(environment: pytest.MonkeyPatch) -> None:
    assert list(check_proxy()) == []
    environment.setenv("https_proxy", "http://me:secret@proxy:3128")
    environment.setenv("no_proxy", "example.org")
    (finding,) = check_proxy()
    assert finding.found == ("https_proxy=http://...@proxy:3128; not used for example.org, localhost, 127.0.0.1, ::1")
    assert proxies() == {"https_proxy": "http://...@proxy:3128"}
