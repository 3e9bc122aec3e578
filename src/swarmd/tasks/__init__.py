"""What work, where: records, the coordinator, the worker, jobs."""
