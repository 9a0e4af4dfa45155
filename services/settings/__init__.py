"""One typed settings tree for every process of a run.

Sources, later ones win: TOML file, environment (`SGG__SECTION__FIELD`), command line (`--set
section.field=value`). A misspelt key is refused in all three, by name. A file may stand on others:
`extends = ["base.toml"]`, paths from its own folder, later ones over earlier ones and the file over
them all. In paths `~` and `$VARIABLES` are filled in where settings are loaded, so what is dumped
for other processes has none. This file and `section.py` alone read the environment.
"""

import itertools
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import tomli_w
from pydantic import Field, ValidationError, model_validator

from services.errors import SettingsError
from services.http.proof import is_host_pattern
from services.run_folder import RunFolder
from services.schemas.common import ModelRunner
from services.schemas.rewards import Task
from services.schemas.weights import TRANSPORTS, Transport, TransportTraits
from services.settings.deploy import DeploySettings
from services.settings.secrets import checked_secret, read_secret
from services.settings.section import LocalPath, PathOrName, Section, expanded
from services.settings.training import (
    AlgorithmSettings,
    DeepSpeedSettings,
    LoraSettings,
    RecordsSettings,
    SamplingSettings,
    SftSettings,
    TrainerSettings,
)

ENV_PREFIX = "SGG__"
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://")
_SECRET_FILES = ("_TOKEN_FILE", "__PASSWORD_FILE")
"""Ends of variables that name secrets: an empty one must not unset what the file names."""


class RunSettings(Section):
    """Identity and place of a run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Names the folder and the Redis namespace."""
    root: LocalPath = Path("runs")
    """Where run folders are made."""
    seed: int = Field(default=0, ge=0)
    """Of everything: data order, sampling, initial noise."""

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.root / self.name

    @property
    def files(self) -> RunFolder:
        """Each path in the run's folder."""
        return RunFolder(self.folder)


class ModelSettings(Section):
    """The policy."""

    path: PathOrName
    """A Hugging Face folder or hub name."""
    box_space: Literal["auto", "relative_1000", "pixels", "relative_1"] = "auto"
    """How the model writes boxes: `auto` as its family does (`docs/models.md`), `pixels` in pixels
    of the resized input."""
    box_space_override: bool = False
    """Take `box_space` though it is not the family's: the model was trained to write it."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of training and of sampling alike."""
    head_dtype: Literal["float32", "model"] = "float32"
    """Type of the logits, in GRPO's training and in sampling alike. `model` rounds them to `dtype`:
    in bfloat16 a logit near 23 is off by up to 0.06, on both sides by other amounts."""
    min_pixels: int = Field(default=4 * 28 * 28, ge=28 * 28)
    """Images with fewer pixels are enlarged. The same for trainer, sampler and boxes."""
    max_pixels: int = Field(default=512 * 28 * 28, ge=28 * 28)
    """Images with more pixels are reduced."""


class DataSettings(Section):
    """What is trained and evaluated on."""

    train: PathOrName
    """A path or hub name in one of the layouts of `docs/data.md`."""
    heldout: PathOrName | None = None
    """The same, never trained on. Without it, the first rows of `train` are only looked at."""
    task: Task = "sgg"
    """What the model is asked for, rewarded and evaluated by: scene graphs, objects with boxes
    (`det`), or triplets of names (`cls`)."""
    template: PathOrName = "open"
    """The instruction that goes with each image: `toy`, `open`, `closed` with a list of the names
    that may be used, or the path of a text file with one's own (`docs/data.md`)."""
    vocabulary: PathOrName | None = None
    """Those names, with `closed` or a file: `vg150`, `psg`, or the path of a file."""
    thinking: bool = False
    """Ask for `<think>…</think>` before the answer: in SFT, in GRPO (whose `format` term then
    requires it) and in evaluation."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataSettings":
        listed = {"toy": False, "open": False, "closed": True}.get(self.template)
        if listed is not None and listed != (self.vocabulary is not None):
            raise ValueError(
                "template = 'closed' and vocabulary go together: set both or none (a template of "
                "your own may do with either)"
            )
        return self


class RedisSettings(Section):
    """The queue's server."""

    url: str = "redis://127.0.0.1:6379/0"
    password_file: LocalPath | None = None
    """Its content is the password, of mode 0600. Beyond this machine Redis is not served without. A
    user stands in the url: `redis://user@host:6379/0`."""
    lease_s: float = Field(default=60.0, gt=0)
    """A claimed group whose server is silent for this long goes to another."""
    max_deliveries: int = Field(default=5, ge=1)
    """Failed attempts after which a group is put aside as dead."""

    @property
    def password(self) -> str | None:
        """The file's content; None where there is no file."""
        return None if self.password_file is None else read_secret(self.password_file)


