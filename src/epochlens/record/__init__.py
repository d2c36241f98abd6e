"""record: the store of maps and metrics on disk, and the tracker that fills it."""
