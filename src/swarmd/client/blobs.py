"""Users' blobs, as a program beside the daemons puts and gets them: in pieces, of any size."""

from __future__ import annotations

import http.client
from collections.abc import Iterable, Iterator
from typing import Final

from swarmd.base.errors import RemoteError, TimedOut, Unreachable
from swarmd.base.ids import to_text
from swarmd.client.requests import MSGPACK, OCTETS, Requests, segment
from swarmd.gateway.shapes_blobs import BlobProgress, UserBlob, UserBlobs
from swarmd.state.blobs.naming import Hasher

_PIECE_BYTES: Final = 1024 * 1024


class BlobCalls(Requests):
    """A part of `Client`."""

    def blob_put(
        self,
        pieces: Iterable[bytes],
        *,
        size: int | None = None,
        copies: int | None = None,
        ttl_s: int | None = None,
    ) -> Iterator[BlobProgress]:
        """Store what `pieces` give, on several nodes; the last item has the blob.

        Args:
            size: how much it is; None: that is not known before.
            copies: nodes that shall hold it; None: two, or one where a node is alone.
            ttl_s: for how long it is pinned; None: as the daemon is set.

        Raises:
            InsufficientCopies: too few nodes took it, or there are too few; it is not pinned.
            BlobsFull: the daemon's node has no room for it.

        Not repeated on another daemon: `pieces` may be given once only.
        """
        query = {"copies": copies, "ttl_s": ttl_s, "size": size}
        given = {name: str(value) for name, value in query.items() if value is not None}
        return self._frames(self._upload("/blobs", pieces, size, given), BlobProgress)

    def blob_get(self, blob_hash: str) -> tuple[int, Iterator[bytes]]:
        """A blob's size and its bytes in pieces, verified at their end.

        The iterator raises Unreachable if the answer breaks off, and RemoteError if what came is
        not what the hash says: what it gave before is void then.
        """
        path = f"/blobs/{segment(blob_hash)}/data"
        response = self._open("GET", path, None, accept=f"{OCTETS}, {MSGPACK}", safe=True)
        size = int(response.headers.get("Content-Length") or 0)
        return size, self._pieces(response, blob_hash.lower(), size)

    def blob(self, blob_hash: str) -> UserBlob:
        """Who holds a blob and who pins it."""
        return self._get(f"/blobs/{segment(blob_hash)}", UserBlob)

    def blobs(self) -> UserBlobs:
        """Blobs of users on all members that answer."""
        return self._get("/blobs", UserBlobs)

    def blob_pin(
        self, blob_hash: str, *, copies: int | None = None, ttl_s: float | None = None
    ) -> Iterator[BlobProgress]:
        """Pin a blob that some node holds; as `blob_put`."""
        body = {"copies": copies, "ttl_s": ttl_s}
        return self._stream("POST", f"/blobs/{segment(blob_hash)}/pin", body, BlobProgress)

    def blob_unpin(self, blob_hash: str) -> UserBlob:
        """Take one's own pin back."""
        path = f"/blobs/{segment(blob_hash)}/pin"
        return self._call("DELETE", path, kind=UserBlob)

    def _pieces(
        self, response: http.client.HTTPResponse, blob_hash: str, size: int
    ) -> Iterator[bytes]:
        hasher = Hasher()
        count = 0
        whole = False
        try:
            while piece := response.read(_PIECE_BYTES):
                hasher.update(piece)
                count += len(piece)
                yield piece
            if count != size:
                raise Unreachable(f"the blob broke off after {count} of {size} bytes; try again")
            if to_text(hasher.digest()) != blob_hash:
                raise RemoteError("what came is not what its hash says; nothing of it counts")
            whole = True
        except TimeoutError as error:
            raise TimedOut(f"the daemon was silent for {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the blob broke off after {count} of {size} bytes") from error
        finally:
            if not whole:
                self.close()