class RewardSettings(Section):
    """The reward service and what it is asked for."""

    url: str = "http://127.0.0.1:8100"
    workers: int = Field(default=1, ge=1, le=256)
    """Processes behind the URL; one scores on one core."""
    similarity_folder: LocalPath | None = None
    """Tables that a rubric may name as its similarity, `*.json`."""
    embedding_models: list[PathOrName] = Field(default_factory=list)
    """Models that a rubric may name as its similarity: folders, or hub names in the local cache."""
    rubric: str | dict[str, Any] = "balanced"
    """Its name, or in full: `docs/rewards.md`."""
    timeout_s: float = Field(default=60.0, gt=0)


class RolloutSettings(Section):
    """A rollout server."""

    url: str = "http://127.0.0.1:8200"
    """Where it listens, and how others reach it."""
    engine: Literal["vllm", "fake"] = "vllm"
    model_runner: ModelRunner = "v1"
    """vLLM's, whatever `VLLM_USE_V2_MODEL_RUNNER` says. All that is tested on CPUs is tested with
    `v1`; `v2` is vLLM's default on GPUs, and runs there only."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Completions sampled at the same time."""
    max_model_len: int = Field(default=3072, ge=16)
    """Prompt and completion together, in tokens."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """CPU only: memory of the KV cache."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """GPU only: share of its memory that vLLM may use. Where a rank of the trainer is on the same
    GPU, the rank gets the rest."""
    enforce_eager: bool = False
    """Skip graph capture: starts faster, samples slower."""
    groups_in_flight: int = Field(default=8, ge=1)
    """Groups that one server holds leases on."""
    max_images_per_prompt: int = Field(default=1, ge=1, le=16)
    """vLLM keeps memory free for that many of the largest size."""
    adapters: dict[str, LocalPath] = Field(default_factory=dict)
    """LoRA adapters that requests may name: folders in PEFT's layout."""
    max_lora_rank: int = Field(default=16, ge=1, le=512)
    """Of those adapters, and of the one that the `lora` transport updates."""
    fake_tokens_per_s: float = Field(default=2000.0, gt=0)
    """Fake engine only: its pace, all completions together."""


class MonitorSettings(Section):
    """What watches a run for Prometheus."""

    url: str = "http://127.0.0.1:8400"
    """Where it listens, and how others reach it."""


class WeightSettings(Section):
    """How a new policy gets from the trainer to the rollout servers."""

    transport: Transport = "shm"
    """`shm` on one host; `disk` on a file system that all share; `http` where nothing is shared;
    `nccl` from GPU to GPU; `ipc` on one GPU; `lora` for adapters. `docs/rollout.md` compares them.
    """

    @property
    def traits(self) -> TransportTraits:
        """What that transport is like."""
        return TRANSPORTS[self.transport]


class ClusterSettings(Section):
    """The GPUs of a run, for `sgg-rl run` and `train --dry-run`."""

    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """Of each GPU of the trainer."""
    num_rollout_servers: int = Field(default=1, ge=1)
    """Each on a GPU of its own, or of a rank where both share it."""


