"""Vectors of texts: asked of a provider over HTTP, or made by a model on this host.

What a provider answers is judged like any foreign bytes. Its key is read when it is needed, sent
over TLS or to this host alone, and stands in no message and no log.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import h11
import msgspec
import trio

from swarmd.base.errors import (
    BadRequest,
    EmbeddingFailed,
    MalformedMessage,
    NoEmbedder,
    TooLarge,
)
from swarmd.base.limits import (
    MIB,
    VECTOR_BATCH_CHANGES_MAX,
    VECTOR_DIMENSION_MAX,
    VECTOR_TEXT_BYTES_MAX,
)
from swarmd.identity.keys import read_private_file
from swarmd.memory.vector.config import VectorsConfig
from swarmd.memory.vector.shapes import packed
from swarmd.observe.log import get_logger, hide

_TEXTS_MAX: Final = 64
_LOCAL_TEXTS_MAX: Final = 16
_ANSWER_BYTES_MAX: Final = 16 * MIB
_READ_BYTES: Final = 64 * 1024
_PAUSE_S: Final = 0.5
_PAUSE_MAX_S: Final = 8.0
_AT_ONCE: Final = 4
_TOLD_CHARS_MAX: Final = 200
_PORTS: Final = {"http": 80, "https": 443}

_log = get_logger("memory")

ReadKey = Callable[[], Awaitable[str]]


class Embedder(Protocol):
    """What makes vectors of texts. `model`: those of another model are not comparable."""

    @property
    def model(self) -> str: ...

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """A vector of each text, as `shapes.packed` makes them, all of one dimension.

        Raises:
            BadRequest and its kinds: these texts, or the settings, are to blame.
            EmbeddingFailed: it cannot be done now.

        Cancellation: nothing is left behind.
        """
        ...


class _Vector(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float]


class _Answer(msgspec.Struct, frozen=True):
    data: list[_Vector]


class _Refusal(msgspec.Struct, frozen=True):
    message: str = ""


class _Refused(msgspec.Struct, frozen=True):
    error: _Refusal = _Refusal()


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_REFUSED: Final = msgspec.json.Decoder(_Refused)


def decode_embeddings(raw: bytes, count: int) -> list[bytes]:
    """The vectors that a provider answered for so many texts, in their order.

    Raises:
        MalformedMessage: it is something else.
    """
    try:
        answer = _ANSWER.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise MalformedMessage(f"no embeddings: {error}") from error
    found = {one.index: one.embedding for one in answer.data}
    sizes = {len(one) for one in found.values()}
    if sorted(found) != [*range(count)] or len(answer.data) != count or len(sizes) != 1:
        raise MalformedMessage(f"not {count} embeddings of one dimension")
    if not 1 <= sizes.pop() <= VECTOR_DIMENSION_MAX:
        raise MalformedMessage(f"a dimension beyond {VECTOR_DIMENSION_MAX}")
    return [packed(found[number]) for number in range(count)]


class HttpEmbedder:
    """Asks a provider. Args: see `VectorsConfig`; `read_key` is None where it takes none."""

    def __init__(self, config: VectorsConfig, read_key: ReadKey | None) -> None:
        self._config, self._read_key = config, read_key
        self._where = urlsplit(config.embedding_url)
        self._name = self._where.netloc
        self._limit = trio.CapacityLimiter(_AT_ONCE)
        self._tls: ssl.SSLContext | None = None

    @property
    def model(self) -> str:
        return self._config.embedding_model

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """See `Embedder`."""
        check_texts(texts)
        vectors: list[bytes] = []
        for begin in range(0, len(texts), _TEXTS_MAX):
            vectors += await self._ask(texts[begin : begin + _TEXTS_MAX])
        if len({len(one) for one in vectors}) != 1:
            raise EmbeddingFailed(f"{self._name} gave vectors of several dimensions")
        return vectors

    async def _ask(self, texts: Sequence[str]) -> list[bytes]:
        key = "" if self._read_key is None else await self._read_key()
        body = msgspec.json.encode(
            {"model": self.model, "input": list(texts), "encoding_format": "float"}
        )
        why = ""
        for attempt in range(self._config.embedding_attempts_max):
            if attempt:
                await trio.sleep(min(_PAUSE_S * 2 ** (attempt - 1), _PAUSE_MAX_S))
            try:
                # To wait for a turn is not the provider's fault.
                async with self._limit:
                    with trio.fail_after(self._config.embedding_timeout_s):
                        status, raw = await self._exchange(body, key)
            except trio.TooSlowError:
                why = f"it did not answer within {self._config.embedding_timeout_s:g} s"
                continue
            except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
                why = _why_broken(error)
                continue
            if status == 200:
                try:
                    return decode_embeddings(raw, len(texts))
                except MalformedMessage as error:
                    raise EmbeddingFailed(f"{self._name} answered {error.message}") from error
            why = f"it answered {status}{_told(raw, key)}"
            if status != 429 and status < 500:
                raise BadRequest(
                    f"{self._name} refuses: {why}; nothing changed: look at the settings "
                    "vectors.embedding_*"
                )
        raise EmbeddingFailed(f"{self._name} made no vectors: {why}; nothing changed")

    async def _exchange(self, body: bytes, key: str) -> tuple[int, bytes]:
        """One request on a connection of its own: its status, and what was answered."""
        host = self._where.hostname or ""
        if self._where.scheme == "https" and self._tls is None:
            self._tls = await trio.to_thread.run_sync(ssl.create_default_context)
        stream: trio.abc.Stream = await trio.open_tcp_stream(
            host, self._where.port or _PORTS[self._where.scheme]
        )
        if self._tls is not None:
            stream = trio.SSLStream(stream, self._tls, server_hostname=host, https_compatible=True)
        async with stream:
            connection = h11.Connection(h11.CLIENT)
            target = (self._where.path or "/") + (
                f"?{self._where.query}" if self._where.query else ""
            )
            headers = [
                ("Host", self._name),
                ("Content-Type", "application/json"),
                ("Accept", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            if key:
                headers.append(("Authorization", f"Bearer {key}"))
            request = h11.Request(method="POST", target=target, headers=headers)
            for event in (request, h11.Data(data=body), h11.EndOfMessage()):
                sent = connection.send(event)
                await stream.send_all(sent or b"")
            return await _receive(connection, stream)


async def _receive(connection: h11.Connection, stream: trio.abc.Stream) -> tuple[int, bytes]:
    status, parts, size = 0, [], 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > _ANSWER_BYTES_MAX:
                raise EmbeddingFailed(f"an answer of more than {_ANSWER_BYTES_MAX} bytes")
            parts.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return status, b"".join(parts)


def _told(raw: bytes, key: str) -> str:
    """What a provider says of its refusal, without the key, which some of them repeat."""
    try:
        text = _REFUSED.decode(raw).error.message
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError):
        return ""
    if key:
        text = text.replace(key, "***")
    text = "".join(c if c.isprintable() else " " for c in text)[:_TOLD_CHARS_MAX]
    return f" ({text})" if text else ""


def _why_broken(error: Exception) -> str:
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):  # One for each address of the host.
        cause = cause.exceptions[0]
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted here ({cause.verify_message})"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or "the connection broke"


class LocalEmbedder:
    """A model on this host, loaded with the first text, by the package `fastembed`."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._loaded: Any = None
        # One at a time: each uses all cores.
        self._turn = trio.Lock()

    @property
    def model(self) -> str:
        return self._model

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """See `Embedder`."""
        check_texts(texts)
        vectors: list[bytes] = []
        async with self._turn:
            # A few at a time: a thread cannot be cancelled, and would hold up a node that stops.
            for begin in range(0, len(texts), _LOCAL_TEXTS_MAX):
                some = list(texts[begin : begin + _LOCAL_TEXTS_MAX])
                vectors += await trio.to_thread.run_sync(self._embed, some)
        return vectors

    def _embed(self, texts: list[str]) -> list[bytes]:
        if self._loaded is None:
            self._loaded = self._load()
        try:
            return [packed(map(float, one)) for one in self._loaded.embed(texts)]
        except Exception as error:
            raise EmbeddingFailed(f"the model {self._model} failed: {error}") from error

    def _load(self) -> Any:
        try:
            from fastembed import TextEmbedding
        except ImportError as error:
            raise NoEmbedder(
                'vectors.embedder is "local", and the package fastembed is not installed beside '
                "swarmd: nothing changed; install it (`pip install fastembed`) and restart the "
                "daemon, or give vectors instead of texts"
            ) from error
        _log.info("a model that makes vectors is loaded", model=self._model)
        try:
            return TextEmbedding(self._model)
        except Exception as error:
            raise EmbeddingFailed(f"the model {self._model} cannot be loaded: {error}") from error


