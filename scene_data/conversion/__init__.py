"""From raw annotation files to the dataset layout of `docs/data.md`."""
