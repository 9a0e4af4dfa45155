"""Everything that is kept in Redis: connections, keys, the registry and the work queue."""