def check_texts(texts: Sequence[str]) -> None:
    """Raises BadRequest, TooLarge."""
    if not 1 <= len(texts) <= VECTOR_BATCH_CHANGES_MAX:
        raise TooLarge(f"give 1 to {VECTOR_BATCH_CHANGES_MAX} texts at once")
    for text in texts:
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise BadRequest("a text is no valid Unicode: nothing changed") from error
        if not size:
            raise BadRequest("a text is empty: nothing changed")
        if size > VECTOR_TEXT_BYTES_MAX:
            raise TooLarge(
                f"a text of {size} bytes: nothing changed; give {VECTOR_TEXT_BYTES_MAX} at most, "
                "and cut longer ones into entries of their own"
            )


def make_embedder(
    config: VectorsConfig, read_secret: Callable[[str], Awaitable[str]]
) -> Embedder | None:
    """What the settings name, which `config.check` found sound; None: nothing.

    Args:
        read_secret: gives the value of a secret of the swarm.
    """
    if not config.embedder:
        return None
    if config.embedder == "local":
        return LocalEmbedder(config.embedding_model)
    secret, file = config.embedding_key_secret, config.embedding_key_file

    async def read_key() -> str:
        if secret:
            return _checked_key(await read_secret(secret))
        raw = await trio.to_thread.run_sync(
            lambda: read_private_file(Path(file).expanduser(), given=True)
        )
        key = _checked_key(raw.decode(errors="replace").strip())
        hide("vectors.embedding_key_file", key)
        return key

    return HttpEmbedder(config, read_key if secret or file else None)


def _checked_key(key: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise BadRequest(
            "the key of vectors.embedding_* is empty, or has characters that no header may have: "
            "nothing changed"
        )
    return key
