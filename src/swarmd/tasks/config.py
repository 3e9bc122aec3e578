"""Settings of the room that hands out work."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class TasksConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tasks]"""

    # Which node gets a task: "least_loaded" sends it where the fewest attempts are, which suits
    # tasks of uneven length; "round_robin" spreads them evenly whatever they take.
    strategy: Literal["least_loaded", "round_robin"] = "least_loaded"
    # How often a worker says that it lives. Shorter notices a stuck worker sooner; each
    # heartbeat costs two small messages and a share of one read from the log.
    heartbeat_s: Seconds = 1.0
    # A worker unheard for this long has lost its tasks. Longer forgives longer pauses; shorter
    # restarts work sooner. A node seen dead by its peers loses them at once.
    lease_s: Seconds = 6.0
    # What clocks may drift apart over one lease, and how long killing an attempt may take.
    # Exclusive tasks restart this much later, and are killed this much earlier.
    lease_margin_s: Seconds = 1.0
    # Attempts beyond the first when the agent does not say. 0 never tries again.
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    # Pause before the second attempt; it doubles up to retry_delay_max_s, with up to half of
    # it added by chance so that failed tasks do not come back together.
    retry_delay_s: Seconds = 0.2
    retry_delay_max_s: Seconds = 10.0
    # Tasks sent ahead to a worker whose instances are all busy, at most, per agent: they hide
    # the way to the coordinator and its disk. More helps short tasks; long ones get none.
    prefetch_max: Annotated[int, Meta(ge=0)] = 32
    # How much work, in time, is sent ahead; about the time from a result to the next task.
    prefetch_s: Annotated[float, Meta(ge=0)] = 0.05
    # Changes wait this long for others while a write is under way, so that they share one
    # write to disk; an idle coordinator does not wait.
    collect_s: Annotated[float, Meta(ge=0)] = 0.002
    # Unfinished tasks that the swarm takes; beyond it a submit is answered "busy".
    open_tasks_max: Count = 100_000
    # Unfinished jobs that the swarm takes.
    open_jobs_max: Count = 100
    # Finished tasks, with their results, are kept this long ...
    retention_s: Seconds = 3_600.0
    # ... but at most so many; the oldest go first. Each takes about 1 KB beside its values ...
    retention_tasks_max: Count = 30_000
    # ... and at most so many bytes of them, which every voter holds in memory. Results above
    # 64 KiB are on disk and do not count. Fewer bytes forget results sooner.
    retention_bytes_max: Count = 64 * 1_024 * 1_024
    # Finished jobs that are kept.
    retention_jobs_max: Count = 200
    # Time that running attempts have to finish when the node stops; then they are handed back.
    drain_s: Seconds = 8.0
    # Longest wait for a coordinator when a caller asks something of it.
    coordinator_timeout_s: Seconds = 5.0
    # How often blobs that no record refers to any more are looked for. Oftener frees disks
    # sooner; each time walks over all records.
    blob_sweep_s: Seconds = 600.0
