"""Under which key a data folder is sealed, and what is done about it before the daemon starts.

The file `sealed` says it, in clear: the id of the key that all is under, or while that changes, of
those that files may be under until it is done; an empty id stands for "in clear". A box of the key
itself is in it, so that nobody else can write one: else a folder that is sealed could be taken for
one that is still to be, and files that somebody put there in clear be believed. One that names
several keys is bound to the node, too: another node's under the same key says nothing here. Rules:
- Before that, all is opened once: what could not be sealed anew stops it with nothing changed.
- Before the first file changes, `sealed` names all keys that any file may be under from then on.
- It names one key alone only once every file is under it, durably.
- A folder in which it is missing though some file is sealed must be sealed throughout.
- One in clear is sealed when somebody asks for it, never by a start: it may have been put there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.app.resealing import ROOT_FILES, Resealing, disk_files
from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import BadSignature, CorruptFile, DataFolderRefused, MalformedMessage
from swarmd.base.files import sync_folder, write_atomically
from swarmd.base.sealed_file import BOX_BYTES_EXTRA, HEADER_BYTES, SEALER_ID_BYTES, sealer_id_in
from swarmd.identity.sealing import SealingKey
from swarmd.wire.codec import decode_struct, encode_struct

MARK_FILE: Final = "sealed"
NODE_FILE: Final = "node"
IN_CLEAR: Final = b""
_KIND: Final = "sealed"
_FORMAT: Final = 1
_WAY_BACK: Final = (
    "restore that file, or move it away if a daemon makes it anew (mesh/members, mesh/place, "
    "raft.e*.copy.*), then do the same again"
)
_ABOUT: Final = b"sealed data folder\0"

Tell = Callable[[str], None]
_KeyId = Annotated[bytes, Meta(max_length=SEALER_ID_BYTES)]


class _Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`target`: what all is to be under. `others`: what files may be under meanwhile."""

    target: _KeyId
    others: Annotated[tuple[_KeyId, ...], Meta(max_length=4)]
    box: Annotated[bytes, Meta(max_length=BOX_BYTES_EXTRA)] = b""


def settle(path: Path, key: SealingKey | None, tell: Tell) -> None:
    """Have the folder be what a daemon with `key` can run on: under it, or in clear without one.

    A fresh folder is to be sealed from now on; a change that was interrupted goes on.

    Raises:
        DataFolderRefused: it is sealed, and this is not its key, or there is none, or it holds
            files in clear though there is a key; nothing changed.
        CorruptFile, DiskFault: see `Resealing`.
    """
    check(path, key)
    mark = _read_mark(path)
    under = mark or _implied(path)
    if key is None:
        return
    if under is None:
        _write_mark(path, _Mark(key.id, ()), {key.id: key})  # All that comes is sealed.
    elif under.target != key.id or under.others:
        _change(path, under, key, {key.id: key}, tell)
    elif mark is None:
        _write_mark(path, _Mark(key.id, ()), {key.id: key})


def check(path: Path, key: SealingKey | None) -> None:
    """Raises DataFolderRefused: `key` is not what it is under, or none is and it has files."""
    mark = _read_mark(path)
    under = mark or _implied(path)
    if under is None and key is not None and _has_files(path):
        raise DataFolderRefused(
            f"the data folder {path} is in clear, and a key was given; nothing was changed: if it "
            "is this node's own, seal it with `swarmd --data-key-file FILE data-key seal`, then "
            "start"
        )
    if under is None:
        return
    if key is None:
        raise DataFolderRefused(
            f"the data folder {path} is sealed{_names(under)} and no key was given; nothing "
            "was changed: start with --data-key-file FILE (node.data_key_file)"
        )
    _check_given(path, under, {key.id: key})
    _check_box(path, mark, {key.id: key})


def change(path: Path, old: SealingKey | None, new: SealingKey | None, tell: Tell) -> None:
    """Have everything be under `new`, or in clear; the daemon is down, the folder is held.

    Args:
        old: None: it is in clear, unless it is under `new` already.

    Raises:
        DataFolderRefused: it is under another key than `old`; nothing changed.
        CorruptFile, DiskFault: see `Resealing`.
    """
    keys = {key.id: key for key in (old, new) if key is not None}
    mark = _read_mark(path)
    under = mark or _implied(path) or _Mark(IN_CLEAR, ())
    _check_given(path, under, keys)
    _check_box(path, mark, keys)
    if old is not None and new is not None and _all_of(under) == {IN_CLEAR}:
        raise DataFolderRefused(
            f"the data folder {path} is in clear, not under the key that was given; nothing was "
            "changed: seal it with `swarmd --data-key-file FILE data-key seal`"
        )
    _change(path, under, new, keys, tell)


def _all_of(mark: _Mark) -> set[bytes]:
    return {mark.target, *mark.others}


def _widened(under: _Mark, target: SealingKey | None) -> _Mark:
    """All that files may be under while they come to be under `target`."""
    wanted = target.id if target is not None else IN_CLEAR
    before = dict.fromkeys((under.target, *under.others))
    return _Mark(wanted, tuple(one for one in before if one != wanted))


