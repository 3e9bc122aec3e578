"""A daemon that makes vectors of texts by a provider, and API keys that see some collections."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

pytestmark = pytest.mark.long

KEY = "sk-a-key-that-nobody-may-see"
WORDS = ("meeting", "monday", "lunch")


class Provider(BaseHTTPRequestHandler):
    """Counts words; refuses whoever has not the key."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ok = self.headers.get("Authorization") == f"Bearer {KEY}" and body["model"] == "words"
        self.asked.extend(body["input"])
        data = [
            {"index": n, "embedding": [0.1 + text.count(word) for word in WORDS]}
            for n, text in enumerate(body["input"])
        ]
        raw = json.dumps({"data": data} if ok else {"error": {"message": "no"}}).encode()
        self.send_response(200 if ok else 401)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "vectors": {
            "embedder": "http",
            "embedding_url": f"http://127.0.0.1:{server.server_port}/v1/embeddings",
            "embedding_model": "words",
            "embedding_key_secret": "openai",
        },
        "gateway": {"listen": ["127.0.0.1:0"]},
    }
    folder = tmp_path_factory.mktemp("texts")
    with LocalSwarm(folder, 1, settings=settings) as swarm:
        swarm.form()
        yield swarm[0]
    server.shutdown()
    server.server_close()


def says(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    done = daemon.ctl(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def set_secret(daemon: Daemon, value: str) -> None:
    command = [str(Path(sys.executable).parent / "swarmctl"), "--socket", str(daemon.socket)]
    subprocess.run([*command, "secret", "set", "openai"], input=value, text=True, check=True)


def test_texts_are_found_by_what_they_are_about(daemon: Daemon) -> None:
    assert "no secret openai" in says(daemon, "vector", "create", "notes", "--embed", code=1)
    set_secret(daemon, "sk-another-key-that-is-wrong")
    assert "401 (no)" in says(daemon, "vector", "create", "notes", "--embed", code=2)
    set_secret(daemon, KEY)
    wait_until(
        "the key counts",
        lambda: daemon.ctl("vector", "create", "notes", "--embed").returncode == 0,
    )
    assert "takes vectors of 3 elements" in says(daemon, "vector", "create", "notes", "--embed")
    says(daemon, "vector", "add", "notes", "--id", "a", "--text", "a meeting on monday")
    lines = "\n".join(json.dumps({"id": f"n{n}", "text": f"lunch {n}"}) for n in range(100))
    file = daemon.folder / "lines.jsonl"
    file.write_text(lines)
    assert "100 entries" in says(daemon, "vector", "add", "notes", "--file", str(file))
    found = daemon.json("vector", "search", "notes", "--text", "monday meeting", "-k", "1")
    assert [hit["id"] for hit in found["hits"]] == ["a"]
    assert "lunch 99" in Provider.asked
    [listed] = daemon.json("vector", "list")
    assert (listed["model"], listed["entries"]) == ("words", 101)
    says(daemon, "vector", "create", "plain", "--dimension", "3")
    refused = says(daemon, "vector", "search", "plain", "--text", "x", code=2)
    assert "is for no model, and this node has words" in refused
    assert KEY not in daemon.log.read_text()


def test_a_key_sees_its_collections_and_no_other(daemon: Daemon, tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        says(daemon, "vector", "create", name, "--dimension", "2")
        says(daemon, "vector", "add", name, "--id", "x", "--vector", "[1, 0]")
    file = tmp_path / "reader.key"
    says(
        daemon, "key", "create", "reader", "--allow", "vector:read:mine",
        "--allow", "vector:write:mine", "--out", str(file),
    )  # fmt: skip
    status = daemon.json("status")
    [url] = status["api"]
    known = ("--socket", url, "--fingerprint", status["api_fingerprint"])
    known = (*known, "--api-key-file", str(file))
    search = ("--vector", "[1, 0]")
    wait_until(
        "the key is known",
        lambda: daemon.ctl(*known, "vector", "search", "mine", *search).returncode == 0,
    )
    says(daemon, *known, "vector", "add", "mine", "--vector", "[0, 1]")
    listed = json.loads(says(daemon, *known, "--json", "vector", "list"))
    assert [one["name"] for one in listed] == ["mine"]
    for arguments, rule in (
        (("search", "theirs", *search), "vector:read:theirs"),
        (("get", "theirs", "x"), "vector:read:theirs"),
        (("add", "theirs", *search), "vector:write:theirs"),
        (("delete", "theirs", "x"), "vector:write:theirs"),
        (("create", "theirs", "-d", "2"), "vector:write:theirs"),
        (("drop", "theirs", "--yes"), "vector:write:theirs"),
    ):
        said = says(daemon, *known, "vector", *arguments, code=2)
        assert f"takes the rule {rule}" in said
