"""`sgg-rl similarity`: tables of how alike names are."""

from pathlib import Path
from typing import Annotated

import typer

from cli.views.safe_text import safe
from services.errors import SettingsError

similarity_app = typer.Typer(help="Tables of how alike names are.", no_args_is_help=True)

Vocabulary = Annotated[
    list[Path],
    typer.Option(help="Names: one a line, a JSON list, VG's dictionaries or PSG's categories."),
]
Aliases = Annotated[list[Path] | None, typer.Option(help="Synonyms: a group a line, by commas.")]
Embedding = Annotated[str | None, typer.Option(help="A sentence-transformers model.")]
Threshold = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="With --embedding: what is less alike counts as 0.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the table is written.")]


@similarity_app.command("build")
def build(
    vocabulary: Vocabulary,
    output: Output,
    aliases: Aliases = None,
    embedding: Embedding = None,
    threshold: Threshold = 0.5,
) -> None:
    """Make a table from a vocabulary, and aliases or an embedding model.

    Each of --vocabulary and --aliases may be given several times.

    Example: sgg-rl similarity build --vocabulary names.txt --aliases alike.txt -o a.json
    """
    if bool(aliases) == bool(embedding):
        raise SettingsError("say either --aliases or --embedding")
    from reward_service.similarity import build as made
    from reward_service.similarity.table import save_table

    names = [name for path in vocabulary for name in made.read_vocabulary(path)]
    of = ", ".join(path.name for path in vocabulary)
    if embedding:
        from reward_service.similarity.embedding import load_embedding

        similarity = load_embedding(embedding)
        source = f"{similarity.version} over {of}, threshold {threshold}"
        table = made.table_of_similarity(names, similarity, threshold, source)
    else:
        groups = [group for path in aliases or () for group in made.read_aliases(path)]
        source = f"aliases of {', '.join(path.name for path in aliases or ())} over {of}"
        table = made.table_of_aliases(names, groups, source)
    save_table(output, table)
    print(f"{output}: {len(table.names)} names, {len(table.pairs)} pairs")
    print(table.similarity().version)


@similarity_app.command("show")
def show(file: Path, name: str) -> None:
    """Print the names of the table in FILE that are like NAME, the most alike first.

    Example: sgg-rl similarity show a.json bicycle
    """
    from reward_service.similarity.table import load_table

    found = load_table(file).neighbours(name)
    for other, value in found:
        print(f"{value:8.6f}  {safe(other)}")
    if not found:
        print("in the table, and like no other name")