def _change(
    path: Path,
    under: _Mark,
    target: SealingKey | None,
    keys: dict[bytes, SealingKey],
    tell: Tell,
) -> None:
    """Have all that is `under` something be under `target`."""
    mark = _widened(under, target)
    if mark.others:
        tell("sealing the data folder" if target else "opening the data folder")
        in_clear = IN_CLEAR in _all_of(under)
        resealing = Resealing(path, keys, target, in_clear=in_clear, tell=tell)
        _check_files(path, resealing, under)
        _write_mark(path, mark, keys)
        resealing.run()
    if target is not None:
        _write_mark(path, _Mark(mark.target, ()), keys)
        tell(f"the data folder is sealed under the key {mark.target.hex()[:8]}")
    else:
        (path / MARK_FILE).unlink(missing_ok=True)
        sync_folder(path)
        tell("the data folder is in clear")


def _check_files(path: Path, resealing: Resealing, under: _Mark) -> None:
    """Raises CorruptFile: a file would stop it, so that it is not begun."""
    try:
        resealing.check()
    except CorruptFile as error:
        state = f"nothing was changed, and {path} starts as before"
        if under.others:
            state = "the change that was interrupted stays so"
        raise CorruptFile(f"{error.message}; {state}: {_WAY_BACK}") from error


def _has_files(path: Path) -> bool:
    return any((path / name).exists() for name in (*ROOT_FILES, NODE_FILE))


def _check_given(path: Path, under: _Mark, keys: dict[bytes, SealingKey]) -> None:
    """Raises DataFolderRefused: a key that files may be under was not given."""
    missing = [one for one in (under.target, *under.others) if one and one not in keys]
    if not missing:
        return
    given = ", ".join(one.hex()[:8] for one in keys) or "none"
    if under.others:
        raise DataFolderRefused(
            f"a change of the data folder {path}{_names(under)} was interrupted, and only "
            f"{given} was given; nothing was changed: do the same `swarmd data-key` command again"
        )
    raise DataFolderRefused(
        f"the data folder {path} is sealed{_names(under)}, and the key that was given is {given}; "
        "nothing was changed: give the one it was sealed with"
    )


def _check_box(path: Path, mark: _Mark | None, keys: dict[bytes, SealingKey]) -> None:
    """Raises CorruptFile: whoever wrote the mark did not have the key."""
    if mark is None:
        return
    key = _key_of(mark, keys)
    try:
        key.open(mark.box, _about(path, mark))
    except BadSignature as error:
        raise CorruptFile(
            f"{path / MARK_FILE} was not written with the key of the data folder, or for another "
            "node; nothing was changed: restore it, or delete it if nothing else was touched"
        ) from error


def _key_of(mark: _Mark, keys: dict[bytes, SealingKey]) -> SealingKey:
    """The key of a mark's box: what all is to be under, or else was."""
    return keys[next(one for one in (mark.target, *mark.others) if one)]


def _about(path: Path, mark: _Mark) -> bytes:
    """What a mark's box is bound to.

    With one key alone it lets nothing in clear be believed, and is there before the node is.
    """
    about = _ABOUT + encode_struct(_Mark(mark.target, mark.others))
    if not mark.others:
        return about
    try:
        return about + (path / NODE_FILE).read_bytes()
    except FileNotFoundError:
        return about


def _names(mark: _Mark) -> str:
    ids = [one.hex()[:8] for one in (mark.target, *mark.others) if one]
    return " under the key " + " or ".join(ids) if ids else ""


def _read_mark(path: Path) -> _Mark | None:
    file = path / MARK_FILE
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return None
    mark: _Mark
    try:
        mark = decode_struct(_Mark, open_body(_KIND, _FORMAT, raw, source=str(file)))
    except MalformedMessage as error:
        raise CorruptFile(f"{file} does not say what the folder is sealed under") from error
    if not any((mark.target, *mark.others)):
        raise CorruptFile(f"{file} names no key that the folder is sealed under")
    return mark


def _write_mark(path: Path, mark: _Mark, keys: dict[bytes, SealingKey]) -> None:
    """What the folder's owner can read, though root writes it. Raises DiskFault."""
    whole = _Mark(mark.target, mark.others, _key_of(mark, keys).seal(b"", _about(path, mark)))
    raw = seal_body(_KIND, _FORMAT, encode_struct(whole))
    write_atomically(path / MARK_FILE, raw, owner=path.stat())


def _implied(path: Path) -> _Mark | None:
    """What some file is sealed under, so that all must be; None: none is.

    Blobs do not count, since anybody may have sent one that looks so; nor does the audit log, where
    what is damaged is left as it is.
    """
    for file in (*(path / name for name in ROOT_FILES), *disk_files(path)):
        try:
            with open(file, "rb") as opened:
                key_id = sealer_id_in(opened.read(HEADER_BYTES))
        except FileNotFoundError:
            continue
        if key_id is not None:
            return _Mark(key_id, ())
    return None
