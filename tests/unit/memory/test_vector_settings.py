"""Which index a node has, and which settings of it are refused before anything is opened."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from swarmd.base.errors import ConfigError, NotFound, VectorDatabaseUnavailable
from swarmd.base.ids import NodeId
from swarmd.memory.vector import opening
from swarmd.memory.vector.config import VectorsConfig, check
from swarmd.memory.vector.opening import ca_file_of, index_opener, open_pgvector, schema_of

ME = NodeId(b"a" * 32)


def config(**changes: object) -> VectorsConfig:
    given = {"engine": "pgvector", "pgvector_host": "db.lan", **changes}
    return VectorsConfig(**given)  # type: ignore[arg-type]


async def no_secret(name: str) -> str:
    raise NotFound(f"there is no secret {name}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pgvector_host": ""}, "pgvector_host must say which host"),
        ({"pgvector_database": ""}, "pgvector_database must say which database"),
        ({"pgvector_user": "a\nb"}, "pgvector_user must say which user"),
        ({"pgvector_host": "a,b"}, "names one host"),
        ({"pgvector_tls": "off"}, "over the network in clear"),
        ({"pgvector_password_secret": "x", "pgvector_password_file": "y"}, "not both"),
    ],
)
def test_settings_that_do_not_go_together_are_named(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check(config(**changes))


def test_what_goes_together_passes() -> None:
    check(config())
    check(config(pgvector_host="127.0.0.1", pgvector_tls="off"))
    check(config(pgvector_host="/run/postgresql", pgvector_tls="off"))
    # Of an index that is not asked for nothing is looked at.
    check(config(engine="embedded", pgvector_host="", pgvector_tls="off"))


def test_a_node_without_the_driver_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'swarmd\[pgvector\]'"):
        index_opener(config(), Path("/nowhere"), ME, no_secret)
    index_opener(config(engine="embedded"), Path("/nowhere"), ME, no_secret)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pgvector_password_secret": "db"}, "there is no secret db"),
        ({"pgvector_password_file": "/nowhere/password"}, "no key file /nowhere/password"),
    ],
)
async def test_a_password_that_cannot_be_read_is_named(
    changes: dict[str, object], told: str
) -> None:
    with pytest.raises(VectorDatabaseUnavailable, match=told):
        async with open_pgvector(config(**changes), ME, no_secret):
            pass


async def test_a_password_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2")
    file.chmod(0o644)
    with pytest.raises(VectorDatabaseUnavailable, match="chmod 600") as told:
        async with open_pgvector(config(pgvector_password_file=str(file)), ME, no_secret):
            pass
    assert "hunter2" not in str(told.value)
    file.write_text("\n")
    file.chmod(0o600)
    with pytest.raises(VectorDatabaseUnavailable, match="no password in"):
        async with open_pgvector(config(pgvector_password_file=str(file)), ME, no_secret):
            pass


def test_nodes_have_schemas_of_their_own_whose_names_a_server_does_not_cut() -> None:
    names = {schema_of(NodeId(bytes([n]) * 32)) for n in range(9)}
    assert len(names) == 9
    assert all(len(name) <= 63 and name.isidentifier() for name in names)


def test_the_servers_certificate_is_checked_wherever_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ca_file_of(config(pgvector_ca_file="/a/ca.pem")) == "/a/ca.pem"
    assert ca_file_of(config(pgvector_host="/run/postgresql")) == ""
    assert ca_file_of(config(pgvector_host="127.0.0.1", pgvector_tls="off")) == ""
    (bundle := tmp_path / "bundle.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    monkeypatch.setattr(opening, "_TRUSTED", ("/nowhere", str(bundle)))
    assert ca_file_of(config()) == str(bundle)
    monkeypatch.setattr(opening, "_TRUSTED", ())
    with pytest.raises(VectorDatabaseUnavailable, match=r"set vectors\.pgvector_ca_file"):
        ca_file_of(config())
