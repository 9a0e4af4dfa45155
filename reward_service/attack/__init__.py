"""Searches for graphs that raise a rubric's reward while triplet F1 falls.

`honest.py` makes the answers that it starts from, `edits.py` lists what a policy can do to them,
`measure.py` says what that earns and what it is worth, `search.py` looks for the edits that pay,
and `certificate.py` writes what was found.
"""
