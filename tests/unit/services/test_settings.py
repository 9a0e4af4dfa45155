from pathlib import Path

import pytest

from services.errors import SettingsError
from services.redis.client import connect
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
        (
            "[trainer]\nnum_stepz = 5\n",
            [],
            {},
            "  trainer.num_stepz: [trainer] has no 'num_stepz'; did you mean num_steps?",
        ),
        ("[trainr]\nnum_steps = 5\n", [], {}, "  trainr: no such section; did you mean trainer?"),
        (
            "",
            ["trainer.num_stepz=5"],
            {},
            "--set trainer.num_stepz: [trainer] has no 'num_stepz'; did you mean num_steps?",
        ),
        (
            "",
            ["num_steps=5"],
            {},
            "--set num_steps: no such setting; did you mean trainer.num_steps?",
        ),
        ("", ["trainer.max_tokens=5"], {}, "; did you mean sampling.max_tokens or evaluation.max"),
        ("[trainer]\nspeed = 5\n", [], {}, "[trainer] has no 'speed'; there are num_steps, num_ep"),
        ("", ["trainer.num_steps.x=5"], {}, "a setting is a section and a field"),
        ("", ["trainer.num_steps"], {}, "section.field=value"),
        ("", ["trainer.num_steps=many"], {}, "^cannot use --set trainer.num_steps:\n  trainer.num"),
        (
            "",
            [],
            {"SGG__RUN__SEED": "x"},
            "^cannot use environment variable SGG__RUN__SEED:\n  run",
        ),
        (
            "",
            ["reward.url=http://me@host"],
            {},
            "^cannot use the settings:\n  reward.url holds a us",
        ),
        ("", [], {"SGG__TRAINER__NUM_STEPZ": "5"}, "SGG__TRAINER__NUM_STEPZ"),
        ("", [], {"SGG__TRAINR__NUM_STEPS": "5"}, "SGG__TRAINR__NUM_STEPS"),
        ("[trainer]\nnum_steps = 0\n", [], {}, "trainer.num_steps"),
        ("[trainer]\ngroup_size = 1\n", [], {}, "trainer.group_size"),
        ("[trainer]\nmax_policy_lag = -1\n", [], {}, "trainer.max_policy_lag"),
        (
            "[trainer]\nmax_policy_lag = 3\nmax_token_lag = 2\n",
            [],
            {},
            r"max_token_lag \(2\) must be at least max_policy_lag \(3\), or 0 for twice that",
        ),
        (
            "[trainer]\nmax_policy_lag = 0\nmax_token_lag = 2\n",
            [],
            {},
            "max_token_lag = 2 needs max_policy_lag of at least 1",
        ),
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


def test_settings_that_ship_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_settings(Path("r1-sgg/vg150-closed-2b-zero"), [], {})
    assert recipe.run.name == "vg150-closed-2b-zero"
    file = tmp_path / "run.toml"
    file.write_text('extends = ["r1-sgg/vg150-closed-2b-zero", "hardware/80gbx1"]')
    both = load_settings(file, [], {})
    assert (both.run.name, both.trainer.num_ranks) == ("vg150-closed-2b-zero", 1)
    assert recipe.trainer.num_ranks == 8
    own = tmp_path / "demo"
    own.write_text('[model]\npath = "m"\n[data]\ntrain = "t"\n')
    file.write_text('extends = ["demo"]')
    assert load_settings(file, [], {}).model.path == "m", "a file that is there goes before"
    with pytest.raises(SettingsError, match=r"none of that name ships.* r1-sgg/psg-open-2b-zero"):
        load_settings(Path("r1-sgg/psg-open-2b-zer"), [], {})
    monkeypatch.chdir(tmp_path)  # where no `configs` is
    with pytest.raises(SettingsError, match="--config hardware/80gbx1"):
        load_settings(Path("configs/hardware/80gbx1.toml"), [], {})


@pytest.mark.parametrize(("config", "name"), [("demo", "toy-start"), ("demo-2", "toy-start-2")])
def test_the_model_of_a_demo_has_a_name_in_files_and_is_a_folder_here(
    config: str, name: str
) -> None:
    settings = load_settings(Path(config), [], {})
    assert (Path(settings.model.path) / "config.json").is_file()
    assert settings.model.name == name
    assert f'path = "{name}"' in dump_settings(settings)


def test_a_folder_with_the_name_of_the_demos_model_is_not_it() -> None:
    assert load_settings(Path("demo"), ["model.path=own/toy-start"], {}).model.name == (
        "own/toy-start"
    )


