"""Agent code as one value: a folder packed so that equal content gives equal bytes.

The format is POSIX.1-1988 ustar with regular files only, sorted by path, without times,
owners or modes; so its hash names the content. Packing and reading are both done here, in
the strict subset that packing produces: a general tar reader follows links, devices, sparse
maps and negative sizes, and a bundle that comes from a peer must not be able to ask for any
of them. Everything is bounded before it is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from swarmd.base.errors import BadRequest, MalformedMessage, TooLarge
from swarmd.base.files import sync_folder
from swarmd.base.limits import BLOB_BYTES_MAX

FILES_MAX: Final = 10_000
_BLOCK: Final = 512
_NAME_BYTES: Final = 100
_PREFIX_BYTES: Final = 155
_DEPTH_MAX: Final = 32
_SKIPPED: Final = frozenset({"__pycache__", "node_modules"})


def pack_bundle(folder: Path, *, leave_out: Callable[[Path], bool] = lambda _: False) -> bytes:
    """The files below `folder` as a bundle; the same files give the same bytes anywhere.

    Dotfiles, `__pycache__` and files that `leave_out` is true of are left out.

    Raises:
        BadRequest: a link or device is in the folder, a path is too long, nothing is left.
        TooLarge: more than 64 MiB or 10,000 files.
    """
    parts: list[bytes] = []
    total = 2 * _BLOCK
    for count, (name, path) in enumerate(_walk(folder)):
        if leave_out(path):
            continue
        if count >= FILES_MAX:
            raise TooLarge(f"{folder} has more than {FILES_MAX} files")
        try:
            size = path.stat().st_size
            if total + size > BLOB_BYTES_MAX:
                raise TooLarge(f"{folder} has more than {BLOB_BYTES_MAX} bytes")
            data = path.read_bytes()
        except OSError as error:
            raise BadRequest(f"cannot read {path}: {error.strerror}") from error
        piece = _header(name, len(data)) + data + bytes(-len(data) % _BLOCK)
        total += len(piece)
        parts.append(piece)
    if not parts:
        raise BadRequest(f"{folder} holds no files to deploy")
    if total > BLOB_BYTES_MAX:
        raise TooLarge(f"{folder} has more than {BLOB_BYTES_MAX} bytes")
    return b"".join((*parts, bytes(2 * _BLOCK)))


def read_bundle(raw: bytes) -> list[tuple[str, bytes]]:
    """The (path, content) pairs of a bundle, in its order.

    Raises:
        MalformedMessage: not a bundle: damaged, or holding anything but plain files with
            relative paths in rising order.
    """
    if len(raw) > BLOB_BYTES_MAX or len(raw) % _BLOCK:
        raise MalformedMessage(f"a bundle of {len(raw)} bytes")
    files: list[tuple[str, bytes]] = []
    folders: set[str] = set()
    offset, last = 0, b""
    while True:
        block = raw[offset : offset + _BLOCK]
        if len(block) < _BLOCK:
            raise MalformedMessage("a bundle without its end")
        if not any(block):
            break
        name, size = _read_header(block)
        offset += _BLOCK
        end = offset + size
        if end > len(raw) or len(files) >= FILES_MAX:
            raise MalformedMessage(f"a bundle is truncated within {name!r}")
        key = name.encode()
        if key <= last:
            raise MalformedMessage(f"{name!r} is out of order or twice in a bundle")
        last = key
        folders.update(name[:i] for i, char in enumerate(name) if char == "/")
        files.append((name, raw[offset:end]))
        offset = end + -size % _BLOCK
    if any(name in folders for name, _ in files):
        raise MalformedMessage("a path is both a file and a folder in a bundle")
    if offset + 2 * _BLOCK != len(raw) or any(raw[offset:]):
        raise MalformedMessage("a bundle goes on after its end")
    return files


def unpack_bundle(raw: bytes, folder: Path) -> None:
    """Write a bundle's files below `folder`, a new folder made here, durably.

    Raises:
        MalformedMessage: not a bundle; nothing was written.
        OSError: the disk refused; what was written is left to the caller to delete.
    """
    files = read_bundle(raw)
    folder.mkdir(mode=0o700)
    made: set[Path] = {folder}
    for name, data in files:
        path = folder / name
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            made.add(path.parent)
        _write_new(path, data)
    for parent in sorted(made):
        sync_folder(parent)


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative path and path of every file to pack, sorted by the bytes of the former."""
    found: list[tuple[bytes, str, Path]] = []
    pending = [(folder, "")]
    while pending:
        here, prefix = pending.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise BadRequest(f"cannot read folder {here}: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SKIPPED:
                continue
            name = prefix + entry.name
            if entry.is_symlink():
                raise BadRequest(f"{entry.path} is a link; a bundle holds plain files only")
            if entry.is_dir():
                pending.append((Path(entry.path), name + "/"))
            elif entry.is_file():
                found.append((_checked(name), name, Path(entry.path)))
            else:
                raise BadRequest(f"{entry.path} is not a plain file")
        if len(found) > FILES_MAX or len(pending) > FILES_MAX:
            raise TooLarge(f"{folder} has more than {FILES_MAX} files")
    for _, name, path in sorted(found):
        yield name, path


def _checked(name: str) -> bytes:
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"file name {name!r} is not UTF-8") from error
    _split(raw, name)
    problem = _path_problem(name)
    if problem:
        raise BadRequest(f"file name {name!r} {problem}")
    return raw


