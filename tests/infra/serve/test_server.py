"""`searchforge serve`: every request gets its own result or a helpful error, however malformed or numerous."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from infra.cli.main import main
from infra.serve.application import MAX_BODY
from infra.serve.parameters import MAX_CONDITIONS, MAX_HITS, MAX_QUERY
from searchforge.hashing import sha256_bytes
from serving_check.measurement.search import Searcher
from tests.infra.serve.serve_world import (
    COUNT,
    HALF,
    HOSTILE,
    HOSTILE_ID,
    Reply,
    Server,
    is_running,
    make_world,
    serving,
    wait_for,
)

STATIC = Path(__file__).parents[3] / "infra" / "serve" / "static"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[Server]:
    with serving(world, "--release", "all", "--release", "half", "--workers", "2") as started:
        wait_for(lambda: all(release["pictures"]["state"] == "ready" for release in _releases(started)))
        yield started


def _releases(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.ask("/releases").json["releases"]
    return found


def _item(number: int) -> str:
    return HOSTILE_ID if number == HOSTILE else f"{number:05d}.png"


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_text_search_returns_scores_metadata_and_time(server: Server) -> None:
    reply = server.search("w4", k=3)
    assert (reply.status, reply.headers.get_content_type()) == (200, "application/json")
    found = reply.json
    assert (found["release"], found["query"], found["considered"], found["cached"]) == ("all", "w4", 3, False)
    assert found["milliseconds"] > 0
    assert found["hits"][0] == {
        "id": "00004.png",
        "score": found["hits"][0]["score"],
        "metadata": {"number": 4, "parity": "even", "tags": ["a", 4]},
    }
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True) and 0.9 < scores[0] < 1.1


def test_an_image_search_equals_the_task_library(server: Server, world: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(3).integers(0, 256, (90, 140, 3), np.uint8)
    Image.fromarray(pixels).save(photo, quality=95)
    data = photo.read_bytes()
    found = server.ask("/search?k=5", "POST", data).json
    with Searcher(world / "releases" / "all" / "image_searcher.tflite") as searcher:
        expected = searcher.search_image(photo, 5)
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert found["query"] == {"image": sha256_bytes(data)}
    own = (world.parent / "images" / "00011.png").read_bytes()
    assert server.ask("/search?k=1", "POST", own).ids == ["00011.png"]


def test_each_release_is_searched_separately(server: Server) -> None:
    word = f"w{HALF + 5}"
    assert server.search(word, k=1).ids == [_item(HALF + 5)]
    other = server.search(word, k=1, release="half")
    assert other.json["release"] == "half" and other.ids != [_item(HALF + 5)]
    described = {release["id"]: release for release in _releases(server)}
    assert list(described) == ["all", "half"]
    assert [(each["images"], each["live"]) for each in described.values()] == [(COUNT, True), (HALF, False)]
    assert described["all"]["figures"]["recall_at_10"] == 0.97
    assert described["all"]["queries"] == ["text", "image"]


@pytest.mark.parametrize(
    ("where", "meets"),
    [
        (["parity=odd"], lambda number: number % 2),
        (["parity=even", "tags=a"], lambda number: not number % 2),
        (["number=33"], lambda number: number == 33),
        (["tags=34"], lambda number: number == 34),
        (["parity=none"], lambda number: False),
        (["other=odd"], lambda number: False),
    ],
)
def test_conditions_filter_a_larger_set_of_hits(server: Server, where: list[str], meets: Any) -> None:
    found = server.search("w33 w34", where, k=10).json
    everything = server.search("w33 w34", k=MAX_HITS).json["hits"]
    assert found["considered"] >= len(everything) > 10
    assert all(meets(hit["metadata"]["number"]) for hit in found["hits"])
    expected = [hit["id"] for hit in everything if meets(hit["metadata"]["number"])][:10]
    assert [hit["id"] for hit in found["hits"]][: len(expected)] == expected


def test_equal_requests_are_cached(server: Server) -> None:
    first, again = (server.search("w50 w51", k=7).json for _ in range(2))
    assert (first.pop("cached"), again.pop("cached")) == (False, True)
    assert first == again
    for other in (
        server.search("w50 w51", k=8),
        server.search("w50 w51", k=7, release="half"),
        server.search("w50 w51", ["parity=odd"], k=7),
        server.search("w51 w50", k=7),
    ):
        assert not other.json["cached"]


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/search", 400, "q is missing; expected a text of 1 to 10000 characters, for example q=a+dog"),
        ("/search?q=", 400, "q='' is invalid; expected a text"),
        ("/search?q=+%09", 400, "is invalid; expected a text"),
        (f"/search?q={'a' * (MAX_QUERY + 1)}", 400, f"... is invalid; expected a text of 1 to {MAX_QUERY} characters"),
        (f"/search?q={'%F0%9F%90%95' * (MAX_QUERY + 1)}", 400, f"1 to {MAX_QUERY} characters"),
        ("/search?q=w1&q=w2", 400, "q is given 2 times"),
        ("/search?q=w1&k=0", 400, "k='0' is invalid; expected a number of hits from 1 to 100"),
        ("/search?q=w1&k=101", 400, "from 1 to 100"),
        ("/search?q=w1&k=-1", 400, "from 1 to 100"),
        ("/search?q=w1&k=1.5", 400, "from 1 to 100"),
        ("/search?q=w1&k=1.0", 400, "from 1 to 100"),
        ("/search?q=w1&k=1_0", 400, "from 1 to 100"),
        ("/search?q=w1&k=%D9%A3", 400, "from 1 to 100"),
        (f"/search?q=w1&k={'9' * 5000}", 400, "from 1 to 100"),
        ("/search?q=w1&k=", 400, "from 1 to 100"),
        ("/search?q=w1&release=none", 404, "'none' is not served here; served releases: all, half"),
        ("/search?q=w1&release=../all", 404, "is not served here"),
        ("/search?q=w1&where=parity", 400, "expected key=value"),
        ("/search?q=w1&where==odd", 400, "expected key=value"),
        (f"/search?q=w1&where=a={'b' * 1000}", 400, "expected key=value"),
        (f"/search?q=w1{'&where=a=b' * (MAX_CONDITIONS + 1)}", 400, "16 in total"),
        ("/search?q=w1&filter=a=b", 400, "'filter' is unknown; this path takes k, release, where, q"),
        ("/thumbnail", 400, "id is missing"),
        ("/thumbnail?id=none", 404, "no item with this id"),
        ("/thumbnail?id=../../etc/passwd", 404, "no item with this id"),
        ("/thumbnail?id=00001.png&size=huge", 400, "expected small or large"),
        ("/thumbnail?id=00001.png&release=none", 404, "is not served here"),
        (f"/thumbnail?id=000{HALF + 1}.png&release=half", 404, "no item with this id"),
        ("/releases?q=1", 400, "unknown; this path takes no parameters"),
        ("/nothing", 404, "/search"),
        ("/static/", 403, "/static/"),
        ("/static/../server.py", 404, "server.py"),
        ("/static/%2e%2e/server.py", 404, "server.py"),
        ("/static/..%2fserver.py", 404, "server.py"),
    ],
)
def test_invalid_requests_get_a_helpful_error(server: Server, path: str, status: int, reason: str) -> None:
    reply = server.ask(path)
    assert reply.status == status
    assert reason in reply.json["error"] and "Traceback" not in reply.json["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(server: Server, method: str) -> None:
    reply = server.ask("/search?q=w1", method)
    assert reply.status == 405 and "POST" in reply.headers["Allow"]
    assert f"not {method}" in reply.json["error"]


def _bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "the body is empty"),
        (b"hello", 415, "not_an_image"),
        (_png(np.zeros((64, 64, 3), np.uint8))[:70], 415, "cannot be used as an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not_an_image"),
        (_bomb(), 413, "too_many_pixels"),
        (bytes(MAX_BODY + 1), 413, "larger than 32 MiB"),
        (iter([bytes(2**20)] * 33), 413, "larger than 32 MiB"),
    ],
    ids=["empty", "text", "cut", "svg", "bomb", "large", "large-chunked"],
)
def test_bodies_that_are_not_usable_images_are_refused(server: Server, body: Any, status: int, reason: str) -> None:
    reply = server.ask("/search", "POST", body)
    assert reply.status == status
    assert reason in reply.json["error"]


def test_forms_are_refused(server: Server) -> None:
    reply = server.ask("/search", "POST", b"--x", {"Content-Type": "multipart/form-data; boundary=x"})
    assert reply.status == 415 and "--data-binary" in reply.json["error"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost", "127.0.0.1:1", "", "[::1]:{port}"]
)
def test_other_hosts_are_refused(server: Server, host: str) -> None:
    for path in ("/", "/search?q=w1", "/thumbnail?id=00001.png", "/static/app.js"):
        reply = server.ask(path, headers={"Host": host.replace("{port}", str(server.port))})
        assert reply.status == 403 and "error" in reply.json


def test_pages_of_other_sites_are_refused(server: Server) -> None:
    body = _png(np.zeros((8, 8, 3), np.uint8))
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        assert server.ask("/search", "POST", body, {"Origin": origin}).status == 403
    own = server.ask("/search", "POST", body, {"Origin": server.url, "Host": f"LOCALHOST:{server.port}"})
    assert own.status == 200 and "Access-Control-Allow-Origin" not in own.headers


def test_the_server_listens_on_localhost_only(server: Server) -> None:
    listening = Path(f"/proc/{server.pid}/net/tcp").read_text()
    addresses = re.findall(rf"([0-9A-F]+):{server.port:04X} 00000000:0000 0A", listening)
    assert addresses == ["0100007F"]
    assert f":{server.port:04X} " not in Path(f"/proc/{server.pid}/net/tcp6").read_text()


def test_the_page_runs_nothing_but_its_own_script(server: Server) -> None:
    page = server.ask("/")
    assert page.status == 200 and page.headers.get_content_type() == "text/html"
    for path in ("/", "/search", "/static/app.js", "/static/style.css", "/nothing", "/releases"):
        headers = server.ask(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    html = page.body.decode()
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*src=)", html)
    for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', html):
        assert server.ask(name).status == 200
    script = (STATIC / "app.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


@pytest.mark.parametrize("lines", ["NONSENSE\r\n\r\n", "GET /search?q=\xff HTTP/9.9\r\n\r\n", "\x16\x03\x01\x02\x00"])
def test_malformed_http_gets_no_stack_trace(server: Server, lines: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(lines.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert b"Traceback" not in answer and b".py" not in answer
    assert server.search("w1", k=1).status == 200


def test_an_incomplete_body_causes_no_server_error(server: Server) -> None:
    start = f"POST /search HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
    for rest in ("Content-Length: 1000\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\nff\r\nabc"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall((start + rest).encode())
            server.ask("/healthz")
    compressed = server.ask("/search", "POST", gzip.compress(bytes(2**20)), {"Content-Encoding": "gzip"})
    assert compressed.status == 415 and "not_an_image" in compressed.json["error"]
    assert "Traceback" not in server.log.read_text()


def test_a_thumbnail_is_a_small_jpeg(server: Server, world: Path) -> None:
    for size, side in (("small", 400), ("large", 1200)):
        reply = server.ask(f"/thumbnail?id=00003.png&size={size}")
        assert (reply.status, reply.headers.get_content_type()) == (200, "image/jpeg")
        with Image.open(io.BytesIO(reply.body)) as picture:
            assert picture.format == "JPEG" and max(picture.size) <= side
    assert server.ask("/thumbnail?id=00003.png&release=half").status == 200


def test_an_id_with_outer_blanks_has_a_thumbnail(server: Server) -> None:
    assert HOSTILE_ID.strip() != HOSTILE_ID
    assert server.ask(f"/thumbnail?{urlencode({'id': HOSTILE_ID})}").status == 200


def test_a_changed_image_has_no_thumbnail(server: Server, world: Path) -> None:
    path = world.parent / "images" / "00040.png"
    kept = path.read_bytes()
    try:
        path.write_bytes(_png(np.zeros((8, 8, 3), np.uint8)))
        changed = server.ask("/thumbnail?id=00040.png")
        path.unlink()
        gone = server.ask("/thumbnail?id=00040.png")
    finally:
        path.write_bytes(kept)
    for reply in (changed, gone):
        assert reply.status == 404 and "changed since" in reply.json["error"]
    assert server.ask("/thumbnail?id=00040.png").status == 200


def test_health_reports_workers_queue_and_crashes(server: Server) -> None:
    health = server.ask("/healthz").json
    assert health == {"status": "ok", "workers": 2, "waiting": 0, "crashes": 0}


def test_concurrent_requests_each_get_their_own_results(server: Server) -> None:
    words = [(number, release) for number in range(HALF) for release in ("all", "half")] * 2
    with ThreadPoolExecutor(32) as threads:
        replies = list(threads.map(lambda word: server.search(f"w{word[0]}", k=2, release=word[1]), words))
    assert {reply.status for reply in replies} == {200}
    for (number, release), reply in zip(words, replies, strict=True):
        assert (reply.json["query"], reply.json["release"]) == (f"w{number}", release)
        assert reply.ids[0] == _item(number)


@contextlib.contextmanager
def _stalled(server: Server, count: int) -> Iterator[tuple[int, list[Future[Reply]]]]:
    """Stops the server's only searcher on the first of `count` queries; yields its process and the pending replies."""
    (child,) = server.searchers()
    os.kill(child, signal.SIGSTOP)
    with ThreadPoolExecutor(count) as threads:
        replies = [threads.submit(server.search, f"w{number}", k=1) for number in range(count)]
        wait_for(lambda: server.ask("/healthz").json["waiting"] == count - 1)
        yield child, replies


