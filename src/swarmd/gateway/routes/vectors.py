"""Vector memory: collections, their entries, and which of these are nearest."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.http import answer
from swarmd.gateway.shapes_vectors import (
    AddBody,
    AddedEntry,
    CollectionShape,
    GivenEntry,
    GivenVector,
    VectorEntry,
    VectorHit,
    VectorsFound,
)
from swarmd.memory.vector.service import CollectionInfo, NewEntry, VectorMemory
from swarmd.memory.vector.shapes import (
    Condition,
    Equals,
    Metric,
    OneOf,
    Range,
    packed,
    unpacked,
)

_PATH: Final = "/api/v1/vectors/{collection}"
_K: Final = 10
_BOUNDS: Final = ("gt", "gte", "lt", "lte")


class CreateBody(msgspec.Struct, forbid_unknown_fields=True):
    """`embed`: for texts, by this node's model, which says the dimension if it is not given."""

    dimension: int | None = None
    metric: Metric = Metric.COSINE
    embed: bool = False


class SearchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Either `vector` or `text`. `filter`: by field a value, values, or bounds."""

    vector: GivenVector | None = None
    text: str | None = None
    k: int = _K
    filter: dict[str, Any] = {}


class VectorRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        entry = _PATH + "/entries/{id:path}"
        return [
            route("/api/v1/vectors", self.collections, "vector:read"),
            route(_PATH, self.show, "vector:read"),
            route(_PATH, self.create, "vector:write", methods=["PUT"]),
            route(_PATH, self.drop, "vector:write", methods=["DELETE"]),
            route(_PATH + "/search", self.search, "vector:read", methods=["POST"]),
            route(_PATH + "/entries", self.add, "vector:write", methods=["POST"]),
            route(entry, self.get, "vector:read"),
            route(entry, self.delete, "vector:write", methods=["DELETE"]),
        ]

    # ---- collections -------------------------------------------------------------------

    async def collections(self, request: Request) -> Response:
        """The collections that the caller may read, by name."""
        caller = caller_of(request)
        found = await self._context.attended(request, self._vectors().collections)
        shown = [
            _collection(one) for one in found if caller.may("vector:read", one.collection.name)
        ]
        return answer(request, shown)

    async def show(self, request: Request) -> Response:
        """One collection."""
        name = self._asked(request, "vector:read")
        call = partial(self._vectors().collection, name)
        return answer(request, _collection(await self._context.attended(request, call)))

    async def create(self, request: Request) -> Response:
        """Make a collection; answered when it is on this node's disk."""
        body = await self._context.read(request, CreateBody)
        name = self._asked(request, "vector:write")
        vectors, by = self._vectors(), caller_of(request).name
        if body.embed:
            call = partial(vectors.create_for_texts, name, body.dimension, body.metric, by=by)
        elif body.dimension is None:
            raise BadRequest("a collection has a dimension: give it, or `embed`")
        else:
            call = partial(vectors.create, name, body.dimension, body.metric, by=by)
        await self._context.attended(request, call)
        return answer(request, _collection(await vectors.collection(name)))

    async def drop(self, request: Request) -> Response:
        """Delete a collection with all its entries."""
        name = self._asked(request, "vector:write")
        await self._context.attended(request, partial(self._vectors().drop, name))
        return answer(request, {})

    # ---- entries -----------------------------------------------------------------------

    async def add(self, request: Request) -> Response:
        """Add entries; answered when they are on this node's disk."""
        body = await self._context.read(request, AddBody)
        name = self._asked(request, "vector:write")
        by = caller_of(request).name

        async def call() -> list[AddedEntry]:
            given = await self._given(name, body.entries)
            versions = await self._vectors().add(name, given, by=by)
            return [
                AddedEntry(id=one.id, version=version)
                for one, version in zip(given, versions, strict=True)
            ]

        return answer(request, await self._context.attended(request, call))

    async def get(self, request: Request) -> Response:
        """The entry as this node knows it."""
        name = self._asked(request, "vector:read")
        found = self._vectors().get(name, request.path_params["id"])
        shown = VectorEntry(
            collection=name,
            id=found.id,
            vector=unpacked(found.record.vector).tolist(),
            payload=found.record.payload,
            version=found.version,
            created_by=found.record.created_by,
            created_at_ms=found.created_at_ms,
            node=self._services.name_of(found.node),
        )
        return answer(request, shown)

    async def delete(self, request: Request) -> Response:
        """Delete an entry."""
        name = self._asked(request, "vector:write")
        call = partial(self._vectors().delete, name, request.path_params["id"])
        await self._context.attended(request, call)
        return answer(request, {})

    async def search(self, request: Request) -> Response:
        """The nearest entries of what this node has."""
        body = await self._context.read(request, SearchBody)
        name = self._asked(request, "vector:read")
        conditions = conditions_of(body.filter)

        async def call() -> VectorsFound:
            vectors = self._vectors()
            asked = GivenEntry(id="the query", vector=body.vector, text=body.text)
            [one] = await self._given(name, [asked])
            found = await vectors.search(name, one.vector, body.k, conditions)
            hits = [
                VectorHit(
                    id=hit.id,
                    distance=hit.distance,
                    payload=dict(hit.payload),
                    created_by=hit.created_by,
                    created_at_ms=hit.created_at_ms,
                )
                for hit in found.hits
            ]
            return VectorsFound(hits=hits, behind=found.behind)

        return answer(request, await self._context.attended(request, call))

    # ---- parts -------------------------------------------------------------------------

    async def _given(self, name: str, given: Sequence[GivenEntry]) -> list[NewEntry]:
        """Entries with vectors, where texts were given made of these."""
        for one in given:
            if (one.vector is None) == (one.text is None):
                raise BadRequest(
                    f"entry {one.id[:80]!r}: give either a vector or a text; nothing changed"
                )
        texts = [one.text for one in given if one.text is not None]
        made = iter(await self._vectors().vectors_of(name, texts) if texts else ())
        return [
            NewEntry(
                one.id,
                next(made) if one.vector is None else vector_in(one.vector),
                one.payload,
            )
            for one in given
        ]

    def _asked(self, request: Request, permission: str) -> str:
        name: str = request.path_params["collection"]
        caller_of(request).require(permission, name)
        return name

    def _vectors(self) -> VectorMemory:
        return self._services.need(self._services.vectors)


