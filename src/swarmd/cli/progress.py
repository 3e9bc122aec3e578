"""A progress bar on a terminal, silence elsewhere. Imports rich only to draw."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class Bar:
    """Counts towards a total on stderr; `note` is a line of state beside the bar.

    It draws only if stderr is a terminal and someone reads it: with --json too, as stdout
    then is for a program and stderr still for a person.
    """

    def __init__(self, title: str, total: int, *, in_bytes: bool = False) -> None:
        self._in_bytes = in_bytes
        self._title = title
        self._total = total
        self._progress: Any = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                DownloadColumn(binary_units=True) if self._in_bytes else MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,  # What goes there may be for a program.
            )
            self._progress.start()
            self._bar = self._progress.add_task(self._title, total=self._total, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def drawn(self) -> bool:
        return self._progress is not None

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Show how far it is."""
        if self._progress is None:
            return
        fields: dict[str, Any] = {} if note is None else {"note": note}
        if total is not None:
            fields["total"] = total
        self._progress.update(self._bar, completed=done, **fields)

    def print(self, text: str) -> None:
        """A line of output; above the bar if both go to a terminal."""
        if self._progress is not None and sys.stdout.isatty():
            self._progress.stop()
            print(text)
            self._progress.start()
        else:
            print(text)
