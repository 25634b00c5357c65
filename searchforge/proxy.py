"""Keeps connections between the project's own processes out of the HTTP proxy that the environment names.

Beam, Ray and TensorFlow connect their processes with gRPC, which sends even connections to 127.0.0.1 through
`http_proxy`. A proxy does not answer them, so that jobs wait forever.
https://grpc.github.io/grpc/core/md_doc_environment_variables.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_EXEMPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


def bypass_proxy(*hosts: str) -> None:
    """Exempts the loopback addresses and further hosts from the proxy, for this process and its later children."""
    if not proxies():
        return
    listed = dict.fromkeys([*exempt_hosts(), *LOOPBACK, *hosts])
    for name in _EXEMPTIONS:
        # Only gRPC does not understand "*", which exempts all hosts and must stand alone.
        if name == "no_grpc_proxy" or os.environ.get(name, "").strip() != "*":
            os.environ[name] = ",".join(host for host in listed if host not in ("", "*"))


def proxies() -> dict[str, str]:
    """Returns the address, without a password, of each proxy that the environment names, by variable."""
    found = ((name, os.environ.get(name)) for lower in _PROXIES for name in (lower, lower.upper()))
    return {name: _without_password(value) for name, value in found if value}


def exempt_hosts() -> list[str]:
    """Returns the hosts that the environment exempts from proxies."""

    def hosts() -> Iterator[str]:
        for name in _EXEMPTIONS:
            yield from os.environ.get(name, "").split(",")

    return list(dict.fromkeys(host for each in hosts() if (host := each.strip())))


def _without_password(proxy: str) -> str:
    _, at, address = proxy.rpartition("@")
    return f"{urlsplit(proxy).scheme or 'http'}://...@{address}" if at else proxy
