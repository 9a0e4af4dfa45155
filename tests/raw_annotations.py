"""Annotations as they are downloaded, small: what the converters read."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scene_data.conversion.convert import Conversion, ConversionOptions, convert, open_source
from scene_data.conversion.graphs import GraphRules
from scene_data.vocabulary import OpenVocabulary


def picture(width: int = 64, height: int = 48, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=kind)
    return buffer.getvalue()


def put(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        path.write_text(json.dumps(value))
    return path


def vg_object(key: int, name: str, x: float = 1, y: float = 2, w: float = 20, h: float = 30) -> Any:
    return {"object_id": key, "name": name, "x": x, "y": y, "w": w, "h": h, "synsets": []}


def vg_relationship(subject: Any, predicate: str, object_: Any) -> Any:
    return {
        "relationship_id": 1,
        "predicate": predicate,
        "subject": subject,
        "object": object_,
        "synsets": [],
    }


def put_vg(folder: Path, *records: Any, image_ids: tuple[int, ...] = ()) -> Path:
    """`relationships.json`, `image_data.json`, and a 64 x 48 image for each id in it."""
    ids = image_ids or tuple(record["image_id"] for record in records)
    put(folder / "relationships.json", records)
    put(folder / "image_data.json", [{"image_id": i, "width": 64, "height": 48} for i in ids])
    for i in ids:
        put(folder / f"pixels/VG_100K_2/{i}.jpg", picture())
    return folder


def converted(
    source: Path | str,
    output: Path,
    *,
    vocabulary: str | None = None,
    open_vocabulary: OpenVocabulary | None = None,
    object_aliases: Path | None = None,
    predicate_aliases: Path | None = None,
    **options: Any,
) -> Conversion:
    """All that `sgg-rl data convert` does."""
    opened = open_source(
        str(source), vocabulary=vocabulary, need_images=options.get("with_images", True)
    )
    rules = GraphRules(
        vocabulary=vocabulary,
        object_aliases=object_aliases,
        predicate_aliases=predicate_aliases,
        open_vocabulary=open_vocabulary,
    )
    return convert(opened, rules, ConversionOptions(folder=output, **options))
