"""Jobs: graphs of tasks that the coordinator drives."""
