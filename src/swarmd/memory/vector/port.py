"""What a vector index offers, whatever it is made of; one suite of tests holds each to it."""

from __future__ import annotations

from typing import Protocol

from swarmd.memory.vector.shapes import Batch, CollectionView, Hit, Query


class VectorIndex(Protocol):
    """An index of entries that are kept elsewhere: it can be made again from these.

    It is fed by one feeder, which goes on at `position` after a restart.
    """

    @property
    def position(self) -> int:
        """Up to where changes were applied, durably. 0: none, or all are to be fed anew."""
        ...

    async def apply(self, batch: Batch) -> int:
        """Apply a batch, all or nothing, durably; what was applied before is left out.

        Changes show in searches that begin after this returned, and not before they are durable.

        Returns:
            `position` as it is now: at least the batch's `until`.

        Raises:
            FeedGap: the batch begins after `position`. Feed from there.
            BadRequest and its kinds: a change, which the message names, can never be applied.
                Nothing changed, and whoever feeds has to leave that change out.
            Busy: too many batches wait. Repeat it.
            DiskFault: nothing changed. Repeat it.
            CorruptFile: the index is damaged and refuses all; opened anew it begins at 0.
            VectorDatabaseUnavailable: the batch is applied or not. Open the index anew.

        Cancellation: the batch is applied or not; apply it again.
        """
        ...

    async def search(self, query: Query) -> list[Hit]:
        """The nearest entries, the nearest first; of equally near ones, in the order of ids.

        All entries are of one position, at least that of the last `apply` that returned.

        Raises:
            NotFound: there is no such collection.
            WrongDimension, BadVector: the vector does not fit the collection.
            BadRequest: `k` or a condition is not allowed.
            DiskFault, CorruptFile, VectorDatabaseUnavailable: the index cannot be read.

        Cancellation: nothing is left behind.
        """
        ...

    async def versions(self, collection: str, after: str, most: int) -> list[tuple[str, str]]:
        """Ids of entries after one, in the order of code points, with their versions.

        Fewer than `most`: there are no more. Nothing where there is no such collection.

        Raises: DiskFault, CorruptFile, VectorDatabaseUnavailable.

        Cancellation: nothing is left behind.
        """
        ...

    async def check(self) -> None:
        """See that the index can be asked now. Raises, and cancellation: see `versions`."""
        ...

    def collections(self) -> list[CollectionView]:
        """All collections by name, and how many entries each has."""
        ...
