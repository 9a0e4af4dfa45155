"""The `sgg-rl` command: parses, then imports, then runs."""