def test_a_crash_fails_one_request(world: Path) -> None:
    with serving(world, short_queue=(1, 40)) as server:
        with _stalled(server, 8) as (child, pending):
            os.kill(child, signal.SIGKILL)
            replies = [reply.result() for reply in pending]
        failed = [reply for reply in replies if reply.status != 200]
        assert [reply.status for reply in failed] == [500]
        assert re.search(r"worker \d crashed on this query and was restarted: .*signal 9", failed[0].json["error"])
        assert server.ask("/healthz").json["crashes"] == 1
        assert len(server.searchers()) == 1
        assert {server.search(f"w{number}", k=3).status for number in range(40)} == {200}


def test_a_crash_between_requests_fails_none(world: Path) -> None:
    with serving(world, "--workers", "2") as server:
        children = server.searchers()
        os.kill(children[0], signal.SIGSEGV)
        wait_for(lambda: not is_running(children[0]))
        with ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(lambda number: server.search(f"w{number}", k=1), range(40)))
        assert {reply.status for reply in replies} == {200}
        assert server.ask("/healthz").json["crashes"] == 1
        assert len(server.searchers()) == len(children)


def test_a_worker_outlives_a_searcher_that_cannot_be_started(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))  # inherited by the server
    with serving(world, short_queue=(1, 8)) as server:
        temporary.rename(tmp_path / "elsewhere")
        (child,) = server.searchers()
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: not is_running(child))
        for number in range(3):
            refused = server.search(f"w{number}", k=1)
            assert refused.status == 503 and refused.headers["Retry-After"] == "1"
            assert "worker 1 cannot start a searcher" in refused.json["error"]
            assert str(temporary) in refused.json["error"]
        (tmp_path / "elsewhere").rename(temporary)
        assert server.search("w0", k=1).ids == [_item(0)]


