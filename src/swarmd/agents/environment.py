"""What an agent finds in its environment, as it is stored and sent.

An agent file gives plain values, and references: `DB_PASSWORD = "secret:db-password"`. In the
store, in messages and in memory of nodes that do not run the agent there are the references and
the names of the plain values; these themselves are sealed, as secrets are. `agents.opening` opens
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.agents.spec import ENV_MAX, AgentSpec, reference_of
from swarmd.state.secrets.records import Box
from swarmd.wire.codec import decode_struct

# What is shown in place of a plain value.
HIDDEN: Final = "(hidden)"

_Pair = tuple[str, str]
_Names = Annotated[tuple[str, ...], Meta(max_length=ENV_MAX)]


class Environment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An agent's environment as it is stored and sent.

    `references` are (variable, secret); `plain` the other variables, whose values are in `box`.
    """

    references: Annotated[tuple[_Pair, ...], Meta(max_length=ENV_MAX)] = ()
    plain: _Names = ()
    box: Box | None = None

    @property
    def secrets(self) -> list[str]:
        """Names of the secrets that it refers to, sorted."""
        return sorted({name for _, name in self.references})

    def shown(self) -> dict[str, str]:
        """What may be shown of it, by variable."""
        found = {variable: f"secret:{name}" for variable, name in self.references}
        return dict(sorted((found | dict.fromkeys(self.plain, HIDDEN)).items()))

    @property
    def bytes_estimate(self) -> int:
        names = sum(len(a) + len(b) + 8 for a, b in self.references) + sum(map(len, self.plain))
        return names + (len(self.box.sealed) if self.box is not None else 0)


NO_ENVIRONMENT: Final = Environment()


@dataclass(frozen=True)
class Opened:
    """An environment with its values; `secrets` are (name, value) of what must not be shown.

    `revisions` are those of the secrets, by name: `Secrets.is_stale` tells whether they changed.
    """

    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    revisions: Mapping[str, int] = field(default_factory=dict)


NOTHING: Final = Opened()


def split_environment(spec: AgentSpec) -> tuple[dict[str, str], dict[str, str]]:
    """The references of a spec by variable, and its plain values."""
    references, plain = {}, {}
    for variable, text in sorted(spec.env.items()):
        name = reference_of(text)
        if name is None:
            plain[variable] = text
        else:
            references[variable] = name
    return references, plain


def decode_environment(raw: bytes) -> Environment:
    """What a member asks to be opened. Raises MalformedMessage."""
    found: Environment = decode_struct(Environment, raw)
    return found
