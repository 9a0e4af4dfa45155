"""The paths of a run's folder."""

from pathlib import Path


class RunFolder:
    """The paths of a run.

    Example: `RunFolder(Path("runs/demo")).metrics == Path("runs/demo/metrics.jsonl")`
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "ledger.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.evaluating = path / "evaluating.json"
        """There while held-out images are asked about: how far that is."""
        self.events = path / "events.jsonl"
        self.rollouts = path / "rollouts"
        self.ranks = path / "ranks"
        self.checkpoints = path / "checkpoints"
        self.checkpoint = path / "checkpoint"
        """GRPO's trained model, with its processor."""
        self.model = path / "model"
        """SFT's trained model, with its processor."""
        self.adapter = path / "adapter"
        """SFT's trained adapter, where it trained one."""
        self.incarnation = path / "incarnation"
        self.folder_id = path / "folder-id"
        """By which Redis knows the run that has a name (`services.redis.registry.RunOwner`)."""
        self.images = path / "images"
        """The image store, on a file system that trainer and samplers share."""
        self.summary = path / "summary.json"
        self.plots = path / "plots"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        self.wandb_id = path / "wandb-id"
        self.logs = path / "logs"
        self.redis = path / "redis"
        self.secrets = path / "secrets"
        self.slurm = path / "slurm"
        self.finished = path / "finished"
        """There once a run came to its end."""

    @property
    def newest_checkpoint(self) -> str | None:
        """Its name, such as `step-000040`; None before the first."""
        return max((folder.name for folder in self.checkpoints.glob("step-*")), default=None)

    def seen_from(self, name: str) -> str:
        """A path of the run's settings, from here: it counts from where the run was started.

        That is a folder above the run's own. What is there in neither place, such as a name on the
        hub, stays as it is.
        """
        above = (folder / name for folder in self.path.resolve().parents)
        return name if Path(name).exists() else str(next(filter(Path.exists, above), name))

    def heldout(self, label: str) -> Path:
        """The answers about held-out images: `before`, `after`, or of the version of `now`."""
        return self.path / f"heldout-{label}.jsonl"

    def rollout_files(self, step: int | None = None) -> list[Path]:
        """The files of one step's groups, or of all steps'; each rank has one a step.

        `services.run_folder.records.record_lines` reads one.
        """
        number = "*" if step is None else f"{step:06d}"
        return sorted(self.rollouts.glob(f"step-{number}.rank*.jsonl*"))


def trained_model(path: Path) -> tuple[Path, Path | None]:
    """The model's folder that a path means, and the settings of the run that made it.

    Example: `trained_model(Path("runs/demo"))` is `(Path("runs/demo/checkpoint"),
    Path("runs/demo/config.toml"))`

    Args:
        path: A model's folder, or a run's; None stands for the settings where no run's lie there.
    """
    run = RunFolder(path)
    if run.config.is_file() and not (path / "config.json").is_file():
        return (run.checkpoint if run.checkpoint.is_dir() else run.model), run.config
    above = RunFolder(path.parent)
    made = path in (above.checkpoint, above.model) and above.config.is_file()
    return path, above.config if made else None
