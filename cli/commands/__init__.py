"""One module for each command of `sgg-rl`: it parses, then calls the package that does the work."""
