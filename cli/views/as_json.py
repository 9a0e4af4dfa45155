"""What `--json` prints, the same way for all commands."""

import json


def print_json(value: object) -> None:
    """Print messages, dataclasses and plain values as one indented JSON document in ASCII.

    A number that is not finite becomes null, which every reader of JSON takes; ASCII cannot steer
    a terminal.
    """
    from pydantic_core import to_jsonable_python

    # pydantic's own inf_nan_mode passes over what stands in a message.
    text = json.dumps(to_jsonable_python(value))
    plain = json.loads(text, parse_constant=lambda _: None)
    print(json.dumps(plain, indent=2, allow_nan=False))
