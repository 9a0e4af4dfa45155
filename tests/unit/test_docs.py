"""What README, CONTRIBUTING, SECURITY and docs/ name exists: links, files, commands, settings."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from cli.main import app
from services.bundled import bundled
from services.schemas.common import Sampling
from services.settings import Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/*.md")])
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""The changelog names paths of earlier releases too."""
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)\s]+)\)")
TOP = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
CODE_PATH = re.compile(rf"(?<![\w/.-])(?:{TOP})(?:/[\w.*-]+)+/?")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)")
MODULE = re.compile(r"python -m (\w+(?:\.\w+)+)")
TARGET = re.compile(r"`make ([a-z][\w-]*)|^make ([a-z][\w-]*)", re.M)
SGG_RL = typer.main.get_command(app)
FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.M | re.S)
COMMAND = re.compile(r"(?<![\w/.-])sgg-rl ([^`|;&>)#…\n]*)")
CODE = re.compile(r"`([^`\n]+)`")
SETTING = re.compile(rf"({'|'.join(Settings.model_fields)})\.([a-z]\w*)(?: = .+)?")
FILE_ENDS = {"toml", "md", "py", "json", "jsonl", "parquet", "yml", "txt", "html", "safetensors"}
IN_A_REQUEST = {f"sampling.{name}" for name in Sampling.model_fields}
OTHERS_NAMES = re.compile(r"^(\|[^|]*\|[^|]*\|).*", re.M)
"""What stands behind a table's first two columns, on the page for those who come from elsewhere."""
MADE_BY_A_RUN = re.compile(r"(build|runs|data|docs/data)/|.*\bcheckpoints?/step-")
CURL_AFTER_7_68 = re.compile(
    r"--(?:json|fail-with-body|output-dir|remove-on-error|retry-all-errors|url-query|variable)\b"
)
MAX_README_LINES = 120


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's headings, and the ids that it sets itself."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([\w-]+)">', text))


def dead_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def missing_paths(page: Path) -> Iterator[str]:
    for path in CODE_PATH.findall(LINK.sub("", page.read_text())):
        path = path.rstrip(".")
        if not MADE_BY_A_RUN.match(path) and not any(ROOT.glob(path.rstrip("/"))):
            yield path


def missing_commands(page: Path) -> Iterator[str]:
    """Modules that `python -m` would not find, and targets that make does not have."""
    text = page.read_text()
    for module in MODULE.findall(text):
        place = ROOT / module.replace(".", "/")
        if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists()):
            yield module
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    yield from {"".join(found) for found in TARGET.findall(text)} - targets


