"""`sgg-rl weights`: versions of the policy by hand."""

from pathlib import Path
from typing import Annotated

import typer

weights_app = typer.Typer(help="Versions of the policy by hand.", no_args_is_help=True)

PolicyVersion = Annotated[int, typer.Option(min=1, help="Later than what the server serves.")]
Incarnation = Annotated[int, typer.Option(min=1, help="Not earlier than what the server serves.")]
FrozenVision = Annotated[
    bool, typer.Option("--frozen-vision", help="Keep the image embeddings that are cached.")
]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Where the two files are written.")]


@weights_app.command("manifest")
def manifest(
    file: Path,
    policy_version: PolicyVersion,
    incarnation: Incarnation = 1,
    frozen_vision: FrozenVision = False,
    output: Folder = Path(),
) -> None:
    """Describe a safetensors FILE: stage.json and commit.json, as a rollout server wants them.

    docs/rollout.md has the commands that bring them to a server.

    Example: sgg-rl weights manifest model.safetensors --policy-version 3
    """
    from services.schemas.weights import (
        CommitRequest,
        StageRequest,
        WeightManifest,
        manifest_checksum,
    )
    from weight_sync.digests import ALGORITHM
    from weight_sync.transports.files import describe_file

    described = WeightManifest(
        policy_version=policy_version,
        incarnation=incarnation,
        step=policy_version,
        vision_trained=not frozen_vision,
        algorithm=ALGORITHM,
        tensors=describe_file(file),
    )
    checksum = manifest_checksum(described)
    stage = StageRequest(transport="http", manifest=described, checksum=checksum)
    commit = CommitRequest(policy_version=policy_version, checksum=checksum)
    output.mkdir(parents=True, exist_ok=True)
    for name, message in (("stage.json", stage), ("commit.json", commit)):
        (output / name).write_text(message.model_dump_json())
        print(f"wrote {output / name}")
