"""What `--json` prints, the same way for all commands."""

import json


def print_json(value: object) -> None:
    """Print messages, dataclasses and plain values as one indented JSON document in ASCII.

    A number that is not finite becomes null, which every reader of JSON takes; ASCII cannot steer
    a terminal.
    """
    from pydantic_core import to_jsonable_python

    plain = to_jsonable_python(value, inf_nan_mode="null")
    print(json.dumps(plain, indent=2, allow_nan=False))
