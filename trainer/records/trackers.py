"""A run's metrics for TensorBoard and Weights & Biases; `metrics.jsonl` stays the record.

A tracker is for looking: one that fails in mid-run is told once and left out from then on.
"""

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from services.settings import Settings, dump_settings

logger = logging.getLogger(__name__)

_NOT_CURVES = ("step", "num_steps", "time")


class Trackers:
    """Those that `[records]` asks for; other ranks than 0 have none.

    Example: `{"reward_mean": 2.1, "reward_terms": {"edge": 0.2}}` becomes the curves `reward_mean`
    and `reward_terms/edge`.

    Args:
        settings: The run's. `check_trackers` has found the packages.
        rank: This process's.
    """

    def __init__(self, settings: Settings, rank: int = 0) -> None:
        records = settings.records
        self._trackers: list[_TensorBoard | _Wandb] = []
        if records.tensorboard and rank == 0:
            self._trackers.append(_TensorBoard(settings))
        if records.wandb and rank == 0:
            self._trackers.append(_Wandb(settings))

    def start(self, step: int) -> None:
        """Call once, before the first `log`; `step` is the first that will be logged."""
        self._each(lambda tracker: tracker.start(step))

    def log(self, row: Mapping[str, Any]) -> None:
        """Take up a line of `metrics.jsonl`."""
        values = {k: v for k, v in flattened(row) if k not in _NOT_CURVES}
        self._each(lambda tracker: tracker.log(int(row["step"]), values))

    def log_evaluation(self, row: Mapping[str, Any], now: int) -> None:
        """Take up a line of `evaluations.jsonl`, as `eval/…`, after the line of step `now`."""
        values = {f"eval/{k}": v for k, v in flattened(row) if k not in _NOT_CURVES}
        self._each(lambda tracker: tracker.log_evaluation(int(row["step"]), values, now))

    def close(self) -> None:
        """Write what is left."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: "Callable[[_TensorBoard | _Wandb], None]") -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception:  # whatever a third party raises, the training is worth more
                name = type(tracker).__name__.strip("_")
                logger.exception("%s failed and is left out from now on", name)
                self._trackers.remove(tracker)


def flattened(row: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """The numbers of a nested row, by names with slashes; what is no number is left out."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


class _TensorBoard:
    """Event files in `<run folder>/tensorboard`."""

    def __init__(self, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._settings = settings
        self._open = SummaryWriter

    def start(self, step: int) -> None:
        """Curves go on at `step`; what is there from `step` on was rolled back."""
        # purge_step: TensorBoard then hides the rolled-back steps of the earlier files.
        folder = self._settings.run.files.tensorboard
        self._writer = self._open(str(folder), purge_step=step if step else None)
        self._writer.add_text("settings", f"```\n{dump_settings(self._settings)}\n```", step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Points of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_evaluation(self, step: int, values: Mapping[str, float], now: int) -> None:
        """Points of version `step`, which come when step `now` has been logged."""
        self.log(step, values)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class _Wandb:
    """One W&B run for all starts of a run; its id is in `<run folder>/wandb-id`.

    W&B keeps one value for each step and refuses to go back. So a rolled-back step that is done
    again keeps its first values there; `metrics.jsonl` and TensorBoard have the second ones.
    """

    def __init__(self, settings: Settings) -> None:
        import wandb

        self._settings = settings
        self._wandb = wandb

    def start(self, step: int) -> None:
        folder = self._settings.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=self._settings.records.wandb_project,
            name=self._settings.run.name,
            id=self._id(step),
            resume="allow",
            dir=str(folder),
            config=self._settings.model_dump(mode="json"),
        )
        self._run.define_metric("eval/*", step_metric="eval/step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_evaluation(self, step: int, values: Mapping[str, float], now: int) -> None:
        # W&B would drop an earlier step's; `eval/step` is these curves' own axis.
        self._run.log({**values, "eval/step": step}, step=now)

    def close(self) -> None:
        self._run.finish()

    def _id(self, step: int) -> str:
        """The earlier start's where this one goes on from it; else a new one."""
        file = self._settings.run.files.wandb_id
        if step == 0 or not file.exists():
            file.write_text(secrets.token_hex(4))
        return file.read_text().strip()