def test_requests_beyond_the_queue_are_told_to_retry(world: Path) -> None:
    with serving(world, short_queue=(1, 3)) as server:
        with _stalled(server, 4) as (child, pending):
            refused = server.search("w9", k=1)
            os.kill(child, signal.SIGCONT)
            answers = [reply.result() for reply in pending]
        assert refused.status == 503 and refused.headers["Retry-After"] == "1"
        assert "3 queries are already waiting" in refused.json["error"]
        assert [answer.ids for answer in answers] == [[_item(number)] for number in range(4)]
        assert server.search("w9", k=1).ids == [_item(9)]


def test_concurrent_equal_requests_run_one_query(world: Path) -> None:
    with serving(world, short_queue=(1, 1)) as server:
        (child,) = server.searchers()
        os.kill(child, signal.SIGSTOP)
        with ThreadPoolExecutor(6) as threads:
            waiting = [threads.submit(server.search, "w5", k=1) for _ in range(6)]
            other = server.ask("/healthz").json["waiting"]
            os.kill(child, signal.SIGCONT)
            replies = [future.result() for future in waiting]
        assert other <= 1
        assert [reply.status for reply in replies] == [200] * 6
        assert sum(not reply.json["cached"] for reply in replies) == 1


@pytest.mark.parametrize(("number", "forked"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_stops_the_server_and_its_children(world: Path, number: int, forked: bool) -> None:
    with serving(world, "--workers", "2", "--release", "all", "--release", "half", forked=forked) as server:
        server.search("w1", ["parity=odd"])
        server.ask("/search", "POST", _png(np.zeros((8, 8, 3), np.uint8)))
        children = server.children()
        assert len(server.searchers()) >= 4
        assert server.end(number) == 0
        wait_for(lambda: not any(is_running(child) for child in children))
    assert "Traceback" not in server.log.read_text()


def test_a_signal_during_start_up_stops_the_server(world: Path) -> None:
    with serving(world, "--workers", "2", until="opening") as server:
        assert server.end() == 0
    assert "Traceback" not in server.log.read_text()


def test_children_end_with_a_killed_server(world: Path) -> None:
    with serving(world, "--workers", "2", forked=False) as server:
        children = server.children()
        assert len(server.searchers()) >= 2
        server.end(signal.SIGKILL)
        wait_for(lambda: not any(is_running(child) for child in children))


def _serve(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_a_port_in_use_is_reported(server: Server, world: Path) -> None:
    code, output = _serve("--workspace", str(world), "--port", str(server.port))
    assert code == 2
    assert f"port {server.port} of 127.0.0.1 is in use" in output and "--port" in output
    assert len(output.strip().splitlines()) == 1


def test_unknown_and_repeated_releases_are_refused(world: Path, tmp_path: Path) -> None:
    assert _serve("--workspace", str(tmp_path / "none"))[0] == 2
    code, output = _serve("--workspace", str(world), "--release", "other")
    assert code == 2 and "releases/other is not in workspace" in output
    code, output = _serve("--workspace", str(world), "--release", "half", "--release", "half")
    assert code == 2 and "half is named twice" in output


def test_a_release_in_another_folder_has_thumbnails(world: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "empty", "--release", str(world)) as server:
        wait_for(lambda: _releases(server)[0]["pictures"]["state"] != "preparing")
        assert server.search("w3", k=1).ids == ["00003.png"]
        assert server.ask("/thumbnail?id=00003.png").status == 200


def test_without_the_corpus_there_are_hits_but_no_thumbnails(world: Path, tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir()
    (public / "releases").symlink_to(world / "releases")
    with serving(tmp_path / "empty", "--release", str(public)) as server:
        assert server.search("w3", k=1).ids == ["00003.png"]
        reply = server.ask("/thumbnail?id=00003.png")
        assert reply.status == 404 and "has no embeddings photos-all" in reply.json["error"]
        pictures = _releases(server)[0]["pictures"]
        assert pictures["state"] == "none" and "photos-all" in pictures["reason"]


def test_the_address_is_printed_as_json(world: Path) -> None:
    with serving(world) as server:
        assert json.loads(server.first_line) == {"url": f"http://127.0.0.1:{server.port}/", "releases": ["all"]}
