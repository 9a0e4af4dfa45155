"""One module for each command of `sgg-rl`: it parses, then calls the package that works.

The rooms are those of `sgg-rl --help`.
"""
