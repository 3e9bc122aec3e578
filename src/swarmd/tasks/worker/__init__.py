"""The side of the task queue that runs attempts."""
