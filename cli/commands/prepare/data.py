"""`sgg-rl data` and `sgg-rl model`: make, convert and look at datasets; make a tiny model."""

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import AsJson
from cli.views.as_json import print_json
from cli.views.progress import counted, staged
from cli.views.safe_text import safe
from services.errors import InvalidInputError, SettingsError

if TYPE_CHECKING:
    from scene_data.conversion.convert import Conversion
    from scene_data.inspection import Inspection

_IDS = re.compile(r"""[^\s,;"'\[\]]+""")
"""In a list of ids: one a line, between commas, or in JSON"""

data_app = typer.Typer(help="Make, convert and look at datasets.", no_args_is_help=True)
model_app = typer.Typer(help="Make models.", no_args_is_help=True)

Vocabulary = Annotated[
    str | None,
    typer.Option(help="vg150, psg or a file: its names alone; those outside are counted."),
]

WithImages = Annotated[
    bool, typer.Option("--with-images/--no-images", help="Or annotations alone, as JSONL.")
]
KeepUnrelated = Annotated[
    bool,
    typer.Option(
        "--keep-unrelated", help="Keep images without relationships: detection needs none."
    ),
]


@data_app.command("make-toy")
def make_toy(
    folder: Path,
    num_train: Annotated[int, typer.Option(min=1)] = 4096,
    num_heldout: Annotated[int, typer.Option(min=1)] = 256,
    seed: int = 0,
    noisy: Annotated[
        bool, typer.Option("--noisy", help="Spoil the training annotations, as people do.")
    ] = False,
    level: Annotated[
        int, typer.Option(min=1, max=2, help="2: more shapes, occlusion, rare predicates.")
    ] = 1,
) -> None:
    """Render toy-scenes into FOLDER.

    Example: sgg-rl data make-toy data/toy --num-train 512
    """
    from scene_data.toy.scenes import ANNOTATOR_NOISE
    from scene_data.toy.scenes import make_toy as write

    noise = ANNOTATOR_NOISE if noisy else None
    write(
        folder,
        num_train=num_train,
        num_heldout=num_heldout,
        seed=seed,
        noise=noise,
        level=2 if level == 2 else 1,
    )
    print(f"wrote {num_train} training and {num_heldout} held-out scenes to {folder}")


@model_app.command("make-tiny")
def make_tiny(
    folder: Path,
    seed: int = 0,
    family: Annotated[
        Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"],
        typer.Option(help="The architecture."),
    ] = "qwen2_5_vl",
) -> None:
    """Write a tiny Qwen-VL with random weights into FOLDER.

    Example: sgg-rl model make-tiny models/tiny
    """
    from scene_data.toy.tiny_model import make_tiny_model

    with staged() as on_stage:
        make_tiny_model(folder, family=family, seed=seed, on_stage=on_stage)
    print(f"wrote {folder}")


@data_app.command("convert")
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Annotations in a layout of docs/data.md (VG150, Visual Genome, PSG, COCO with "
            "relations, GQA, Open Images), their folder, or any dataset that can be trained on."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the files, one a split.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with the image files, given again for another; else SOURCE's."),
    ] = None,
    with_images: WithImages = True,
    vocabulary: Vocabulary = None,
    object_aliases: Annotated[
        Path | None, typer.Option(help="Synonyms: name,alias,alias a line.")
    ] = None,
    predicate_aliases: Annotated[Path | None, typer.Option(help="The same.")] = None,
    open_vocabulary: Annotated[
        Literal["ovd", "ovr", "ovdr"] | None,
        typer.Option(help="Leave out VG150's novel objects, predicates, or both: for training."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: images go to NAME whose ids are in FILE, one a line."),
    ] = None,
    keep_unrelated: KeepUnrelated = False,
    as_json: AsJson = False,
) -> None:
    """Write annotations and images as the parquet files that training reads.

    Example: sgg-rl data convert VG150.json --output data/vg150
    """
    from scene_data.conversion.convert import ConversionOptions, open_source
    from scene_data.conversion.convert import convert as run
    from scene_data.conversion.graphs import GraphRules

    opened = open_source(source, vocabulary=vocabulary, need_images=with_images)
    if not as_json:
        print(f"{safe(source)} is read as {opened.title}")
    rules = GraphRules(
        vocabulary=vocabulary,
        object_aliases=object_aliases,
        predicate_aliases=predicate_aliases,
        open_vocabulary=open_vocabulary,
    )
    options = ConversionOptions(
        folder=output,
        image_folders=tuple(images or (Path(opened.name).parent,)),
        with_images=with_images,
        splits=_splits(split) if split else None,
        keep_unrelated=keep_unrelated,
    )
    with counted("images") as on_image:
        done = run(opened, rules, options, on_image)
    if as_json:
        print_json({"layout": opened.title, "files": done.files, "tally": done.tally})
    else:
        _show_conversion(done)


