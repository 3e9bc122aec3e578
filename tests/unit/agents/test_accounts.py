"""As whom agents run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.agents.accounts import GROUP, Account, Accounts
from swarmd.agents.bundle import pack_bundle
from swarmd.agents.bundles import BundleCache
from swarmd.agents.config import AgentsConfig
from swarmd.base.errors import ConfigError
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.blobs.naming import hash_of

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can change users")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others get through to."""
    folder = Path(tempfile.mkdtemp(prefix="swarmd-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def test_who_is_not_root_runs_agents_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    accounts = Accounts(AgentsConfig(), Path("/"))
    assert not accounts.own
    assert accounts.of("any") is None
    assert accounts.group is None
    with pytest.raises(ConfigError, match="only a daemon that root started"):
        Accounts(AgentsConfig(user="nobody"), Path("/"))


@as_root
def test_every_agent_is_a_user_of_its_own(open_folder: Path) -> None:
    accounts = Accounts(AgentsConfig(), open_folder)
    names = [f"agent-{number}" for number in range(605)]
    found = [accounts.of(name) for name in names]
    assert len(set(found)) == 605
    assert [accounts.of(name) for name in names] == found
    assert all(one is not None and 60_579 <= one.user <= 61_183 for one in found)
    one_more = accounts.of("one more")
    assert one_more is not None
    assert one_more in found
    first = accounts.of("agent-0")
    assert Accounts(AgentsConfig(), open_folder).of("agent-0") == first


@as_root
def test_the_user_that_is_set() -> None:
    accounts = Accounts(AgentsConfig(user="nobody"), Path("/"))
    assert accounts.of("any") == Account(65_534, 65_534)
    assert Accounts(AgentsConfig(user="daemon"), Path("/")).of("any") is None
    with pytest.raises(ConfigError, match="there is no such user"):
        Accounts(AgentsConfig(user="no-such"), Path("/"))


@as_root
async def test_what_stands_in_the_way_is_named(open_folder: Path) -> None:
    assert await Accounts(AgentsConfig(), open_folder).problem() == ""
    closed = open_folder / "closed"
    (closed / "in").mkdir(parents=True)
    closed.chmod(0o700)
    accounts = Accounts(AgentsConfig(), closed / "in")
    problem = await accounts.problem()
    assert f"{closed} lets nobody else through" in problem
    assert "agents.user = 'daemon'" in problem
    closed.chmod(0o711)
    assert await accounts.problem() == problem  # It is tried once.


@as_root
async def test_the_group_may_read_the_code_and_nobody_else(open_folder: Path) -> None:
    code = open_folder / "code"
    (code / "deep").mkdir(parents=True)
    (code / "deep" / "a.py").write_text("x = 1")
    raw = pack_bundle(code)

    class Source:
        async def get(self, ref: BlobRef) -> bytes:
            return raw

    ref = BlobRef(hash_of(raw), len(raw))
    first = await BundleCache(open_folder / "bundles", Source()).folder_of(ref)
    assert first.stat().st_mode & 0o077 == 0
    # Unpacked by a daemon of before: shared when it is next asked for.
    found = await BundleCache(open_folder / "bundles", Source(), group=GROUP).folder_of(ref)
    assert found == first
    assert (found.stat().st_mode & 0o777, found.stat().st_gid) == (0o750, GROUP)
    assert found.parent.stat().st_mode & 0o777 == 0o711
    assert (found / "deep" / "a.py").stat().st_mode & 0o777 == 0o644
