"""The console: a run, seen live in a browser. It only reads, so any number may look."""
