"""Bundles: equal folders give equal bytes, and a hostile one writes nothing anywhere."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import trio

from swarmd.agents import bundle as bundles
from swarmd.agents.bundle import pack_bundle, read_bundle, unpack_bundle
from swarmd.agents.bundles import BundleCache
from swarmd.base.errors import BadRequest, DiskFault, MalformedMessage, TooLarge
from swarmd.base.ids import to_text
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.blobs.naming import hash_of

FILES = {"agent.py": b"def run(v, c): pass\n", "lib/a.py": b"", "lib/deep/data.bin": bytes(700)}


def folder_with(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    raw = pack_bundle(folder_with(tmp_path / "a", FILES))
    unpack_bundle(raw, tmp_path / "b")
    assert {
        str(path.relative_to(tmp_path / "b")): path.read_bytes()
        for path in (tmp_path / "b").rglob("*")
        if path.is_file()
    } == FILES
    assert pack_bundle(tmp_path / "b") == raw


def test_only_content_counts(tmp_path: Path) -> None:
    first = folder_with(tmp_path / "a", FILES)
    second = folder_with(tmp_path / "b", dict(reversed(FILES.items())))
    os.utime(second / "agent.py", (1, 1))
    (second / "agent.py").chmod(0o755)
    folder_with(second, {"__pycache__/x.pyc": b"x", ".git/HEAD": b"x", ".env": b"secret"})
    assert pack_bundle(first) == pack_bundle(second)
    (second / "agent.py").write_bytes(b"other")
    assert pack_bundle(first) != pack_bundle(second)


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    raw = pack_bundle(folder_with(tmp_path, {**FILES, "ä" * 40 + "/" + "b" * 90: b"long"}))
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert len(archive.getmembers()) == 4
        found = archive.extractfile("lib/deep/data.bin")
        assert found is not None
        assert found.read() == bytes(700)
    assert len(read_bundle(raw)) == 4


def test_what_cannot_be_packed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match="no files"):
        pack_bundle(tmp_path)
    with pytest.raises(BadRequest, match="cannot read folder"):
        pack_bundle(tmp_path / "nowhere")
    link = tmp_path / "link.py"
    link.symlink_to("/etc/passwd")
    with pytest.raises(BadRequest, match=r"link\.py is a link"):
        pack_bundle(tmp_path)
    link.unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequest, match="not a plain file"):
        pack_bundle(tmp_path)
    (tmp_path / "pipe").unlink()
    (tmp_path / ("x" * 101)).touch()
    with pytest.raises(BadRequest, match="too long"):
        pack_bundle(tmp_path)
    (tmp_path / ("x" * 101)).unlink()
    (tmp_path / "new\nline").touch()
    with pytest.raises(BadRequest, match="characters"):
        pack_bundle(tmp_path)
    (tmp_path / "new\nline").unlink()
    folder_with(tmp_path, {"a": b"", "b": b"", "c": b""})
    monkeypatch.setattr(bundles, "FILES_MAX", 2)
    with pytest.raises(TooLarge, match="2 files"):
        pack_bundle(tmp_path)


def test_a_folder_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(TooLarge):
        pack_bundle(tmp_path)


def tar_of(member: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(member)
    raw = out.getvalue()
    # tarfile pads to 10 KiB; a bundle ends after two empty blocks.
    return raw.rstrip(b"\0").ljust(-(-len(raw.rstrip(b"\0")) // 512) * 512, b"\0") + bytes(1024)


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        info("../escape"),
        info("/etc/passwd"),
        info("a/../../b"),
        info("./a"),
        info("a//b"),
        info("a\\b"),
        info(".hidden"),
        info("a", tarfile.SYMTYPE, "/etc/passwd"),
        info("a", tarfile.LNKTYPE, "b"),
        info("a", tarfile.CHRTYPE),
        info("a", tarfile.BLKTYPE),
        info("a", tarfile.FIFOTYPE),
        info("a", tarfile.DIRTYPE),
        info("a", tarfile.CONTTYPE),
        info("a", tarfile.GNUTYPE_SPARSE),
        info("a"),  # Its mode and times are not those that packing writes.
    ],
)
def test_anything_but_plain_files_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    if member.name == "a" and member.type == tarfile.REGTYPE:
        member.mtime = 5
    with pytest.raises(MalformedMessage):
        unpack_bundle(tar_of(member), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def packed(*names: str) -> bytes:
    return b"".join(bundles._header(name, 0) for name in names) + bytes(1024)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        bytes(512),
        bytes(2048),
        packed("b", "a"),
        packed("a", "a"),
        packed("a", "a/b"),
        packed("a")[:-512],
        packed("a") + bytes(512),
        bundles._header("a", 5) + b"12345".ljust(512, b"\0"),
        bundles._header("a", 5 * 512) + bytes(1024),
        bundles._header("a", 512).replace(b"00000001000", b"-0000000001"),
        b"\xff" * 1536,
    ],
)
def test_a_damaged_bundle_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_bundle(raw)


class Source:
    def __init__(self, *bundles: bytes) -> None:
        self.bundles = {hash_of(raw): raw for raw in bundles}
        self.asked = 0

    async def get(self, ref: BlobRef) -> bytes:
        self.asked += 1
        return self.bundles[ref.hash]


async def test_a_bundle_is_unpacked_once(tmp_path: Path) -> None:
    raw = pack_bundle(folder_with(tmp_path / "code", FILES))
    source = Source(raw)
    cache = BundleCache(tmp_path / "agents", source)
    ref = BlobRef(hash_of(raw), len(raw))
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(cache.folder_of, ref)
    folder = await cache.folder_of(ref)
    assert source.asked == 1
    assert (folder / "agent.py").read_bytes() == FILES["agent.py"]
    again = BundleCache(tmp_path / "agents", source)
    assert await again.folder_of(ref) == folder
    assert source.asked == 1


async def test_a_half_unpacked_bundle_does_not_count(tmp_path: Path) -> None:
    raw = pack_bundle(folder_with(tmp_path / "code", FILES))
    folder_with(tmp_path / "agents" / "1.tmp", {"agent.py": b"half"})
    cache = BundleCache(tmp_path / "agents", Source(raw))
    folder = await cache.folder_of(BlobRef(hash_of(raw), len(raw)))
    assert (folder / "agent.py").read_bytes() == FILES["agent.py"]
    assert [path.name for path in (tmp_path / "agents").iterdir()] == [to_text(hash_of(raw))]


async def test_a_bad_bundle_leaves_nothing(tmp_path: Path) -> None:
    cache = BundleCache(tmp_path / "agents", Source(b"junk"))
    with pytest.raises(MalformedMessage):
        await cache.folder_of(BlobRef(hash_of(b"junk"), 4))
    assert list((tmp_path / "agents").iterdir()) == []


async def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    raw = pack_bundle(folder_with(tmp_path / "code", FILES))
    cache = BundleCache(tmp_path / "agents", Source(raw))
    (tmp_path / "agents").rmdir()
    with pytest.raises(DiskFault, match="cannot unpack"):
        await cache.folder_of(BlobRef(hash_of(raw), len(raw)))


async def test_folders_of_forgotten_bundles_are_deleted(tmp_path: Path) -> None:
    first = pack_bundle(folder_with(tmp_path / "a", FILES))
    second = pack_bundle(folder_with(tmp_path / "b", {"x.py": b""}))
    cache = BundleCache(tmp_path / "agents", Source(first, second))
    kept = await cache.folder_of(BlobRef(hash_of(first), len(first)))
    gone = await cache.folder_of(BlobRef(hash_of(second), len(second)))
    (tmp_path / "agents" / "scratch").mkdir()
    await cache.keep({hash_of(first)})
    assert kept.is_dir()
    assert not gone.exists()
    assert (tmp_path / "agents" / "scratch").is_dir()
