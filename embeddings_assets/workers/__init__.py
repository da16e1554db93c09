"""Worker processes: what may crash, hang or be killed runs in one of these, not in the process that asks."""
