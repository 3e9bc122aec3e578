"""Files and folders as what agents take: `{"name": ..., "content": bytes}`.

Names are relative to the folder that all given paths have in common, so that no path of this
machine travels, and equal trees give equal names. A file that cannot be read becomes
`{"name": ..., "unreadable": reason}`: an agent reports it as a row instead of failing a job.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swarmd.base.limits import BLOB_BYTES_MAX, KIB
from swarmd.cli.common import BadInput

# What folders are searched for, unless the job file names other suffixes.
SUFFIXES: Final = (".py", ".txt", ".md", ".rst", ".html", ".pdf")
CONTENT_BYTES_MAX: Final = BLOB_BYTES_MAX - 4 * KIB


@dataclass(frozen=True, slots=True)
class FileInput:
    name: str
    value: dict[str, Any]

    @property
    def unreadable(self) -> str:
        return str(self.value.get("unreadable", ""))


def find_files(paths: Sequence[Path], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files among `paths`, and those below its folders that have one of `suffixes`, sorted.

    Raises:
        BadInput: a path does not exist, or a folder holds no such file.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file()]
            if not found:
                raise BadInput(f"{path} holds no {' '.join(suffixes)} file")
            files += sorted(found)
        elif path.exists():
            files.append(path)
        else:
            raise BadInput(f"{path} does not exist")
    return files


def read_inputs(paths: Sequence[Path], suffixes: Sequence[str] = SUFFIXES) -> list[FileInput]:
    """Every file below `paths`, with its content or why it has none.

    Raises:
        BadInput: like `find_files`.
    """
    files = find_files(paths, suffixes)
    base = _common_folder(paths)
    return [_read(file, file.absolute().relative_to(base).as_posix()) for file in files]


def _common_folder(paths: Sequence[Path]) -> Path:
    folders = [str(p.absolute() if p.is_dir() else p.absolute().parent) for p in paths]
    return Path(os.path.commonpath(folders))


def _read(path: Path, name: str) -> FileInput:
    try:
        if path.stat().st_size > CONTENT_BYTES_MAX:
            return FileInput(name, {"name": name, "unreadable": "larger than 64 MiB"})
        return FileInput(name, {"name": name, "content": path.read_bytes()})
    except OSError as error:
        reason = error.strerror or "cannot be read"
        return FileInput(name, {"name": name, "unreadable": reason})
