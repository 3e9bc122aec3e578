"""One frozen Config out of flags, environment, TOML and defaults, in that order of rank.

Each room keeps its own section in its `config.py`; this module only gathers them. Every
value remembers where it came from, so that `swarmd config show` can say it. Any mistake is a
`ConfigError` of one line that names the place, the key and what was expected; an unknown key
is refused (a typo that is silently ignored is a setting that silently does not apply).
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec

from swarmd.agents.config import AgentsConfig
from swarmd.audit.config import AuditConfig
from swarmd.base import folders
from swarmd.base.errors import BadRequest, ConfigError, TooLarge
from swarmd.base.limits import NAME_BYTES_MAX
from swarmd.gateway.config import GatewayConfig
from swarmd.memory.vector.config import VectorsConfig
from swarmd.memory.vector.config import check as check_vectors
from swarmd.mesh.bus.config import BusConfig
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.swim.config import SwimConfig, settle
from swarmd.mesh.swim.tags import checked_tags
from swarmd.state.blobs.config import BlobsConfig
from swarmd.state.crdt.config import CrdtConfig
from swarmd.state.raft.config import RaftConfig
from swarmd.tasks.config import TasksConfig

ENV_PREFIX: Final = "SWARMD_"
# Read elsewhere: the file to load, and the ways to give a token.
ENV_RESERVED: Final = frozenset({"SWARMD_CONFIG", "SWARMD_JOIN_TOKEN"})
SOCKET_PATH_BYTES_MAX: Final = 107


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[node]"""

    # Name shown to people and given to commands; empty is the host's name. While several living
    # members carry one name, commands take their ids only. `swarmctl node list` keeps the name that
    # the node was admitted with.
    name: Annotated[str, msgspec.Meta(max_length=NAME_BYTES_MAX)] = ""
    # What members are told of this node besides, such as { rack = "a" }; `swarmctl node tags`
    # shows and changes it. Nothing is decided by it. At most 16, and 144 bytes with 5 for each:
    # they are in all news of this node.
    tags: dict[str, str] = {}
    # Folder of the node's key, journals, blobs and agents; one per daemon. Empty:
    # /var/lib/swarmd as root, otherwise $XDG_DATA_HOME/swarmd.
    data_folder: str = ""
    # File with the key that all of the data folder is sealed under, made by `swarmd data-key new`
    # and kept elsewhere: a systemd credential, a USB stick. Empty: all is in clear. A folder in
    # clear is refused with a key (`swarmd data-key seal` seals it), and a sealed one without its
    # key.
    data_key_file: str = ""
    # Folder where `swarmd --init` writes the admin and recovery keys, outside the data folder,
    # so that a copied data folder admits nobody. Empty: /etc/swarmd as root, otherwise
    # $XDG_CONFIG_HOME/swarmd.
    keys_folder: str = ""
    # debug shows every protocol step and costs speed; warning and error hide what one wants
    # when looking back.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # text for people, json for log collectors.
    log_format: Literal["text", "json"] = "text"


SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "node": NodeConfig,
    "mesh": MeshConfig,
    "swim": SwimConfig,
    "bus": BusConfig,
    "raft": RaftConfig,
    "crdt": CrdtConfig,
    "vectors": VectorsConfig,
    "blobs": BlobsConfig,
    "agents": AgentsConfig,
    "tasks": TasksConfig,
    "audit": AuditConfig,
    "gateway": GatewayConfig,
}


@dataclass(frozen=True, slots=True)
class Init:
    """Start mode: make a new swarm called `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Join:
    """Start mode: join with the token in `token` (its text, already read and stripped)."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ask:
    """Start mode: join without a token, once an admin has approved it.

    `swarm` is the swarm's fingerprint as a person typed it; empty has the person asked.
    """

    swarm: str = ""


@dataclass(frozen=True, slots=True)
class Resume:
    """Start mode: go on with what the data folder holds."""


StartMode = Init | Join | Ask | Resume


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting of the node. `sources` maps "section.key" to its origin, if not default."""

    node: NodeConfig = field(default_factory=NodeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    swim: SwimConfig = field(default_factory=SwimConfig)
    bus: BusConfig = field(default_factory=BusConfig)
    raft: RaftConfig = field(default_factory=RaftConfig)
    crdt: CrdtConfig = field(default_factory=CrdtConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    blobs: BlobsConfig = field(default_factory=BlobsConfig)
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def node_name(self) -> str:
        return self.node.name or socket.gethostname()

    @property
    def data_folder(self) -> Path:
        return (
            Path(self.node.data_folder).expanduser()
            if self.node.data_folder
            else (folders.data_folder())
        )

    @property
    def data_key_file(self) -> Path | None:
        given = self.node.data_key_file
        return Path(given).expanduser() if given else None

    @property
    def keys_folder(self) -> Path:
        return (
            Path(self.node.keys_folder).expanduser()
            if self.node.keys_folder
            else (folders.config_folder())
        )

    @property
    def socket_path(self) -> Path:
        given = self.gateway.socket
        return Path(given).expanduser() if given else folders.runtime_folder() / "swarmd.sock"

    def describe(self) -> list[Setting]:
        """Every setting in the order of the sections, with its source."""
        return [
            Setting(key, getattr(getattr(self, section), name), self.sources.get(key, "default"))
            for section, kind in SECTIONS.items()
            for name in kind.__struct_fields__
            for key in [f"{section}.{name}"]
        ]


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as one source gave it; `text` if it still is a string to be read."""

    value: Any
    source: str
    is_text: bool


