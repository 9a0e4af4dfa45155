"""Scene graphs as values: boxes, parsing of model text, matching, metrics. No IO, no torch."""