class EvaluationSettings(Section):
    """How answers are sampled outside training: `sgg-rl infer`, and held-out images of a run."""

    num_images: int = Field(default=64, ge=1)
    """Held-out images that a run is evaluated on: the first of them."""
    every: int = Field(default=0, ge=0)
    """Steps between evaluations while a run trains; 0: only before and after it, where there is
    `data.heldout`."""
    max_tokens: int = Field(default=1024, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 is greedy. Otherwise each image has a seed of its own, made from `run.seed` and its id."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0 keeps the whole vocabulary."""
    constrain: Literal["never", "failures", "all"] = "never"
    """Ask again under the JSON Schema of a scene graph: where the free answer has no graph, or for
    every image. The free answer always comes first, and its status is kept."""


class SecuritySettings(Section):
    """Tokens, in files of mode 0600. Without them services bind to loopback only."""

    data_token_file: LocalPath | None = None
    """Its content is asked for on sampling and scoring routes."""
    admin_token_file: LocalPath | None = None
    """Its content is asked for on weight routes."""
    rollout_hosts: list[str] | None = None
    """Hosts of rollout servers that clients take from Redis: networks such as `10.1.0.0/16`, names,
    or `*.` before a domain. Unset: any host whose server proves that it knows the token."""

    @model_validator(mode="after")
    def _consistent(self) -> "SecuritySettings":
        wrong = [text for text in self.rollout_hosts or () if not is_host_pattern(text)]
        if wrong:
            raise ValueError(
                f"rollout_hosts: {wrong[0]!r} is no host: write a network (10.1.0.0/16), a name, "
                "or *. before a domain"
            )
        return self


class TelemetrySettings(Section):
    """What is told to others about a run."""

    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """OpenTelemetry collector that gets the services' spans, such as
    `http://127.0.0.1:4318`. Without it nothing is traced."""


class Settings(Section):
    """All of a run: one TOML file."""

    run: RunSettings = RunSettings()
    model: ModelSettings
    data: DataSettings
    redis: RedisSettings = RedisSettings()
    reward: RewardSettings = RewardSettings()
    rollout: RolloutSettings = RolloutSettings()
    monitor: MonitorSettings = MonitorSettings()
    sampling: SamplingSettings = SamplingSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    trainer: TrainerSettings = TrainerSettings()
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    lora: LoraSettings = LoraSettings()
    weights: WeightSettings = WeightSettings()
    sft: SftSettings = SftSettings()
    records: RecordsSettings = RecordsSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    cluster: ClusterSettings = ClusterSettings()
    deploy: DeploySettings = DeploySettings()
    security: SecuritySettings = SecuritySettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.algorithm.overlong_buffer > self.sampling.max_tokens:
            raise ValueError("algorithm.overlong_buffer is over sampling.max_tokens")
        _refuse_passwords(self)
        return self

    @property
    def shares_gpus(self) -> bool:
        """Whether a rollout server and a rank of the trainer are on each GPU."""
        return self.weights.traits.same_gpu or self.deploy.kind == "colocated"

    @property
    def data_token(self) -> str | None:
        """For sampling and scoring routes: `SGG_DATA_TOKEN`, or the file's content."""
        return read_token("SGG_DATA_TOKEN", self.security.data_token_file)

    @property
    def admin_token(self) -> str | None:
        """For weight routes: `SGG_ADMIN_TOKEN`, or the file's content."""
        return read_token("SGG_ADMIN_TOKEN", self.security.admin_token_file)


def load_settings(
    files: Path | Sequence[Path],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read a run's settings.

    Args:
        files: TOML file, or several: later ones over earlier ones; none where the overrides name
            all that has no default.
        overrides: `section.field=value` strings, as given to `--set`; values are TOML, or plain
            text. `section.field=` unsets a field that is optional.
        environment: Defaults to the process's.

    Raises:
        SettingsError: The file is missing or malformed, or a key in any source is unknown or out of
            range.
    """
    files = [files] if isinstance(files, Path) else files
    tree = _merged(_read(file) for file in files)
    if files:
        _check(tree, " and ".join(map(str, files)))
    for key, text in sorted((os.environ if environment is None else environment).items()):  # noqa: TID251
        if key.startswith(ENV_PREFIX):
            if not text.strip() and key.endswith(_SECRET_FILES):
                raise SettingsError(
                    f"environment variable {key} is set and empty: name the file, or unset it"
                )
            names = key[len(ENV_PREFIX) :].lower().split("__")
            _put(tree, names, text, f"environment variable {key}")
    for item in overrides:
        name, equals, text = item.partition("=")
        where = f"--set {''.join(itertools.takewhile(_is_of_name, name.strip()))}"
        if not equals:
            raise SettingsError(f"{where}: write section.field=value")
        _put(tree, name.strip().split("."), text.strip(), where)
    return _check(tree, "settings")


def dump_settings(settings: Settings) -> str:
    """The resolved settings as TOML; unset optional fields are left out."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def read_token(environment_name: str, file: Path | None) -> str | None:
    """A token from the environment, else from a file; None when neither is named.

    Raises:
        SettingsError: The variable is set and empty, or the file cannot be used: it must never be
            taken for the wish to have no token.
    """
    token = os.environ.get(environment_name)  # noqa: TID251
    if token is None:
        return None if file is None else read_secret(file)
    if not token.strip():
        raise SettingsError(
            f"the environment variable {environment_name} is set and empty: give it the token, or "
            "unset it to have none"
        )
    return checked_secret(token.strip(), f"the environment variable {environment_name}")


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment plus `extra`, for a process to be started."""
    return {**os.environ, **extra}  # noqa: TID251


def environment_value(name: str) -> str | None:
    """One variable set by another tool, such as torchrun's `RANK`."""
    return os.environ.get(name)  # noqa: TID251


def start_command(otherwise: str) -> str:
    """What starts a part, for messages: its supervisor's command (`SGG_START_COMMAND`), if any."""
    return environment_value("SGG_START_COMMAND") or otherwise


def set_environment(name: str, value: str) -> None:
    """Set a variable that a library reads at import."""
    os.environ[name] = value  # noqa: TID251


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's tables, over those of the files that it extends."""
    if not path.is_file():
        extended = f", which {above[-1]} extends" if above else ""
        raise SettingsError(f"no settings file at {path}{extended}")
    if path.resolve() in (file.resolve() for file in above):
        raise SettingsError(f"{path} extends itself, by way of {above[-1]}")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    names = tree.pop("extends", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SettingsError(f"{path}: extends is a list of files")
    try:
        below = [path.parent / expanded(name) for name in names]
    except ValueError as error:
        raise SettingsError(f"{path}: extends: {error}") from error
    return _merged([*(_read(file, (*above, path)) for file in below), tree])


def _merged(trees: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Section by section, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    for part in trees:
        for section, fields in part.items():
            below = merged.get(section)
            if isinstance(below, dict) and isinstance(fields, dict):
                merged[section] = {**below, **fields}
            else:
                merged[section] = fields
    return merged


def _refuse_passwords(settings: Settings) -> None:
    """Settings are printed, dumped for other processes, and sent to trackers."""
    if not settings.redis.url.startswith(_REDIS_SCHEMES):
        raise ValueError(f"redis.url has to begin with {', '.join(_REDIS_SCHEMES)}")
    if _holds_password(settings.redis.url):
        raise ValueError(
            "redis.url holds a password, which would stand in config.toml, logs and trackers: put "
            "it into a file of mode 0600 and name that in redis.password_file; a user stays in the "
            "url"
        )
    urls = {
        "reward.url": settings.reward.url,
        "rollout.url": settings.rollout.url,
        "monitor.url": settings.monitor.url,
        "telemetry.otlp_endpoint": settings.telemetry.otlp_endpoint or "",
    }
    for name, url in urls.items():
        if any(character in url for character in "@?#"):
            raise ValueError(
                f"{name} holds a user, password, query or fragment, which would stand in "
                "config.toml, logs and trackers: write http://host:port. Tokens of services go "
                "into [security], a collector's into OTEL_EXPORTER_OTLP_HEADERS"
            )
        try:
            urlsplit(url)
        except ValueError as error:
            raise ValueError(f"{name} is no url ({error}): write http://host:port") from error


def _holds_password(redis_url: str) -> bool:
    """Whether redis-py would find one in it, or someone who mistyped it has left one there."""
    parts = urlsplit(redis_url)
    names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    return (
        parts.password is not None
        or ":" in unquote(parts.username or "")
        or any("pass" in name for name in names)
        or "@" in parts.path
        or bool(parts.fragment)
    )


def _is_of_name(character: str) -> bool:
    """What follows a setting's name is not repeated in messages: it may be a password."""
    return character.isalnum() or character in "._"


def _put(tree: dict[str, Any], keys: list[str], text: str, where: str) -> None:
    if len(keys) != 2 or keys[0] not in Settings.model_fields:
        raise SettingsError(
            f"{where}: no such setting; sections are {', '.join(Settings.model_fields)}"
        )
    section = Settings.model_fields[keys[0]].annotation
    fields = (
        section.model_fields if isinstance(section, type) and issubclass(section, Section) else {}
    )
    if keys[1] not in fields:
        raise SettingsError(f"{where}: [{keys[0]}] has no '{keys[1]}'; it has {', '.join(fields)}")
    if not text and fields[keys[1]].default is None:
        tree.get(keys[0], {}).pop(keys[1], None)
        return
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # plain text, as a shell user writes it: run.name=demo
    tree.setdefault(keys[0], {})[keys[1]] = (
        str(value) if fields[keys[1]].annotation is str else value
    )


def _check(tree: dict[str, Any], where: str) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()
        ]
        raise SettingsError(f"{where} is not usable:\n" + "\n".join(lines)) from error