def _path_problem(name: str) -> str | None:
    parts = name.split("/")
    if len(parts) > _DEPTH_MAX:
        return f"is more than {_DEPTH_MAX} folders deep"
    if any(not part or part.startswith(".") for part in parts):
        return "is not a plain relative path"
    if "\0" in name or "\\" in name or not name.isprintable():
        return "holds characters that not every system can store"
    return None


def _split(raw: bytes, name: str) -> tuple[bytes, bytes]:
    """`raw` as ustar's prefix and name fields."""
    if len(raw) <= _NAME_BYTES:
        return b"", raw
    cut = raw.find(b"/", len(raw) - _NAME_BYTES - 1)
    if cut < 1 or cut > _PREFIX_BYTES:
        raise BadRequest(f"file name {name!r} is too long: at most 100 bytes, 255 with folders")
    return raw[:cut], raw[cut + 1 :]


def _header(name: str, size: int) -> bytes:
    prefix, short_name = _split(name.encode(), name)
    fields = b"".join(
        (
            short_name.ljust(_NAME_BYTES, b"\0"),
            b"0000644\0" + b"0000000\0" + b"0000000\0",
            b"%011o\0" % size,
            b"00000000000\0",
            b" " * 8,
            b"0" + bytes(100) + b"ustar\0" + b"00" + bytes(64),
            b"0000000\0" + b"0000000\0",
            prefix.ljust(_PREFIX_BYTES, b"\0") + bytes(12),
        )
    )
    assert len(fields) == _BLOCK
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _read_header(block: bytes) -> tuple[str, int]:
    """Name and size in a header, which must be byte for byte the one packing would write."""
    short_name = block[:_NAME_BYTES].rstrip(b"\0")
    prefix = block[345 : 345 + _PREFIX_BYTES].rstrip(b"\0")
    raw_name = prefix + b"/" + short_name if prefix else short_name
    try:
        name = raw_name.decode()
        size = int(block[124:135], 8)
    except ValueError as error:
        raise MalformedMessage("a bundle's header is damaged") from error
    problem = _path_problem(name)
    if problem:
        raise MalformedMessage(f"a bundle's path {name!r} {problem}")
    if size < 0 or size > BLOB_BYTES_MAX:
        raise MalformedMessage(f"a bundle's file {name!r} of {size} bytes")
    try:
        expected = _header(name, size)
    except BadRequest as error:
        raise MalformedMessage(error.message) from error
    if expected != block:
        raise MalformedMessage(f"{name!r} in a bundle is not a plain file")
    return name, size