def load(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Read the configuration: flag > environment > file > default.

    Args:
        file: TOML file; it must exist. None: $SWARMD_CONFIG, else swarmd.toml in the
            configuration folder if there is one.
        environ: SWARMD_<SECTION>_<KEY> variables; None is the process's environment.
        flags: "section.key" -> value; strings are read as in the environment.

    Raises:
        ConfigError: one sentence that names the source, the key and what was expected.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, _Given] = {}
    path = _file_of(file, environ)
    if path is not None:
        given |= _from_file(path)
    given |= _from_environ(environ)
    for key, value in (flags or {}).items():
        _check_key(key, "flag --set")
        given[key] = _Given(value, "flag", isinstance(value, str))
    sections = {name: _section(name, kind, given) for name, kind in SECTIONS.items()}
    config = Config(**sections, sources={key: entry.source for key, entry in given.items()})
    _check_relations(config)
    return config


def _file_of(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    if file is None and environ.get("SWARMD_CONFIG"):
        file = Path(environ["SWARMD_CONFIG"])
    if file is not None:
        return file
    path = folders.config_folder(environ) / "swarmd.toml"
    return path if path.exists() else None


def _from_file(path: Path) -> dict[str, _Given]:
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # Not UTF-8, or an integer of 5,000 digits, too.
        raise ConfigError(f"{path} is not TOML: {error}") from error
    given: dict[str, _Given] = {}
    for section, table in tables.items():
        place = f"{path}{_line_of(text, section, None)}"
        if section not in SECTIONS:
            hint = _suggest(section, SECTIONS)
            raise ConfigError(f"{place}: unknown section [{section}]; {hint}")
        if not isinstance(table, dict):
            raise ConfigError(f"{place}: {section} is a section: write [{section}] above its keys")
        for name, value in table.items():
            source = f"{path}{_line_of(text, section, name)}"
            _check_key(f"{section}.{name}", source)
            given[f"{section}.{name}"] = _Given(value, source, False)
    return given


def _line_of(text: str, section: str, key: str | None) -> str:
    """ ":LINE" of a section or key in TOML text, or "" for spellings this does not follow."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            current = header[1]
        assigned = re.match(r"\s*([\w-]+)\s*=", line)
        wanted = ("", section) if key is None else (section, key)
        if assigned and (current, assigned[1]) == wanted:
            return f":{number}"
        if key is None and current == section:
            return f":{number}"
    return ""


def _from_environ(environ: Mapping[str, str]) -> dict[str, _Given]:
    known = {
        f"{ENV_PREFIX}{section}_{name}".upper(): f"{section}.{name}"
        for section, kind in SECTIONS.items()
        for name in kind.__struct_fields__
    }
    given: dict[str, _Given] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable in ENV_RESERVED:
            continue
        if variable not in known:
            hint = _suggest(variable, [*known, *ENV_RESERVED])
            raise ConfigError(f"unknown environment variable {variable}; {hint}")
        given[known[variable]] = _Given(environ[variable], f"environment {variable}", True)
    return given


def _check_key(key: str, place: str) -> None:
    section, _, name = key.partition(".")
    if section not in SECTIONS:
        raise ConfigError(f"{place}: unknown section {section!r}; {_suggest(section, SECTIONS)}")
    names = SECTIONS[section].__struct_fields__
    if name not in names:
        raise ConfigError(f"{place}: unknown key {name!r} in [{section}]; {_suggest(name, names)}")


def _suggest(wrong: str, known: Sequence[str] | Mapping[str, object]) -> str:
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "`swarmd config show` lists every key"


def _section(section: str, kind: type[msgspec.Struct], given: Mapping[str, _Given]) -> Any:
    values: dict[str, Any] = {}
    for item in msgspec.structs.fields(kind):
        entry = given.get(f"{section}.{item.name}")
        if entry is not None:
            values[item.name] = _value(f"{section}.{item.name}", item.type, entry)
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        sources = sorted({given[f"{section}.{name}"].source for name in values})
        raise ConfigError(f"[{section}]: {error} ({', '.join(sources)})") from error


def _value(key: str, kind: Any, entry: _Given) -> Any:
    raw = entry.value
    if entry.is_text and (_is_list(kind) or _is_table(kind)):
        raw = [part.strip() for part in raw.split(",") if part.strip()]
    if entry.is_text and _is_table(kind):
        if not all("=" in part for part in raw):
            raise ConfigError(
                f"{entry.source}: {key} = {entry.value!r}: write KEY=VALUE, separated by commas"
            )
        raw = {name.strip(): value.strip() for name, _, value in (x.partition("=") for x in raw)}
    try:
        converted = msgspec.convert(raw, kind, strict=not entry.is_text)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at ")[0]
        reason = reason[:1].lower() + reason[1:]
        raise ConfigError(f"{entry.source}: {key} = {entry.value!r}: {reason}") from error
    return msgspec.to_builtins(converted)


def _is_table(kind: Any) -> bool:
    return get_origin(kind) is dict


def _is_list(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_origin(kind) in (list, tuple) or kind in (list, tuple)


def _check_relations(config: Config) -> None:
    config.mesh.check()
    settle(config.swim)
    check_vectors(config.vectors)
    try:
        checked_tags(config.node.tags)
    except (BadRequest, TooLarge) as error:
        source = config.sources.get("node.tags", "default")
        raise ConfigError(f"{source}: node.tags: {error.message}") from error
    path = str(config.socket_path)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"gateway.socket = {path!r} is longer than the {SOCKET_PATH_BYTES_MAX} bytes the "
            "kernel allows: choose a shorter path"
        )
