"""What stands behind a key of shared memory: who put what, when, and why it counts."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from swarmd.gateway.access.among import READ, require_in
from swarmd.gateway.access.gate import caller_of
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.http import answer
from swarmd.gateway.shapes_memory import CrdtCell, CrdtKey, CrdtSeen
from swarmd.memory.kv.inspecting import InspectedCell
from swarmd.state.crdt.clock import COUNTER_BITS, ms_of


class CrdtRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [route("/api/v1/crdt/{namespace}/{key:path}", self.inspect, "memory:read")]

    async def inspect(self, request: Request) -> Response:
        """A key's cells as this node knows them."""
        namespace, key = request.path_params["namespace"], request.path_params["key"]
        caller, memory = caller_of(request), self._services.need(self._services.memory)
        caller.require(READ, namespace)
        require_in(caller, READ, namespace, await memory.namespaces.of(namespace))
        found = await memory.inspect(namespace, key)
        name_of = self._services.name_of
        return answer(
            request,
            CrdtKey(
                namespace=namespace,
                key=key,
                kind=found.kind.name.lower(),
                value=found.value,
                cells=[*map(self._shown, found.cells)],
                left_out=found.left_out,
                shard=found.shard,
                seen=[CrdtSeen(node=name_of(n), life=life, number=m) for n, life, m in found.seen],
                early=found.early,
            ),
        )

    def _shown(self, cell: InspectedCell) -> CrdtCell:
        return CrdtCell(
            node=self._services.name_of(cell.node),
            life=cell.life,
            number=cell.number,
            kind=cell.kind.name.lower(),
            fields=[*cell.fields],
            element=cell.element,
            value=cell.value,
            value_bytes=cell.value_bytes,
            created_by=cell.created_by,
            written_at_ms=ms_of(cell.stamp),
            tick=cell.stamp % (1 << COUNTER_BITS),
            expires_at_ms=cell.expires_at_ms,
            counts=cell.counts,
            why=cell.why,
        )
