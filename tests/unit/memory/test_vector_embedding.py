"""Vectors of texts: what a provider is asked, how often, and what is made of what it answers."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import h11
import pytest
import trio
from vector_nodes import VectorSwarm

from swarmd.base.errors import (
    BadRequest,
    ConfigError,
    EmbeddingFailed,
    KeyFileRefused,
    NoEmbedder,
    SwarmError,
    TooLarge,
)
from swarmd.base.limits import VECTOR_TEXT_BYTES_MAX
from swarmd.memory.vector import embedding
from swarmd.memory.vector.config import VectorsConfig, check
from swarmd.memory.vector.embedding import Embedder, HttpEmbedder, LocalEmbedder, make_embedder
from swarmd.memory.vector.service import NewEntry
from swarmd.memory.vector.shapes import Metric, packed

KEY = "sk-0123456789abcdef"
Answer = Callable[[dict[str, Any]], tuple[int, bytes] | None]


def vector_of(text: str) -> list[float]:
    return [float(len(text)), float(text.count("a")), 1.0]


def good(asked: dict[str, Any]) -> tuple[int, bytes]:
    data = [{"index": n, "embedding": vector_of(one)} for n, one in enumerate(asked["input"])]
    # In no order, and with what nobody asked for.
    return 200, json.dumps({"data": data[::-1], "object": "list", "usage": {}}).encode()


class Provider:
    """A server with the API of OpenAI's embeddings. `answers`: one for each request, in turn."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = [*answers]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.port = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                self.headers.append(dict(event.headers))
                assert event.target == b"/v1/embeddings"
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        self.asked.append(json.loads(body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answered = answer(self.asked[-1])
        if answered is None:
            await stream.aclose()
            return
        status, raw = answered
        if status == 0:
            await trio.sleep_forever()
        headers = [("Content-Length", str(len(raw)))]
        if 300 <= status < 400:
            headers.append(("Location", f"http://127.0.0.1:{self.port}/v1/embeddings"))
        await stream.send_all(connection.send(h11.Response(status_code=status, headers=headers)))
        await stream.send_all(connection.send(h11.Data(data=raw)))
        await stream.aclose()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Provider]:
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self.serve, [listener])
            yield self
            nursery.cancel_scope.cancel()

    def embedder(self, **changed: Any) -> Embedder:
        made = make_embedder(config_of(self.port, **changed), no_secret)
        assert made is not None
        return made


def config_of(port: int, **changed: Any) -> VectorsConfig:
    given: dict[str, Any] = {
        "embedder": "http",
        "embedding_model": "small",
        "embedding_url": f"http://127.0.0.1:{port}/v1/embeddings",
        "embedding_timeout_s": 20.0,
    }
    config = VectorsConfig(**given | changed)
    check(config)
    return config


async def no_secret(name: str) -> str:
    raise AssertionError(name)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_PAUSE_S", 0.01)


async def test_texts_are_asked_for_in_bounded_requests_and_come_in_order() -> None:
    texts = [f"a{'b' * n}" for n in range(150)]
    async with Provider(good).running() as provider:
        vectors = await provider.embedder().embed(texts)
    assert vectors == [packed(vector_of(one)) for one in texts]
    assert [len(one["input"]) for one in provider.asked] == [64, 64, 22]
    assert {one["model"] for one in provider.asked} == {"small"}
    assert all(b"authorization" not in one for one in provider.headers)


async def test_the_key_comes_from_a_secret_or_a_private_file_and_is_told_to_nobody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)

    async def secret(name: str) -> str:
        assert name == "embeddings"
        return KEY

    def refuses(asked: dict[str, Any]) -> tuple[int, bytes]:
        return 401, json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode()

    async with Provider(good, good, refuses).running() as provider:
        of_file = provider.embedder(embedding_key_file=str(file))
        config = config_of(provider.port, embedding_key_secret="embeddings")
        of_secret = make_embedder(config, secret)
        assert of_secret is not None
        for one in (of_file, of_secret):
            await one.embed(["a"])
        with pytest.raises(BadRequest, match=r"401 \(wrong key \*\*\*\)") as refused:
            await of_file.embed(["a"])
        file.chmod(0o644)
        with pytest.raises(KeyFileRefused):
            await of_file.embed(["a"])
        file.chmod(0o600)
        file.write_text("two words")
        with pytest.raises(BadRequest, match="characters that no header may have"):
            await of_file.embed(["a"])
    assert [one[b"authorization"] for one in provider.headers] == [f"Bearer {KEY}".encode()] * 3
    said = capsys.readouterr()
    assert KEY not in str(refused.value) + said.out + said.err


