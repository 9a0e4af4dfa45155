"""A run's metrics for TensorBoard, Weights & Biases and Trackio; `metrics.jsonl` stays the record.

A tracker is for looking: one that fails in mid-run is told once and left out from then on. All of
them work in one thread, in the order of the calls: training waits for none before the end.
"""

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from services.schemas.groups import TrainGroup
from services.settings import Settings, dump_settings
from trainer.records.answer_tables import DrawnAnswer, draw_answers, jpeg

logger = logging.getLogger(__name__)

_NOT_CURVES = ("step", "num_steps", "time")
_TABLES_WAITING = 2
"""While so many steps wait to be drawn, later ones are not."""


class _Tracker(Protocol):
    def start(self, step: int) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def log_evaluation(self, step: int, values: Mapping[str, float], now: int) -> None: ...

    def log_answers(self, step: int, answers: Sequence[DrawnAnswer]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """Those that `[records]` asks for; other ranks than 0 have none.

    Example: `{"reward_mean": 2.1, "reward_terms": {"edge": 0.2}}` becomes the curves `reward_mean`
    and `reward_terms/edge`.

    Args:
        settings: The run's. `check_trackers` has found the packages.
        rank: This process's.
    """

    def __init__(self, settings: Settings, rank: int = 0) -> None:
        self._settings = settings
        kinds: Mapping[str, Callable[[Settings], _Tracker]]
        kinds = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}
        wanted = [kind for name, kind in kinds.items() if getattr(settings.records, name)]
        self._trackers: list[_Tracker] = [kind(settings) for kind in wanted] if rank == 0 else []
        self._worker = ThreadPoolExecutor(1, "trackers")
        self._num_answers = settings.records.answers if self._trackers else 0
        self._tables_waiting = 0

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

    def log_answers(self, step: int, groups: Sequence[TrainGroup]) -> None:
        """Show the first `records.answers` groups of a step, after its line."""
        if not self._num_answers or self._tables_waiting >= _TABLES_WAITING:
            return
        self._tables_waiting += 1
        self._worker.submit(self._show, step, groups[: self._num_answers])

    def close(self) -> None:
        """Write what is left, and wait for that; what comes later is not taken up."""
        self._each(lambda tracker: tracker.close())
        self._worker.shutdown()
        self._trackers, self._num_answers = [], 0

    def _show(self, step: int, groups: Sequence[TrainGroup]) -> None:
        try:
            answers = draw_answers(self._settings, groups)
        except Exception:  # training is worth more than a drawing
            logger.exception("answers of step %d cannot be drawn; trackers show none", step)
            self._num_answers = 0
        else:
            self._call(lambda tracker: tracker.log_answers(step, answers))
        finally:
            self._tables_waiting -= 1

    def _each(self, call: Callable[[_Tracker], None]) -> None:
        if self._trackers:
            self._worker.submit(self._call, call)

    def _call(self, call: Callable[[_Tracker], None]) -> None:
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

    def log_answers(self, step: int, answers: Sequence[DrawnAnswer]) -> None:
        """A text for all, and two images for each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer.add_text("answers", "\n\n".join(map(_as_markdown, answers)), step)
        images = [
            Summary.Value(
                tag=f"answers/{number}/{name}",
                image=Summary.Image(
                    width=drawn.width, height=drawn.height, encoded_image_string=jpeg(drawn)
                ),
            )
            for number, answer in enumerate(answers)
            for name, drawn in (("answer", answer.drawing), ("annotated", answer.annotated))
            if drawn is not None
        ]
        self._writer.file_writer.add_summary(Summary(value=images), step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _as_markdown(answer: DrawnAnswer) -> str:
    said = f"reward {answer.reward:.4g} (group {answer.group_mean:.4g}), {answer.status}"
    return f"`{answer.group_id}`: {said}\n\n{answer.code}"


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

    def log_answers(self, step: int, answers: Sequence[DrawnAnswer]) -> None:
        def image(drawn: Any) -> Any:
            return None if drawn is None else self._wandb.Image(drawn, file_type="jpg")

        rows = _rows(answers, image, lambda answer: answer.text)
        table = self._wandb.Table(columns=list(_COLUMNS), data=rows)
        self._run.log({"answers": table}, step=step)

    def close(self) -> None:
        self._run.finish()

    def _id(self, step: int) -> str:
        """The earlier start's where this one goes on from it; else a new one."""
        file = self._settings.run.files.wandb_id
        if step == 0 or not file.exists():
            file.write_text(secrets.token_hex(4))
        return file.read_text().strip()


class _Trackio:
    """One run of a local Trackio project, shown by `trackio show`."""

    def __init__(self, settings: Settings) -> None:
        import trackio

        self._settings = settings
        self._trackio = trackio

    def start(self, step: int) -> None:
        self._run = self._trackio.init(
            project=self._settings.records.wandb_project,
            name=self._settings.run.name,
            resume="allow" if step else "never",
            config=self._settings.model_dump(mode="json"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_evaluation(self, step: int, values: Mapping[str, float], now: int) -> None:
        self.log(step, values)

    def log_answers(self, step: int, answers: Sequence[DrawnAnswer]) -> None:
        def image(drawn: Any) -> Any:
            return None if drawn is None else self._trackio.Image(drawn)

        # It shows text as Markdown.
        rows = _rows(answers, image, lambda answer: answer.code)
        self._run.log({"answers": self._trackio.Table(list(_COLUMNS), rows)}, step=step)

    def close(self) -> None:
        self._run.finish()


_COLUMNS = ("group", "reward", "group mean", "status", "text", "answer", "annotated")


def _rows(
    answers: Sequence[DrawnAnswer],
    image: Callable[[Any], Any],
    text: Callable[[DrawnAnswer], str],
) -> list[list[Any]]:
    return [
        [
            *(one.group_id, one.reward, one.group_mean, one.status, text(one)),
            *(image(one.drawing), image(one.annotated)),
        ]
        for one in answers
    ]