@data_app.command("inspect")
def inspect(
    path: Annotated[str, typer.Argument(help="Anything that can be trained on.")],
    vocabulary: Annotated[
        str | None, typer.Option(help="vg150, psg or a file: say which names are outside it.")
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Decode every image.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for pictures of samples and inspection.json.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pictures, spread over the rows.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Counts, faults and statistics of a dataset, and pictures of it.

    Example: sgg-rl data inspect data/vg150/train.parquet --vocabulary vg150
    """
    from cli.views import data as data_view
    from scene_data.inspection import Inspector
    from scene_data.reading.sources import open_rows
    from scene_data.vocabulary import load_vocabulary

    rows = open_rows(path, need_images=False)
    words = load_vocabulary(vocabulary) if vocabulary else None
    inspector = Inspector(rows, vocabulary=words, check_images=images)
    with counted("rows") as on_row:
        found = inspector.run(on_row)
    text = json.dumps(asdict(found), indent=2, ensure_ascii=False)
    if as_json:
        print_json(found)
    else:
        data_view.show(found, path)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "inspection.json").write_text(text + "\n", encoding="utf-8")
        written = data_view.draw_samples(rows, inspector.check.usable, output, samples)
        if not as_json:
            print(f"wrote inspection.json and {', '.join(written) or 'no picture'} in {output}")
    if found.num_without_image == found.num_rows > 0 and not found.num_broken:
        told = _of_a_reference(found, path)
        if not as_json:
            print(told)
    elif not found.num_usable:
        raise InvalidInputError(f"{path}: {_why_unusable(found)}")


def _of_a_reference(found: "Inspection", path: str) -> str:
    """What annotations alone are for.

    Raises:
        InvalidInputError: No row says a size, so `sgg-rl evaluate` refuses them too.
    """
    if not found.num_sized:
        raise InvalidInputError(
            f"{path}: no row names an image (`image`) or says its width and height: name images "
            "to train on them, or add the sizes for a reference of `sgg-rl evaluate`"
        )
    told = "no row names an image: this is a reference for `sgg-rl evaluate`, not to train on"
    if num := found.num_rows - found.num_sized:
        told += f"; it leaves out the {num:,} rows that say no width and height"
    return told


def _why_unusable(found: "Inspection") -> str:
    if not found.num_rows:
        return "it has no row"
    return f"none of its {found.num_rows:,} rows can be used, mostly for one reason: " + max(
        found.broken_by_reason, key=lambda reason: found.broken_by_reason[reason]
    )


def _splits(options: list[str]) -> dict[str, str]:
    """Split by image id.

    Raises:
        SettingsError: An option is malformed, a file cannot be read, or an id is in two of them.
    """
    found: dict[str, str] = {}
    for option in options:
        name, _, file = option.partition("=")
        if not name.replace("-", "").replace("_", "").isalnum() or not file:
            raise SettingsError(f"--split {option}: write NAME=FILE, such as test=test_ids.txt")
        try:
            text = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--split {option}: cannot read the file: {error}") from error
        if not (ids := _IDS.findall(text)):
            raise SettingsError(f"--split {option}: the file has no id; one a line is wanted")
        for image_id in ids:
            if found.setdefault(image_id, name) != name:
                raise SettingsError(f"--split: image {image_id} is in {found[image_id]} and {name}")
    return found


def _show_conversion(done: "Conversion") -> None:
    for file in done.files.values():
        print(
            f"wrote {file.path}: {file.num_images:,} images, {file.num_objects:,} objects, "
            f"{file.num_relationships:,} relationships"
        )
    tally = done.tally
    _show_counts("images left out", tally.left_out)
    _show_counts("dropped from annotations", tally.dropped)
    _show_counts("broken images, left out", tally.reasons)
    for line in tally.broken:
        print(f"    {safe(line, 200)}")


def _show_counts(title: str, counts: Counter[str]) -> None:
    if counts:
        print(f"{title}:")
    for reason, number in counts.most_common():
        print(f"  {number:>9,}  {safe(reason)}")
