"""Finds groups of a run for `sgg-rl rollouts`, shows and draws them."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.text import Text

from cli.views.as_json import print_json
from cli.views.rollouts import group_view, page_view, remarks
from launcher.views.terminal import SafeConsole
from scene_data.recorded import draw_record, recorded_picture
from services.errors import InvalidInputError, NotFoundError
from services.run_folder import RunFolder
from services.run_folder.index import IndexPage, RolloutIndex, Sort
from services.run_folder.index_line import IndexLine, RolloutFilter
from services.run_folder.records import RolloutRecord, read_rollouts
from services.settings import load_settings

logger = logging.getLogger(__name__)

_PAGE = 20
"""Groups of a list."""
_ALL = 1_000_000
"""More groups than a step has."""
_NOT_IN_NAMES = re.compile(r"^\.|[^\w.-]")
"""What a folder's name does not get of a group's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundGroups:
    """A page of groups of a run."""

    run: Path
    page: IndexPage
    is_opened: bool
    """Whether they are shown with their answers: those of one step, or one group."""
    is_whole: bool
    """Whether they are shown with all texts."""
    of_files: list[RolloutRecord]
    """Where the run has no index: the groups themselves."""

    def records(self) -> Iterator[tuple[IndexLine | None, RolloutRecord | str]]:
        """Each line of the page with its group, or with why the group cannot be read."""
        index = RolloutIndex(self.run)
        yield from ((None, record) for record in self.of_files)
        for line in self.page.lines:
            try:
                yield line, index.read_record(line)
            except (NotFoundError, InvalidInputError) as error:
                yield line, error.message


def find_groups(
    run: Path,
    wanted: RolloutFilter,
    *,
    last: bool,
    sort: Sort | None,
    limit: int | None,
    after: str | None,
) -> FoundGroups:
    """Groups that fit.

    Args:
        run: The run's folder.
        wanted: Which. Of one step, those that were trained on where it names no state.
        last: Of the newest step.
        sort: In which order; None: newest first, of one step by their place in the data order.
        limit: The most; None: a page, of one step all.
        after: The cursor of the page before this one.

    Raises:
        NotFoundError: The run has no such step or group, or no index to find it in.
        InvalidInputError: A file of a run without an index is damaged; `after` is no cursor.
    """
    index = RolloutIndex(run)
    if last and (newest := index.last_step) is not None:
        wanted = replace(wanted, step_from=newest, step_to=newest)
    of_step = wanted.step_from is not None
    is_whole = wanted.group_id is not None
    is_opened = of_step or is_whole
    page, of_files = IndexPage(lines=[], cursor=None, scanned=0, passed_over=0), []
    if not index.exists:
        of_files = _of_files(run, wanted)
    else:
        if of_step and not is_whole and wanted.state is None:
            wanted = replace(wanted, state="trained")
        order = sort or ("oldest" if is_opened else "newest")
        page = index.page(wanted, order, after, limit or (_ALL if is_opened else _PAGE))
        if is_opened and not page.lines:
            _refuse_unknown(run, index, wanted)
    return FoundGroups(
        run=run, page=page, is_opened=is_opened, is_whole=is_whole, of_files=of_files
    )


def show_groups(found: FoundGroups, *, as_json: bool) -> None:
    """Print them: a list, or each with its answers."""
    if as_json:
        print_json(_as_json(found) if found.is_opened else found.page)
        return
    console = SafeConsole()
    if not found.is_opened or not (found.page.lines or found.of_files):
        console.print(page_view(found.page))
        return
    gone, why = list[IndexLine](), ""
    for line, record in found.records():
        if not isinstance(record, str):
            console.print(group_view(record, whole=found.is_whole))
        elif line is not None:
            gone.append(line)
            why = why or record
    if gone:
        console.print(page_view(replace(found.page, lines=gone)))
        console.print(Text(why, style="yellow"))
    else:
        for remark in remarks(found.page):
            console.print(Text(remark))


def draw_groups(found: FoundGroups, folder: Path) -> int:
    """Write `folder/<group>/reference.png` and a drawing of each answer beside it.

    Returns:
        How many were drawn.
    """
    files = RunFolder(found.run)
    settings, drawn = load_settings(files.config, environment={}), 0
    for _, record in found.records():
        if isinstance(record, str):
            logger.warning("%s", record)
            continue
        images = record.prompt.images if record.prompt else []
        train = settings.data.train
        pictures = (recorded_picture(files, train, i.sha256, record.index) for i in images)
        inside = folder / _NOT_IN_NAMES.sub("_", record.rollout.group_id)
        for name, data in draw_record(record, settings.data.task, next(pictures, None)):
            inside.mkdir(parents=True, exist_ok=True)
            (inside / f"{name}.png").write_bytes(data)
            drawn += 1
    return drawn


def _as_json(found: FoundGroups) -> list[object]:
    """The groups; of one that is gone its line, and why."""
    return [
        {"line": line, "gone": record} if isinstance(record, str) else record
        for line, record in found.records()
    ]


def _of_files(run: Path, wanted: RolloutFilter) -> list[RolloutRecord]:
    """The groups of a step of a run without an index, which an earlier release made."""
    others = replace(wanted, step_from=None, step_to=None, group_id=None)
    if wanted.step_from is None or others != RolloutFilter():
        raise NotFoundError(
            f"{run} has no index of its groups (rollouts/index.rank*.jsonl): it is no run, has not "
            "finished a step, or is of an earlier release; then give --step alone, or with --group"
        )
    records = read_rollouts(run, wanted.step_from)
    chosen = [r for r in records if wanted.group_id in (None, r.rollout.group_id)]
    if not chosen:
        raise _unknown(run, wanted, [record.rollout.group_id for record in records])
    return chosen


def _refuse_unknown(run: Path, index: RolloutIndex, wanted: RolloutFilter) -> None:
    """Raise where there is no such step or group, whatever else is wanted of it."""
    if wanted.step_from is None:
        place = RolloutFilter(group_id=wanted.group_id)
    else:
        place = RolloutFilter(step_from=wanted.step_from, step_to=wanted.step_to)
    names = [line.group_id for line in index.page(place, limit=_ALL).lines]
    if wanted.group_id not in (None, *names) or not names:
        raise _unknown(run, wanted, names[::-1])


def _unknown(run: Path, wanted: RolloutFilter, names: list[str]) -> NotFoundError:
    step, group = wanted.step_from, wanted.group_id
    if step is None:
        return NotFoundError(f"{run} has no group {group}")
    if not names:
        newest = RolloutIndex(run).last_step
        there = "" if newest is None else f"; the newest step is {newest}"
        return NotFoundError(f"no groups of step {step} in {run / 'rollouts'}{there}")
    return NotFoundError(f"step {step} has no group {group}; it has {', '.join(names)}")
