"""What the service's page shows for each body and answer. Requests to sample work as they stand."""

from typing import Any

PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAHAAAABUAgMAAAAns1v4AAAACVBMVEX////IHh4ePMgcCIHMAAAAzUlEQVR42u2SMQ6CQBBF"
    "n4uF8RRbGriEl9Ca3kvsJbyD8RRcQmJJb0+oNhYIjs4uhmgjYQpm2Jf//zIB5hquReDsTOkAMJqlkMaU5gTUeVi5AVgDkCh4"
    "BCArQsrHgQ3arkRT0AqDJBzZhppwZOtghtZnwvdph1FKK8Eo5Uslkc+ErPjC9r/g+xIu2246/DKz6gb/SbmEXf9yK2i6uRmb"
    "6WW4UjrRFayEg4KNaAp6YaBv655PDa8AdWS33gF5bPEllP36VO0n+N/OcIaTqzsvzyDBi1EW5AAAAABJRU5ErkJggg=="
)
"""A red square beside a blue circle, 112 x 84 pixels."""
_QUESTION = "Write the scene graph."
_TEXT = (
    '<answer>{"objects": [{"id": "square.1", "bbox": [71, 476, 428, 904]}], '
    '"relationships": []}</answer>'
)
_CHECKSUM = "e4a76932bfdaf1bd29144b05b15aa39b55b1977bf4d148634aaf8dc9d1ab8d2a"

ROLLOUTS: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}]}
    ],
    "images": [{"data": PICTURE}],
    "sampling": {"n": 2, "temperature": 1.0, "max_tokens": 128, "seed": 7},
}
ROLLOUTS_ANSWER: dict[str, Any] = {
    "server_id": "node7-8200-1a2b3c",
    "prompt_token_ids": [1, 4, 5, 5, 5, 5, 6, 291],
    "completions": [
        {
            "text": '{"objects": []}',
            "token_ids": [131, 77, 2],
            "rollout_logprobs": [-0.41, -1.93, -0.02],
            "finish_reason": "stop",
            "policy_versions": [{"policy_version": 12, "start": 0, "end": 3}],
        },
        {
            "text": '{"objects":',
            "token_ids": [131, 40],
            "rollout_logprobs": [-0.41, -2.6],
            "finish_reason": "length",
            "policy_versions": [
                {"policy_version": 12, "start": 0, "end": 1},
                {"policy_version": 13, "start": 1, "end": 2},
            ],
        },
    ],
    "renormalised": False,
}

SCENE_GRAPHS: dict[str, Any] = {"images": [{"data": PICTURE}], "max_tokens": 256, "text": True}
SCENE_GRAPHS_FORM: dict[str, Any] = {"images": ["photo.jpg"], "max_tokens": 256, "draw": "svg"}
"""Stands for the file's bytes: a form holds them, and no name."""
SCENE_GRAPHS_ANSWER: dict[str, Any] = {
    "server_id": "node7-8200-1a2b3c",
    "task": "sgg",
    "graphs": [
        {
            "width": 112,
            "height": 84,
            "objects": [{"id": "square.1", "bbox": [7.952, 39.984, 47.936, 75.936]}],
            "relationships": [],
            "status": "ok",
            "dropped": {},
            "truncated": False,
            "fault": None,
            "unconstrained_status": None,
            "confidence": 0.8125,
            "num_tokens": 31,
            "finish_reason": "stop",
            "policy_versions": [12, 12],
            "text": _TEXT,
            "svg": None,
        }
    ],
}

CHAT: dict[str, Any] = {
    "model": "toy-start",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PICTURE}},
                {"type": "text", "text": _QUESTION},
            ],
        }
    ],
    "max_tokens": 128,
}
CHAT_ANSWER: dict[str, Any] = {
    "id": "chatcmpl-8f2e5a",
    "object": "chat.completion",
    "created": 1795374260,
    "model": "toy-start",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": _TEXT},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 21, "completion_tokens": 31, "total_tokens": 52},
}
CHAT_EVENTS = (
    'data: {"id": "chatcmpl-8f2e5a", "object": "chat.completion.chunk", "created": 1795374260, '
    '"model": "toy-start", "choices": [{"index": 0, "delta": {"content": "<answer>"}, '
    '"finish_reason": null}]}\n\ndata: [DONE]\n\n'
)
MODELS_ANSWER: dict[str, Any] = {
    "object": "list",
    "data": [
        {"id": "toy-start", "object": "model", "created": 1795374260, "owned_by": "vllm"},
    ],
}

STAGE: dict[str, Any] = {
    "transport": "shm",
    "manifest": {
        "policy_version": 4,
        "incarnation": 1,
        "step": 4,
        "vision_trained": False,
        "partial": False,
        "algorithm": "blake3",
        "tensors": {
            "lm_head.weight": {
                "shape": [512, 128],
                "dtype": "float32",
                "digest": "42c412e896506d3b3e0dcdc41d38801d4528bebfd5b5c4d440d8680c08353049",
            },
            "model.language_model.norm.weight": {
                "shape": [128],
                "dtype": "float32",
                "digest": "733859c1fc6b9331793b2952dde66f89cdd4d513d04d59d7b07bd3912098e79b",
            },
        },
        "adapter": None,
    },
    "checksum": _CHECKSUM,
}
COMMIT: dict[str, Any] = {"policy_version": 4, "checksum": _CHECKSUM}
POLICY: dict[str, Any] = {
    "server_id": "node7-8200-1a2b3c",
    "model": "toy-start",
    "dtype": "float32",
    "policy_version": 3,
    "incarnation": 1,
    "checksum": "4e06d7a5f80ddf4e31c2e6bdaf35b594b837a23e3fd7ac938aac7b9e0f158b4d",
    "staged_version": 4,
    "state": "ready",
    "model_runner": "v1",
}
COMMITTED = POLICY | {"policy_version": 4, "checksum": _CHECKSUM, "staged_version": None}
PASS_ON = {"checksum": _CHECKSUM, "url": "http://10.1.0.8:8200"}
PROOF: dict[str, Any] = {
    "proofs": ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
}