def _collection(info: CollectionInfo) -> CollectionShape:
    one = info.collection
    return CollectionShape(
        name=one.name,
        dimension=one.spec.dimension,
        metric=one.spec.metric.value,
        model=one.model,
        entries=info.entries,
        created_by=one.created_by,
        created_at_ms=one.created_at_ms,
    )


def vector_in(given: GivenVector) -> bytes:
    """A vector as `shapes.packed` makes it. Raises BadRequest: that is no base64."""
    if isinstance(given, str):
        try:
            return base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest(
                "a vector is a list of numbers, or float32 in base64: nothing changed"
            ) from error
    return packed(given)


def conditions_of(given: dict[str, Any]) -> tuple[Condition, ...]:
    """`{"field": value}`, `{"field": [values]}` or `{"field": {"gte": 1, "lt": 5}}`.

    Raises:
        BadRequest: it is something else. What values may be is asked by `rules.check_query`.
    """
    conditions: list[Condition] = []
    for field, wanted in given.items():
        match wanted:
            case list():
                conditions.append(OneOf(field, tuple(wanted)))
            case dict():
                wrong = wanted.keys() - set(_BOUNDS)
                if wrong or not wanted:
                    raise BadRequest(
                        f"the filter of {field!r}: bounds are {', '.join(_BOUNDS)}"
                        + (f", not {min(map(str, wrong))!r}" if wrong else "")
                    )
                conditions.append(Range(field, **wanted))
            case _:
                conditions.append(Equals(field, wanted))
    return tuple(conditions)