def too_new_for_curl(page: Path) -> Iterator[str]:
    """Options that curl 7.68 lacks, which long-lived systems have."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S):
        if "curl " in block:
            yield from CURL_AFTER_7_68.findall(re.sub(r"\bsgg-rl .*", "", block))


def wrong_commands(page: Path) -> Iterator[str]:
    """Lines and words of code that name a command or an option which `sgg-rl` does not have."""
    text = page.read_text().replace("\\\n", " ")
    fences = FENCE.findall(text)
    for code in (*fences, *CODE.findall(FENCE.sub("", text))):
        for found in COMMAND.findall(code):
            if wrong := wrong_word(found):
                yield f"sgg-rl {found.strip()}: {wrong}"


def wrong_word(arguments: str) -> str | None:
    """The first word of a command line that is no command and no option.

    Example: `"data conwert x"` is `"conwert"`, `"run --config"` is None
    """
    command, words = SGG_RL, iter(shlex.split(re.sub(r"['\"]", "", arguments)))
    while isinstance(command, TyperGroup):
        word = next(words, None)
        if word in (None, "--help", "--version", "--install-completion"):
            return None
        if word not in command.commands:
            return word
        command = command.commands[word]
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    asked = (word for word in words if re.match(r"-{1,2}[a-z]", word))
    return next(
        (word for word in asked if word.partition("=")[0] not in {*options, "--help"}), None
    )


def wrong_settings(page: Path) -> Iterator[str]:
    """Code such as `trainer.num_steps` of a setting that is not there."""
    text = FENCE.sub("", page.read_text())
    text = OTHERS_NAMES.sub(r"\1", text) if page.name == "coming-from.md" else text
    for code in set(CODE.findall(text)) - IN_A_REQUEST:
        if (found := SETTING.fullmatch(code)) and found[2] not in FILE_ENDS:
            section = Settings.model_fields[found[1]].annotation
            assert section is not None
            if found[2] not in section.model_fields:
                yield code


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/deploy/slurm.md", "configs/README.md"} <= {
        str(page.relative_to(ROOT)) for page in PAGES
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_is_there(page: Path) -> None:
    assert list(missing_paths(page)) == []
    assert list(missing_commands(page)) == []
    assert list(too_new_for_curl(page)) == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_setting_is_there(page: Path) -> None:
    assert list(wrong_commands(page)) == []
    assert list(wrong_settings(page)) == []


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs/tutorials").glob("*.md")), ids=lambda page: page.stem
)
def test_settings_of_a_tutorial_are_usable(page: Path) -> None:
    needed = {"model": {"path": "model"}, "data": {"train": "data"}}
    for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.M | re.S):
        tree = tomllib.loads(block)
        assert all(bundled(f"configs/{name}.toml").is_file() for name in tree.pop("extends", []))
        Settings.model_validate(needed | tree)


def fields(package: str, file: str) -> set[str]:
    """What the classes of a file declare; nothing is imported, which would take seconds."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    nodes = ast.walk(ast.parse((Path(spec.origin).parent / file).read_text()))
    targets = (node.target for node in nodes if isinstance(node, ast.AnnAssign))
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_what_trl_calls_a_setting_is_what_it_has() -> None:
    """The page for those who come from there names fields of the TRL that is installed."""
    page = (ROOT / "docs/tutorials/coming-from.md").read_text()
    rows = [row.split(" | ") for row in page.splitlines() if row.count(" | ") == 3][1:]
    named = {name for row in rows for name in re.findall(r"`(\w+)[=`]", row[2])}
    known = fields("trl", "trainer/grpo_config.py") | fields("transformers", "training_args.py")
    elsewhere = {"resume_from_checkpoint", "train", "peft_config", "reward_funcs", "GRPOConfig"}
    assert len(named) > 20
    assert named - elsewhere <= known


def test_what_is_not_there_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n[a](#one) [b](#two) [c](none.md) `trainer/none.py` `trainer/train.py` "
        "`python -m trainer.none` `python -m trainer.train` `make none` `make demo NAME=x` "
        "`sgg-rl run --resume` `sgg-rl data conwert x` `trainer.num_step` `trainer.num_steps`\n"
        "```\nsgg-rl infer x --outpt y   # --as such\nsgg-rl run \\\n   --confg x\n```\n"
        "```sh\nsgg-rl score x --json\ncurl --json @a.json URL\n```\n"
    )
    assert list(dead_links(page)) == ["#two", "none.md"]
    assert list(missing_paths(page)) == ["trainer/none.py"]
    assert list(missing_commands(page)) == ["trainer.none", "none"]
    assert list(too_new_for_curl(page)) == ["--json"]
    assert [line.split(": ")[1] for line in wrong_commands(page)] == [
        "--outpt",
        "--confg",
        "conwert",
    ]
    assert list(wrong_settings(page)) == ["trainer.num_step"]


def missing_tests(page: Path) -> Iterator[str]:
    for file, name in TEST.findall(page.read_text()):
        if not re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M):
            yield f"{file}::{name}"


def test_every_test_that_a_page_names_is_there(tmp_path: Path) -> None:
    assert [name for page in PAGES for name in missing_tests(page)] == []
    page = tmp_path / "page.md"
    page.write_text("`tests/unit/test_docs.py::test_nothing`")
    assert list(missing_tests(page)) == ["tests/unit/test_docs.py::test_nothing"]


def test_readme_is_short_and_leads_to_every_page() -> None:
    linked = {(ROOT / name.partition("#")[0]) for name in LINK.findall(README.read_text())}
    assert {page for page in PAGES if page != README} <= linked
    assert len(README.read_text().splitlines()) < MAX_README_LINES
