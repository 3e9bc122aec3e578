"""Where a task goes: pure choices."""
