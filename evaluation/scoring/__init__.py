"""From graphs to an evaluation's result. Pure: nothing is read or written."""
