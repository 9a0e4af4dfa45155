"""Similarity by a real sentence-transformers model: tiny, with random weights, made here."""

import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.commands.prepare.similarity import similarity_app
from reward_service.similarity.embedding import EmbeddingSimilarity, load_embedding
from reward_service.similarity.registry import Similarities
from reward_service.similarity.table import load_table
from scene_graph.similarity import Similarity
from services.errors import InvalidInputError, SettingsError

MakeModel = Callable[..., Path]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = ["man", "person", "traffic light", "man ", "über", "", "\ud800", "x" * 200, "人"]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Writes a model: its weights by `seed`, its tokens by `words`, its vectors by `pooling`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    def make(seed: int = 0, words: str = LETTERS, pooling: str = "mean") -> Path:
        folder = tmp_path_factory.mktemp("model")
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"##{w}" for w in words)]
        (folder / "vocab.txt").write_text("\n".join(tokens))
        torch.manual_seed(seed)
        bert = BertModel(
            BertConfig(
                vocab_size=len(tokens),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            )
        )
        bert.save_pretrained(folder / "bert")
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
        modules = [Transformer(str(folder / "bert")), Pooling(16, pooling)]
        model = SentenceTransformer(modules=modules, device="cpu")
        model.save_pretrained(str(folder / "model"))
        return folder / "model"

    return make


@pytest.fixture(scope="session")
def model(make_model: MakeModel) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def similarity(model: Path) -> EmbeddingSimilarity:
    return load_embedding(str(model))


def value(similarity: Similarity, left: str, right: str) -> float:
    names = list(dict.fromkeys([left, right]))
    pair = np.array([names.index(left)]), np.array([names.index(right)])
    return float(similarity.of_pairs(names, *pair)[0])


def matrix(similarity: Similarity, names: list[str]) -> dict[tuple[str, str], float]:
    left, right = (index.ravel() for index in np.indices((len(names), len(names))))
    values = similarity.of_pairs(names, left, right).tolist()
    return {(names[i], names[j]): v for i, j, v in zip(left, right, values, strict=True)}


BATCHES = st.lists(
    st.sampled_from(NAMES) | st.text(max_size=12), min_size=1, max_size=6, unique=True
)


@settings(max_examples=30)
@given(BATCHES, st.randoms())
def test_similarity_is_symmetric_bounded_and_the_same_in_any_batch(
    similarity: EmbeddingSimilarity, names: list[str], random: Random
) -> None:
    values = matrix(similarity, names)
    for (left, right), found in values.items():
        assert 0 <= found <= 1
        assert found == round(found, 6)
        assert found == values[right, left]
        assert found == value(similarity, left, right)
        assert left != right or found == 1
    assert matrix(similarity, random.sample(names, len(names))) == values


def test_similarity_is_the_cosine_of_the_models_own_vectors(
    model: Path, similarity: EmbeddingSimilarity
) -> None:
    from sentence_transformers import SentenceTransformer

    a, b = (
        SentenceTransformer(str(model), device="cpu").encode(n).astype(np.float64)
        for n in ("man", "traffic light")
    )
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert 0 < cosine < 0.999
    assert value(similarity, "man", "traffic light") == pytest.approx(cosine, abs=1e-6)


def test_vectors_that_point_apart_have_no_similarity() -> None:
    vectors = {"up": [0.0, 2.0], "down": [0.0, -1.0], "none": [0.0, 0.0], "bad": [np.nan, 1.0]}
    similarity = EmbeddingSimilarity(lambda t: np.array(vectors[t], dtype=np.float32), "test")
    values = matrix(similarity, list(vectors))
    assert all(values[pair] == (pair[0] == pair[1]) for pair in values)


def test_name_over_200_characters_is_not_encoded() -> None:
    asked: list[str] = []

    def encode(text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        asked.append(text)
        return np.ones(2, dtype=np.float32)

    similarity = EmbeddingSimilarity(encode, "test")
    longest, too_long = "x" * 200, "x" * 201
    values = matrix(similarity, ["man", longest, too_long])
    assert asked == ["man", longest]
    assert values["man", longest] == 1
    assert values["man", too_long] == values[longest, too_long] == 0
    assert values[too_long, too_long] == 1


def test_each_name_is_encoded_once_and_equal_names_never() -> None:
    asked: list[str] = []

    def encode(text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        asked.append(text)
        return np.ones(2, dtype=np.float32)

    similarity = EmbeddingSimilarity(encode, "test")
    value(similarity, "man", "man")
    assert asked == []
    many = np.zeros(20_000, dtype=np.int64)
    assert similarity.of_pairs(["man", "hat", "dog"], many, many + 1).tolist() == [1.0] * 20_000
    value(similarity, "hat", "man")
    assert sorted(asked) == ["hat", "man"]


def test_many_pairs_are_computed_as_one_by_one(similarity: EmbeddingSimilarity) -> None:
    names = [a + b for a in LETTERS for b in LETTERS[:4]]
    values = matrix(similarity, names)  # 5,356 pairs: more than are computed at once
    for left, right in [("aa", "ab"), ("aa", "zd"), ("md", "nc"), ("zc", "zd")]:
        assert values[left, right] == value(similarity, left, right)


def test_threads_get_what_one_thread_gets(model: Path, similarity: EmbeddingSimilarity) -> None:
    names = [f"name {letter}" for letter in LETTERS]
    fresh = load_embedding(str(model))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: matrix(fresh, names), range(4)))
    assert results == [matrix(similarity, names)] * 4


