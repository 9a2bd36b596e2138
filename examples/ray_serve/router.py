"""Route each request inside Ray Serve: by its prefix, or to the replica that it names."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import RequestRouter

from examples.ray_serve.prefix import in_order, spread


class PrefixRouter(RequestRouter):
    """Rank the replicas for a request, whose first argument is an `Asked`.

    Ray takes the first replica of the ranks that has room (`max_ongoing_requests`). Each router
    decides for itself, and alike, since it needs to remember nothing.
    """

    def initialize_state(self, enough: int = 8, affinity: bool = True) -> None:
        """Take this router's settings; `enough` is as in `spread`. Called by Ray."""
        self._enough = enough
        self._affinity = affinity
        self._turn = 0

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """Return the replicas in ranks, the best first. Called by Ray."""
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        asked = pending_request.args[0] if pending_request and pending_request.args else None
        if asked is None:
            return [candidate_replicas]
        if asked.replica in replicas:
            return [[replicas[asked.replica]]]
        if not asked.prefix:
            return [candidate_replicas]
        if not self._affinity:  # round robin, to compare with
            self._turn += 1
            names = sorted(replicas)
            first = self._turn % len(names)
            return [[replicas[name]] for name in names[first:] + names[:first]]
        open_at = {
            name: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for name, replica in replicas.items()
        }
        order = spread(in_order(asked.prefix, replicas), open_at, self._enough)
        return [[replicas[name]] for name in order]
