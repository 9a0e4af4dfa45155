from pathlib import Path

import pytest

from services.errors import SettingsError
from services.settings import dump_settings, load_settings

MINIMAL = '[model]\npath = "m"\n[data]\ntrain = "d"\n'


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(MINIMAL + "[trainer]\nnum_steps = 5\nmax_policy_lag = 3\n")
    return file


def test_later_sources_win(toml: Path) -> None:
    environment = {"SGG__TRAINER__NUM_STEPS": "6", "SGG__TRAINER__MAX_POLICY_LAG": "2", "PATH": ""}
    settings = load_settings(toml, ["trainer.num_steps=7", "run.name=abc"], environment)
    assert settings.trainer.num_steps == 7
    assert settings.trainer.max_policy_lag == 2
    assert settings.run.name == "abc"
    assert settings.trainer.group_size == 8


def test_a_rubric_is_a_name_or_a_table(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(MINIMAL)
    assert load_settings(file, ["reward.rubric=r1-hard"], {}).reward.rubric == "r1-hard"
    file.write_text(MINIMAL + "[reward.rubric]\nterms = { edge_hard = 5 }\nbeta = 0.5\n")
    settings = load_settings(file, [], {})
    assert settings.reward.rubric == {"terms": {"edge_hard": 5}, "beta": 0.5}
    file.write_text(dump_settings(settings))
    assert load_settings(file, [], {}) == settings


def test_text_that_looks_like_a_number_stays_text(toml: Path) -> None:
    assert load_settings(toml, ["run.name=7"], {}).run.name == "7"


@pytest.mark.parametrize(
    ("body", "overrides", "environment", "named"),
    [
        ("[trainer]\nnum_stepz = 5\n", [], {}, "trainer.num_stepz"),
        ("[trainr]\nnum_steps = 5\n", [], {}, "trainr"),
        ("", ["trainer.num_stepz=5"], {}, "num_stepz"),
        ("", ["num_steps=5"], {}, "num_steps=5"),
        ("", ["trainer.num_steps"], {}, "section.field=value"),
        ("", [], {"SGG__TRAINER__NUM_STEPZ": "5"}, "SGG__TRAINER__NUM_STEPZ"),
        ("", [], {"SGG__TRAINR__NUM_STEPS": "5"}, "SGG__TRAINR__NUM_STEPS"),
        ("[trainer]\nnum_steps = 0\n", [], {}, "trainer.num_steps"),
        ("[trainer]\ngroup_size = 1\n", [], {}, "trainer.group_size"),
        ("[trainer]\nmax_policy_lag = -1\n", [], {}, "trainer.max_policy_lag"),
        ("[trainer]\nlearning_rate = nan\n", [], {}, "trainer.learning_rate"),
        ("[trainer]\ngroups_per_step = 3\nnum_ranks = 2\n", [], {}, "multiple of num_ranks"),
        ("[trainer]\nnum_ranks = 5\n", [], {}, "num_ranks"),
        ("[reward]\nworkers = 0\n", [], {}, "reward.workers"),
        ("", ["telemetry.otlp_endpoint=collector:4318"], {}, "telemetry.otlp_endpoint"),
        ("[trainer\n", [], {}, "not TOML"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, body: str, overrides: list[str], environment: dict[str, str], named: str
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(MINIMAL + body)
    with pytest.raises(SettingsError, match=named.replace("[", r"\[")):
        load_settings(file, overrides, environment)


def test_missing_file_and_missing_section_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no settings file at"):
        load_settings(tmp_path / "none.toml")
    (tmp_path / "run.toml").write_text('[data]\ntrain = "d"\n')
    with pytest.raises(SettingsError, match="model: Field required"):
        load_settings(tmp_path / "run.toml", [], {})


def test_resolved_settings_read_back_the_same(toml: Path, tmp_path: Path) -> None:
    settings = load_settings(toml, ["security.data_token_file=/tmp/t"], {})
    copy = tmp_path / "copy.toml"
    copy.write_text(dump_settings(settings))
    assert load_settings(copy, [], {}) == settings


def test_a_file_stands_on_others_and_later_files_win(toml: Path, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[trainer]\nnum_steps = 3\ngroup_size = 4\n")
    (tmp_path / "sub").mkdir()
    middle, own = tmp_path / "sub/middle.toml", tmp_path / "own.toml"
    middle.write_text('extends = ["../base.toml"]\n[trainer]\nnum_steps = 5\n')
    own.write_text(f'extends = ["{toml}", "sub/middle.toml"]\n[run]\nname = "own"\n')
    above = tmp_path / "above.toml"
    above.write_text("[trainer]\nmax_policy_lag = 7\n")
    found = load_settings([own, above], [], {})
    assert (found.run.name, found.model.path) == ("own", load_settings(toml, [], {}).model.path)
    assert (found.trainer.num_steps, found.trainer.group_size) == (5, 4)
    assert found.trainer.max_policy_lag == 7


def test_files_that_extend_in_a_circle_or_nothing_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('extends = ["two.toml"]')
    two.write_text('extends = ["one.toml"]')
    with pytest.raises(SettingsError, match=r"one.toml extends itself, by way of .*two.toml"):
        load_settings(one, [], {})
    two.write_text('extends = ["three.toml"]')
    with pytest.raises(SettingsError, match=r"three.toml, which .*two.toml extends"):
        load_settings(one, [], {})
    two.write_text('extends = "three.toml"')
    with pytest.raises(SettingsError, match="extends is a list of files"):
        load_settings(one, [], {})


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[3].glob("configs/*.toml")), ids=lambda p: p.name
)
def test_every_shipped_config_parses(file: Path) -> None:
    assert load_settings(file, [], {}).trainer.total_steps(1000) > 0


def test_overrides_may_name_all_that_has_no_default() -> None:
    settings = load_settings([], ["model.path=m", "data.train=d"], {})
    assert (settings.model.path, settings.data.train) == ("m", "d")
    with pytest.raises(SettingsError, match="model: Field required"):
        load_settings([], ["data.train=d"], {})


def test_an_optional_field_can_be_unset(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[model]\npath = "m"\n[data]\ntrain = "t"\nheldout = "h"\n')
    assert load_settings(file, ["data.heldout="], {}).data.heldout is None
    assert load_settings(file, ["run.seed=1", "cluster.gpu_memory_gib="], {}).run.seed == 1
    with pytest.raises(SettingsError, match=r"model.box_space"):
        load_settings(file, ["model.box_space="], {})


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_settings(file, [], {}).model.path == "m"


def test_homes_and_variables_are_filled_into_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    paths = [
        *("run.root", "model.path", "data.train", "data.heldout", "data.template"),
        *("data.vocabulary", "redis.password_file", "reward.similarity_folder"),
        *("deepspeed.config_file", "deploy.site", "security.data_token_file"),
        "security.admin_token_file",
    ]
    settings = load_settings([], [f'{name}="~/$SCRATCH/${{SCRATCH}}x"' for name in paths], {})
    tree = settings.model_dump(mode="json")
    found = {name: tree[name.split(".")[0]][name.split(".")[1]] for name in paths}
    assert found == dict.fromkeys(paths, "/home/me//scratch/me//scratch/mex") | {
        name: "/home/me/scratch/me/scratch/mex"
        for name in paths
        if name.endswith(("root", "_file", "_folder"))
    }
    lists = ['reward.embedding_models=["~/e", "owner/e"]', 'rollout.adapters={ a = "$SCRATCH/a" }']
    settings = load_settings([], [*lists, "model.path=m", "data.train=owner/name:train"], {})
    assert settings.reward.embedding_models == ["/home/me/e", "owner/e"]
    assert settings.rollout.adapters == {"a": Path("/scratch/me/a")}
    assert settings.data.train == "owner/name:train"
    file = tmp_path / "resolved.toml"
    file.write_text(dump_settings(settings))
    monkeypatch.delenv("SCRATCH")  # another process, on another machine
    assert load_settings(file, [], {}) == settings


def test_a_variable_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCRATCHX", raising=False)
    run = ["model.path=m", "data.train=d"]
    for name, path in [("run.root", "$SCRATCHX/runs"), ("data.train", "${SCRATCHX}/a.parquet")]:
        variable = path.split("/", maxsplit=1)[0].replace("$", r"\$")
        reason = rf"{name}: .*the environment has no variable {variable}"
        with pytest.raises(SettingsError, match=reason):
            load_settings([], [*run, f"{name}={path}"], {})
    (tmp_path / "run.toml").write_text('extends = ["$SCRATCHX/base.toml"]')
    with pytest.raises(SettingsError, match=r"run.toml: extends: .* no variable \$SCRATCHX"):
        load_settings(tmp_path / "run.toml", [], {})
    monkeypatch.setenv("SCRATCHX", str(tmp_path))
    (tmp_path / "base.toml").write_text(MINIMAL)
    assert load_settings(tmp_path / "run.toml", [], {}).model.path == "m"