def test_version_is_the_same_for_the_same_model_after_use(
    model: Path, similarity: EmbeddingSimilarity
) -> None:
    value(similarity, "man", "a very long name " * 8)
    again = load_embedding(str(model))
    assert again.version == similarity.version
    assert again.version.startswith(f"embedding:{model}:")


def test_version_changes_with_weights_tokens_and_pooling(make_model: MakeModel) -> None:
    models = [make_model(), make_model(), make_model(seed=1), make_model(words=LETTERS[::-1])]
    models.append(make_model(pooling="cls"))
    digests = [load_embedding(str(path)).version.rpartition(":")[2] for path in models]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_model_that_cannot_be_loaded_says_so(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(InvalidInputError, match="cannot be loaded"):
        load_embedding(str(folder))


def test_spoilt_weights_are_refused(make_model: MakeModel) -> None:
    path = make_model()
    [weights] = path.rglob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(InvalidInputError, match="cannot be loaded"):
        load_embedding(str(path))


def test_model_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host, **_: asked.append(host))
    with pytest.raises(InvalidInputError, match="hf download"):
        load_embedding("sgg-rl-tests/no-such-model")
    assert asked == []


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InvalidInputError, match=r'pip install "sgg-rl\[embedding\]"'):
        load_embedding(str(model))


def test_allowed_model_is_loaded_once_by_name(model: Path, similarity: Similarity) -> None:
    similarities = Similarities(embedding_models=[str(model)])
    found = similarities.get(f"embedding:{model}")
    assert similarities.get(f"embedding:{model}") is found
    assert value(found, "man", "person") == value(similarity, "man", "person")
    assert found.version == similarity.version


def test_table_made_by_command_holds_what_the_model_says(
    tmp_path: Path, model: Path, similarity: EmbeddingSimilarity
) -> None:
    vocabulary, output = tmp_path / "names.txt", tmp_path / "t.json"
    vocabulary.write_text("man\nperson\ntraffic light\n")
    arguments = ["--vocabulary", vocabulary, "--embedding", model, "--threshold", 0, "-o", output]
    done = CliRunner().invoke(similarity_app, ["build", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    table = load_table(output).similarity()
    assert "3 names, 3 pairs" in done.output
    assert table.version in done.output
    assert matrix(table, ["man", "person"]) == matrix(similarity, ["man", "person"])


def test_command_makes_and_shows_a_table_of_aliases(tmp_path: Path) -> None:
    names, aliases, output = (tmp_path / name for name in ("names.txt", "aliases.txt", "t.json"))
    names.write_text("motorcycle\ntree\n")
    aliases.write_text("motorcycle,motorbike\n")
    arguments = ["--vocabulary", names, "--aliases", aliases, "--output", output]
    done = CliRunner().invoke(similarity_app, ["build", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert "3 names, 1 pairs" in done.output
    shown = CliRunner().invoke(similarity_app, ["show", str(output), "Motorbike"])
    assert shown.output == "1.000000  motorcycle\n"
    shown = CliRunner().invoke(similarity_app, ["show", str(output), "tree"])
    assert "like no other name" in shown.output
    unknown = CliRunner().invoke(similarity_app, ["show", str(output), "unicorn"])
    assert isinstance(unknown.exception, InvalidInputError)


@pytest.mark.parametrize("ways", [[], ["--aliases", "a", "--embedding", "b"]])
def test_command_wants_aliases_or_a_model(tmp_path: Path, ways: list[str]) -> None:
    arguments = ["build", "--vocabulary", "v", "--output", str(tmp_path / "t.json"), *ways]
    done = CliRunner().invoke(similarity_app, arguments)
    assert isinstance(done.exception, SettingsError)