BROKEN: list[tuple[Answer, float, str]] = [
    (lambda asked: (500, b""), 20.0, "it answered 500"),
    (lambda asked: (429, b'{"error": {"message": "slow down"}}'), 20.0, r"429 \(slow down\)"),
    (lambda asked: None, 20.0, "made no vectors"),
    (lambda asked: (0, b""), 1.0, "did not answer within 1 s"),
]


@pytest.mark.parametrize(("broken", "timeout_s", "why"), BROKEN)
async def test_what_may_pass_is_tried_again_but_not_for_ever(
    broken: Answer, timeout_s: float, why: str
) -> None:
    changed = {"embedding_timeout_s": timeout_s, "embedding_attempts_max": 2}
    async with Provider(broken, good).running() as provider:
        assert await provider.embedder(**changed).embed(["a"]) == [packed(vector_of("a"))]
    async with Provider(broken).running() as provider:
        with pytest.raises(EmbeddingFailed, match=why):
            await provider.embedder(**changed).embed(["a"])
    assert len(provider.asked) == 2


async def test_who_waits_for_its_turn_does_not_blame_the_provider() -> None:
    async with Provider(good).running() as provider:
        embedder = provider.embedder(embedding_timeout_s=1.0, embedding_attempts_max=1)
        assert isinstance(embedder, HttpEmbedder)
        others = [object() for _ in range(embedding._AT_ONCE)]
        for one in others:
            embedder._limit.acquire_on_behalf_of_nowait(one)
        made: list[bytes] = []

        async def embed() -> None:
            made.extend(await embedder.embed(["a"]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(embed)
            await trio.sleep(1.2)
            for one in others:
                embedder._limit.release_on_behalf_of(one)
    assert made == [packed(vector_of("a"))]


def answering(raw: object) -> Answer:
    return lambda asked: (200, raw if isinstance(raw, bytes) else json.dumps(raw).encode())


def one(*elements: Any, index: int = 0) -> dict[str, Any]:
    return {"index": index, "embedding": [*elements]}


@pytest.mark.parametrize(
    "raw",
    [
        b"<html>",
        b"[" * 100_000,
        {"data": []},
        {"data": [one(1.0), one(1.0)]},
        {"data": [one(1.0, index=1)]},
        {"data": [one()]},
        {"data": [one("1")]},
        {"data": [one(*[0.0] * 4_097)]},
    ],
)
async def test_an_answer_that_is_none_is_refused_at_once(raw: object) -> None:
    async with Provider(answering(raw)).running() as provider:
        with pytest.raises(EmbeddingFailed, match=r"127\.0\.0\.1:\d+ answered"):
            await provider.embedder().embed(["a"])
    assert len(provider.asked) == 1


async def test_an_answer_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_ANSWER_BYTES_MAX", 1_000)
    async with Provider(answering(b" " * 2_000)).running() as provider:
        with pytest.raises(EmbeddingFailed, match="more than 1000 bytes"):
            await provider.embedder().embed(["a"])


async def test_who_is_sent_elsewhere_does_not_go_there() -> None:
    """There the key would be told to somebody else."""
    async with Provider(lambda asked: (307, b""), good).running() as provider:
        with pytest.raises(BadRequest, match="it answered 307"):
            await provider.embedder().embed(["a"])
    assert len(provider.asked) == 1


async def test_nobody_there_is_told_as_such() -> None:
    async with Provider(good).running() as provider:
        embedder = provider.embedder(embedding_attempts_max=1)
    with pytest.raises(EmbeddingFailed, match="refused"):
        await embedder.embed(["a"])


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        ([], TooLarge),
        ([""], BadRequest),
        (["\ud800"], BadRequest),
        (["x" * (VECTOR_TEXT_BYTES_MAX + 1)], TooLarge),
        (["x"] * 1_001, TooLarge),
    ],
)
async def test_texts_have_bounds(texts: list[str], kind: type[SwarmError]) -> None:
    with pytest.raises(kind):
        await HttpEmbedder(config_of(1), None).embed(texts)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"embedding_model": ""}, "embedding_model must name the model"),
        ({"embedding_url": ""}, "embedding_url must be a URL"),
        ({"embedding_url": "ftp://host/"}, "embedding_url must be a URL"),
        ({"embedding_url": "https://me:pass@host/"}, "have no password"),
        ({"embedding_url": "https://host:99999/"}, "embedding_url is no URL"),
        ({"embedding_url": "https://api..host/"}, "embedding_url is no URL"),
        ({"embedding_url": "https://host/a b"}, "characters that no URL may have"),
        ({"embedding_key_file": "/a", "embedding_key_secret": "b"}, "not both"),
        ({"embedding_url": "http://host/", "embedding_key_secret": "b"}, "in clear: use https"),
    ],
)
def test_settings_that_do_not_go_together_are_named(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config_of(1, **changed)


def test_without_a_setting_there_is_nobody() -> None:
    assert make_embedder(VectorsConfig(embedding_url="nonsense"), no_secret) is None


# ---- a model on this host ----------------------------------------------------------------------


class _Model:
    """What `fastembed.TextEmbedding` offers."""

    made: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        if name == "unknown":
            raise ValueError("Model unknown is not supported")
        self.made.append(name)

    def embed(self, texts: list[str]) -> Any:
        return (vector_of(one) for one in texts)


async def test_a_local_model_is_loaded_once_and_only_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = types.ModuleType("fastembed")
    package.TextEmbedding = _Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastembed", package)
    config = VectorsConfig(embedder="local", embedding_model="tiny")
    check(config)
    embedder = make_embedder(config, no_secret)
    assert isinstance(embedder, LocalEmbedder)
    assert _Model.made == []
    for _ in range(2):
        assert await embedder.embed(["a", "bb"]) == [*map(packed, map(vector_of, ["a", "bb"]))]
    assert _Model.made == ["tiny"]
    with pytest.raises(EmbeddingFailed, match="cannot be loaded: Model unknown"):
        await LocalEmbedder("unknown").embed(["a"])


async def test_a_local_model_makes_vectors_of_many_texts_in_steps() -> None:
    """A node that stops waits for one step, not for all of them."""
    steps: list[int] = []
    embedder = LocalEmbedder("tiny")

    class Model:
        def embed(self, texts: list[str]) -> Any:
            steps.append(len(texts))
            if len(steps) == 2:
                trio.from_thread.run_sync(scope.cancel)
            return map(vector_of, texts)

    embedder._loaded = Model()
    with trio.CancelScope() as scope:
        await embedder.embed(["a"] * 1_000)
    assert scope.cancelled_caught
    assert steps == [16, 16]
    assert await embedder.embed(["a"] * 40) == [packed(vector_of("a"))] * 40


async def test_a_local_model_without_its_package_says_which_one_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fastembed", None)
    with pytest.raises(NoEmbedder, match="pip install fastembed"):
        await LocalEmbedder("tiny").embed(["a"])


# ---- collections of texts ------------------------------------------------------------------------


class _Fixed:
    def __init__(self, model: str) -> None:
        self.model = model

    async def embed(self, texts: list[str]) -> list[bytes]:
        return [packed(vector_of(one)) for one in texts]


async def test_a_collection_takes_texts_of_its_own_model_alone(tmp_path: Path) -> None:
    async with VectorSwarm(tmp_path).node("a", alone=True) as a:
        vectors = a.vectors
        with pytest.raises(NoEmbedder, match="makes no vectors of texts"):
            await vectors.create_for_texts("notes", None, Metric.L2, by="")
        vectors._embedder = _Fixed("small")  # type: ignore[assignment]
        made = await vectors.create_for_texts("notes", None, Metric.L2, by="ann")
        assert (made.spec.dimension, made.model) == (3, "small")
        await vectors.create("plain", 3, Metric.L2, by="")
        [vector] = await vectors.vectors_of("notes", ["aab"])
        await vectors.add("notes", [NewEntry("x", vector, {})], by="")
        assert [hit.id for hit in (await vectors.search("notes", vector, 1)).hits] == ["x"]
        with pytest.raises(NoEmbedder, match="is for no model, and this node has small"):
            await vectors.vectors_of("plain", ["a"])
        vectors._embedder = _Fixed("large")  # type: ignore[assignment]
        with pytest.raises(NoEmbedder, match="the model small, and this node has large"):
            await vectors.vectors_of("notes", ["a"])
