"""Where settings come from, and what a mistake in them is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swarmd.base import folders
from swarmd.base.errors import ConfigError
from swarmd.cli.config_text import comments_of, documented, render_example, render_reference
from swarmd.config import SECTIONS, Config, Init, Join, load

ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, text: str) -> Path:
    path = folder / "swarmd.toml"
    path.write_text(text)
    return path


def test_defaults_alone_make_a_node() -> None:
    config = load(environ={"HOME": "/home/u"})
    assert config.mesh.port == 7575
    assert config.node_name
    assert {one.source for one in config.describe()} == {"default"}


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = write(tmp_path, "[mesh]\nport = 1\nmdns = false\n\n[node]\nname = 'file'\n")
    environ = {"SWARMD_MESH_PORT": "2", "SWARMD_NODE_NAME": "environ"}
    config = load(file=path, environ=environ, flags={"mesh.port": 3})
    assert (config.mesh.port, config.node.name, config.mesh.mdns) == (3, "environ", False)
    sources = {one.key: one.source for one in config.describe()}
    assert sources["mesh.port"] == "flag"
    assert sources["node.name"] == "environment SWARMD_NODE_NAME"
    assert sources["mesh.mdns"] == f"{path}:3"
    assert sources["mesh.bind"] == "default"


def test_text_is_read_as_the_settings_type() -> None:
    environ = {
        "SWARMD_MESH_SEEDS": "host1:7575, host2",
        "SWARMD_MESH_MDNS": "false",
        "SWARMD_SWIM_PROBE_INTERVAL_S": "2.5",
        "SWARMD_NODE_LOG_FORMAT": "json",
    }
    config = load(environ=environ, flags={"mesh.bind": ["127.0.0.1"]})
    assert tuple(config.mesh.seeds) == ("host1:7575", "host2")
    assert config.mesh.mdns is False
    assert config.swim.probe_interval_s == 2.5
    assert config.node.log_format == "json"


def test_tags_are_a_table_in_the_file_and_pairs_in_text(tmp_path: Path) -> None:
    for text in ("[node]\ntags = {rack = 'a', zone = 'x=1'}", "[node.tags]\nrack='a'\nzone='x=1'"):
        config = load(file=write(tmp_path, text), environ={})
        assert config.node.tags == {"rack": "a", "zone": "x=1"}
    config = load(environ={"SWARMD_NODE_TAGS": "rack=a, zone = x=1"})
    assert config.node.tags == {"rack": "a", "zone": "x=1"}
    assert load(environ={}, flags={"node.tags": ""}).node.tags == {}


def test_the_file_is_found_by_variable_or_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "[mesh]\nport = 9\n")
    assert load(environ={"SWARMD_CONFIG": str(path)}).mesh.port == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mesh]\nprot = 1\n", ":2: unknown key 'prot' in [mesh]; did you mean port?"),
        ("[mehs]\nport = 1\n", ":1: unknown section [mehs]; did you mean mesh?"),
        ("mesh = 1\n", ":1: mesh is a section"),
        ("[mesh]\nport = 'x'\n", ":2: mesh.port = 'x': expected `int`, got `str`"),
        ("[mesh]\nport = 70000\n", "mesh.port is 70000; it must be in 0..65535"),
        ("[mesh]\nport =\n", "is not TOML"),
        ("[node]\nlog_level = 'loud'\n", "node.log_level = 'loud': invalid enum value"),
        ("[gateway]\nrequests_max = 0\n", "gateway.requests_max = 0: expected `int` >= 1"),
        ("[swim]\nprobe_timeout_s = 5.0\n", "must be less than"),
        ("[node]\ntags = ['a']\n", "node.tags = ['a']: expected `object`"),
        ("[node]\ntags = {rack = 1}\n", "expected `str`, got `int`"),
        ("[node]\ntags = {'a b' = 'c'}\n", "swarmd.toml:2: node.tags: 'a b' is no key of a tag"),
        ("[gateway]\nsocket_group_role = 'king'\n", "must be one of viewer, submitter, operator"),
        ("[gateway]\nlisten = ['0.0.0.0']\n", "'0.0.0.0' is no ADDRESS:PORT, like"),
    ],
)
def test_mistakes_in_the_file_name_line_key_and_expectation(
    tmp_path: Path, text: str, says: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file=path, environ={})
    assert says in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("environ", "flags", "says"),
    [
        ({"SWARMD_MESH_PROT": "1"}, {}, "did you mean SWARMD_MESH_PORT?"),
        ({"SWARMD_MESH_PORT": "x"}, {}, "environment SWARMD_MESH_PORT: mesh.port = 'x'"),
        ({"SWARMD_NODE_TAGS": "rack"}, {}, "SWARMD_NODE_TAGS: node.tags = 'rack': write KEY=VALUE"),
        ({}, {"mesh.prot": "1"}, "unknown key 'prot'"),
        ({}, {"port": "1"}, "unknown section 'port'"),
        ({}, {"gateway.socket": "/" + "x" * 200}, "longer than the 107 bytes"),
    ],
)
def test_mistakes_elsewhere_name_their_source(
    environ: dict[str, str], flags: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ=environ, flags=flags)
    assert says in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(file=tmp_path / "none.toml", environ={})


def test_a_token_never_shows() -> None:
    assert "secret" not in repr(Join("secret"))
    assert repr(Init("lab")) == "Init(name='lab')"


def test_folders_for_root_and_for_everybody_else() -> None:
    assert str(folders.data_folder({}, 0)) == "/var/lib/swarmd"
    assert str(folders.config_folder({}, 0)) == "/etc/swarmd"
    assert str(folders.runtime_folder({}, 0)) == "/run/swarmd"
    xdg = {"HOME": "/h", "XDG_DATA_HOME": "/d", "XDG_RUNTIME_DIR": "/r"}
    assert str(folders.data_folder(xdg, 1000)) == "/d/swarmd"
    assert str(folders.runtime_folder(xdg, 1000)) == "/r/swarmd"
    assert str(folders.config_folder(xdg, 1000)) == "/h/.config/swarmd"
    relative = {"HOME": "/h", "XDG_RUNTIME_DIR": "r"}
    assert str(folders.runtime_folder(relative, 1000)) == "/h/.local/state/swarmd"


# ---- every setting is documented ------------------------------------------------------


def test_the_example_file_holds_every_key_at_its_default(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "swarmd.example.toml").read_text()
    assert text == render_example(), "run: swarmd config example > configs/swarmd.example.toml"
    config = load(file=write(tmp_path, text), environ={})
    assert all(getattr(config, name) == kind() for name, kind in SECTIONS.items())
    assert len(config.sources) == len(list(documented()))


def test_the_reference_page_holds_every_key() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert render_reference() in text, "put the output of `swarmd config reference` there"


def test_every_section_is_gathered() -> None:
    names = set(Config.__dataclass_fields__) - {"sources"}
    assert names == set(SECTIONS)


def test_comments_belong_to_the_fields_below_them() -> None:
    source = (
        "class C:\n"
        '    """Doc."""\n\n'
        "    # One\n    # line.\n"
        "    a: int = 1\n"
        "    b: int = 2\n"
        "    # Other.\n"
        "    c: int = 3\n\n"
        "    d: int = 4\n"
    )
    assert comments_of(source) == {"a": "One line.", "b": "One line.", "c": "Other.", "d": ""}