def test_tables_below_stand_in_for_what_files_do_not_say(tmp_path: Path) -> None:
    below = {"model": {"path": "m", "dtype": "float32"}, "data": {"train": "d"}}
    file = tmp_path / "run.toml"
    file.write_text('[reward]\nworkers = 3\n[model]\npath = "mine"\n')
    found = load_settings(file, [], {}, below=below)
    assert (found.model.path, found.model.dtype, found.data.train) == ("mine", "float32", "d")
    load_settings([], ["model.path=other"], {}, below=below)
    assert below["model"]["path"] == "m", "they are only read"
    with pytest.raises(SettingsError, match="data: Field required"):
        load_settings(file, [], {})


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


SECRET = "correct-horse-battery"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis.url", f"redis://:{SECRET}@127.0.0.1:6379/0"),
        ("redis.url", f"redis://me:{SECRET}@127.0.0.1:6379/0"),
        ("redis.url", f"rediss://me:{SECRET}@127.0.0.1:6379/0"),
        ("redis.url", f"redis://127.0.0.1:6379/0?password={SECRET}"),
        ("redis.url", f"unix://me:{SECRET}@/tmp/redis.sock"),
        ("redis.url", "redis://me:@127.0.0.1:6379/0"),
        ("redis.url", f"redis://127.0.0.1:6379/0?PASS%57ORD={SECRET}"),
        ("redis.url", f"redis://me%3A{SECRET}@127.0.0.1:6379/0"),
        ("redis.url", f"redis:///me:{SECRET}@127.0.0.1:6379/0"),
        ("redis.url", f"redis://127.0.0.1:6379/0#{SECRET}"),
        ("reward.url", f"http://me:{SECRET}@127.0.0.1:8100"),
        ("rollout.url", f"http://{SECRET}@127.0.0.1:8200"),
        ("monitor.url", f"http://127.0.0.1:8400?token={SECRET}"),
        ("monitor.url", f"http://127.0.0.1:8400/#{SECRET}"),
        ("telemetry.otlp_endpoint", f"https://me:{SECRET}@otlp.example.org"),
    ],
)
def test_passwords_in_urls_are_refused_and_not_repeated(
    tmp_path: Path, name: str, value: str
) -> None:
    """From any source: what is accepted is dumped, printed and sent to trackers."""
    section, _, field = name.partition(".")
    file = tmp_path / "run.toml"
    file.write_text(MINIMAL)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(f'{MINIMAL}[{section}]\n{field} = "{value}"\n')
    variable = f"SGG__{section}__{field}".upper()
    sources: list[tuple[Path, list[str], dict[str, str]]] = [
        (wrong, [], {}),
        (file, [f"{name}={value}"], {}),
        (file, [], {variable: value}),
    ]
    for source in sources:
        with pytest.raises(SettingsError, match=f"{name} holds a") as caught:
            load_settings(*source)
        assert SECRET not in caught.value.message


@pytest.mark.parametrize("url", [f"me:{SECRET}@127.0.0.1", f"redis:/me:{SECRET}@127.0.0.1"])
def test_an_url_of_no_redis_is_not_repeated(toml: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="has to begin with redis://") as caught:
        load_settings(toml, [f"redis.url={url}"], {})
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("name", ["redis.url=redis", "reward.url=http", "rollout.url=http"])
def test_half_an_ipv6_address_is_no_url(toml: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="Invalid IPv6 URL"):
        load_settings(toml, [f"{name}://[::1"], {})


@pytest.mark.parametrize("wrong", ["redis.ulr=", "redis.url:", "redisurl="])
def test_a_misspelt_setting_is_named_without_its_value(toml: Path, wrong: str) -> None:
    with pytest.raises(SettingsError, match="--set redis") as caught:
        load_settings(toml, [f"{wrong}redis://:{SECRET}@127.0.0.1"], {})
    assert SECRET not in caught.value.message


def test_a_user_of_redis_stands_in_the_url_and_the_password_in_a_file(
    toml: Path, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text(SECRET)
    named = [f"redis.password_file={file}", "redis.url=redis://me@127.0.0.1:6379/0"]
    settings = load_settings(toml, named, {})
    options = connect(settings.redis).connection_pool.connection_kwargs
    assert (options["username"], options["password"]) == ("me", SECRET)
    assert SECRET not in dump_settings(settings)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_variable_is_not_the_wish_to_have_no_token(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(SECRET)
    settings = load_settings(toml, [f"security.data_token_file={file}"], {})
    monkeypatch.delenv("SGG_DATA_TOKEN", raising=False)
    assert settings.data_token == SECRET
    monkeypatch.setenv("SGG_DATA_TOKEN", empty)
    with pytest.raises(SettingsError, match="SGG_DATA_TOKEN is set and empty"):
        _ = settings.data_token
    monkeypatch.setenv("SGG_DATA_TOKEN", "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    with pytest.raises(SettingsError, match="printable ASCII"):
        _ = settings.data_token
    for name in ("SGG__SECURITY__ADMIN_TOKEN_FILE", "SGG__REDIS__PASSWORD_FILE"):
        with pytest.raises(SettingsError, match=f"{name} is set and empty"):
            load_settings(toml, [], {name: empty})
