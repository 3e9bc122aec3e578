"""The four steps in one plain process, without a swarm: what its result is held against.

python plain.py [--output FILE] FILE_OR_FOLDER...
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import documents


def read_items(paths: list[Path]) -> list[documents.Document]:
    """Files as `{"name", "content"}`, named relative to what all of them have in common."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.suffix.lower() in documents.SUFFIXES)
            files += sorted(p for p in found if p.is_file())
        else:
            files.append(path)
    base = common_folder(paths)
    items: list[documents.Document] = []
    for file in files:
        name = file.absolute().relative_to(base).as_posix()
        try:
            items.append({"name": name, "content": file.read_bytes()})
        except OSError as error:
            items.append({"name": name, "unreadable": error.strerror or "cannot be read"})
    return items


def common_folder(paths: list[Path]) -> Path:
    folders = [str(p.absolute() if p.is_dir() else p.absolute().parent) for p in paths]
    return Path(os.path.commonpath(folders))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()
    result = documents.canonical(documents.run_plainly(read_items(arguments.paths)))
    if arguments.output:
        arguments.output.write_bytes(result)
    else:
        sys.stdout.buffer.write(result + b"\n")


if __name__ == "__main__":
    main()
