"""Settings of vector memory."""

from __future__ import annotations

from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from swarmd.base.errors import ConfigError
from swarmd.base.limits import MIB, VECTOR_BYTES_MAX, VECTOR_MODEL_BYTES_MAX

_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")


class VectorsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[vectors]"""

    # Bytes of vectors in all collections, above which this node takes no more ("too_large"). Each
    # node holds all of them in memory, with what belongs to them, and once more on its disk.
    bytes_max: Annotated[int, Meta(ge=MIB, le=VECTOR_BYTES_MAX)] = 1024 * MIB
    # Longest that a search waits for what this node knows to be in its index. What is not then is
    # told with the answer ("behind").
    settle_timeout_s: Annotated[float, Meta(ge=0, le=60)] = 2.0
    # What this node's index is. "embedded": files in its data folder. "pgvector": a schema of its
    # own in a PostgreSQL database with the extension pgvector, by the package psycopg, which is
    # installed beside swarmd (`pip install 'swarmd[pgvector]'`). Nodes may differ.
    engine: Literal["embedded", "pgvector"] = "embedded"
    # Where PostgreSQL listens: a host's name or address, or the folder of its socket, such as
    # "/run/postgresql".
    pgvector_host: str = ""
    pgvector_port: Annotated[int, Meta(ge=1, le=65_535)] = 5432
    # The database, and the user that owns it.
    pgvector_database: str = "swarmd"
    pgvector_user: str = "swarmd"
    # The user's password: the name of a secret of the swarm (`swarmctl secret set`), which this
    # node must hold keys for; or a file that only the daemon's user may read. Not both; neither
    # where the server asks for none.
    pgvector_password_secret: str = ""
    pgvector_password_file: str = ""
    # "verify": TLS, with a certificate that names the host. "off": only to this host. Through a
    # socket's folder there is no TLS.
    pgvector_tls: Literal["verify", "off"] = "verify"
    # Certificates that the server's is checked against. Empty: those that this system trusts.
    pgvector_ca_file: str = ""
    # "exact": all entries are looked at, and none is missed. "hnsw": an index that misses some, for
    # very many entries of up to 2,000 elements; needs pgvector 0.8.
    pgvector_index: Literal["exact", "hnsw"] = "exact"
    # Longest wait for a connection, and for one search or batch.
    pgvector_connect_timeout_s: Annotated[float, Meta(ge=1, le=60)] = 5.0
    pgvector_timeout_s: Annotated[float, Meta(ge=1, le=600)] = 30.0
    # Who makes vectors of texts on this node. Empty: nobody, callers give vectors. "http": a
    # provider with the API of OpenAI's embeddings. "local": a model on this host, by the package
    # fastembed, which is installed beside swarmd.
    embedder: Literal["", "http", "local"] = ""
    # The model's name, as the provider or the package has it. A collection keeps the name of the
    # model it was made with, and takes texts only on nodes that have the same.
    embedding_model: str = ""
    # Where the provider is asked, such as "https://api.openai.com/v1/embeddings".
    embedding_url: str = ""
    # The provider's key: the name of a secret of the swarm (`swarmctl secret set`), which this node
    # must hold keys for; or a file that only the daemon's user may read. Not both.
    embedding_key_secret: str = ""
    embedding_key_file: str = ""
    # Longest wait for one answer of the provider, and how often it is asked at most.
    embedding_timeout_s: Annotated[float, Meta(gt=0, le=300)] = 30.0
    embedding_attempts_max: Annotated[int, Meta(ge=1, le=10)] = 3


def check(config: VectorsConfig) -> None:
    """Raises ConfigError: settings that do not go together, by name."""
    if config.engine == "pgvector":
        _check_database(config)
    if not config.embedder:
        return
    if not 1 <= len(config.embedding_model.encode()) <= VECTOR_MODEL_BYTES_MAX:
        raise ConfigError(
            f"vectors.embedder is {config.embedder!r}; vectors.embedding_model must name the "
            f"model, in 1 to {VECTOR_MODEL_BYTES_MAX} bytes"
        )
    if config.embedder == "http":
        _check_provider(config)


def _check_database(config: VectorsConfig) -> None:
    host = config.pgvector_host
    named = {"host": host, "database": config.pgvector_database, "user": config.pgvector_user}
    for name, value in named.items():
        if not value or not value.isprintable():
            raise ConfigError(
                f'vectors.engine is "pgvector"; vectors.pgvector_{name} must say which {name}'
            )
    if "," in host:
        raise ConfigError("vectors.pgvector_host names one host, or one folder")
    if config.pgvector_password_secret and config.pgvector_password_file:
        raise ConfigError(
            "give vectors.pgvector_password_secret or pgvector_password_file, not both"
        )
    is_local = host in _LOCAL_HOSTS or host.startswith("/")
    if config.pgvector_tls == "off" and not is_local:
        raise ConfigError(
            f"vectors.pgvector_tls is off, and {host} is another host: what is kept would go over "
            'the network in clear; leave it "verify", and name the server\'s certificate '
            "authority in vectors.pgvector_ca_file"
        )


def _check_provider(config: VectorsConfig) -> None:
    url = config.embedding_url
    try:
        where = urlsplit(url)
        host, _ = where.hostname, where.port
        (host or "").encode("idna")  # As it is looked up.
    except ValueError as error:
        raise ConfigError(f"vectors.embedding_url is no URL: {error}") from error
    if where.scheme not in ("http", "https") or not host or where.username is not None:
        raise ConfigError(
            "vectors.embedding_url must be a URL like https://host/v1/embeddings, and have no "
            "password in it"
        )
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("vectors.embedding_url has characters that no URL may have")
    if config.embedding_key_secret and config.embedding_key_file:
        raise ConfigError("give vectors.embedding_key_secret or embedding_key_file, not both")
    has_key = config.embedding_key_secret or config.embedding_key_file
    if has_key and where.scheme == "http" and host not in _LOCAL_HOSTS:
        raise ConfigError(
            "vectors.embedding_url would carry the key over the network in clear: use https"
        )
