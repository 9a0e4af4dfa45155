"""`sgg-rl slurm status`: a run's job as Slurm sees it, and how far it has come."""

from dataclasses import asdict, fields
from pathlib import Path

from deploy.slurm.commands import accounted, is_active, job_fields
from deploy.slurm.submit import JobRecord, read_record
from services.errors import NotFoundError
from services.printable import counted
from services.run_folder import (
    LoggedError,
    RunFolder,
    RunProgress,
    TrainerSign,
    last_error,
    read_progress,
    read_trainer,
)
from services.schemas.common import Message
from services.settings import Settings

_PROGRESS = [field.name for field in fields(RunProgress)]


class JobStatus(Message):
    """What `sgg-rl slurm status --json` prints."""

    run: str
    record: JobRecord
    state: str
    """Slurm's, such as `RUNNING`; `UNKNOWN` when it has forgotten the job."""
    reason: str | None
    """Why it waits, or how it ended."""
    nodes: str
    runtime: str
    requeues: int
    """How often it was queued again."""
    exit_code: int | None
    """The job's, when it has ended by itself."""
    step: int | None
    """Steps that are done."""
    num_steps: int | None
    last_step_s: float | None
    """Seconds since the last line of `metrics.jsonl`."""
    reward: float | None
    """The last step's mean; None for SFT."""
    loss: float | None
    """SFT's, in nats a token."""
    left_s: float | None
    """Seconds to the end at the pace of the last steps."""
    num_servers: int | None
    """Rollout servers that were registered at the last step."""
    trainer: TrainerSign | None
    """None before a trainer has begun."""
    last_error: LoggedError | None
    """The newest one in the logs."""
    logs: Path


def job_status(settings: Settings) -> JobStatus:
    """The job that was submitted last for this run.

    Raises:
        NotFoundError: None was submitted, or there is no Slurm here.
        UnavailableError: Slurm does not answer.
    """
    folder = settings.run.files
    record = read_record(folder)
    if record is None:
        raise NotFoundError(f"no job of the run in {folder.path}: `sgg-rl slurm submit` starts one")
    fields = job_fields(record.job_id) or {}
    progress = read_progress(folder)
    return JobStatus(
        run=settings.run.name,
        record=record,
        state=fields.get("JobState", "UNKNOWN"),
        reason=_reason(record.job_id, fields),
        nodes=fields.get("NodeList", ""),
        runtime=fields.get("RunTime", ""),
        requeues=int(fields.get("Restarts", 0)),
        exit_code=_exit_code(folder),
        **(asdict(progress) if progress else dict.fromkeys(_PROGRESS)),
        trainer=read_trainer(folder),
        last_error=last_error(folder),
        logs=folder.logs,
    )


def status_lines(found: JobStatus) -> list[str]:
    """The status as a person reads it."""
    where = f" on {found.nodes}" if found.nodes else ""
    since = f" for {found.runtime}" if found.state == "RUNNING" else ""
    reason = f" ({found.reason})" if found.reason else ""
    job = f"{found.record.job} job {found.record.job_id}"
    lines = [f"run {found.run}: {job}, {found.record.kind}: {found.state}{where}{since}{reason}"]
    if found.requeues:
        lines.append(f"queued again: {counted(found.requeues, 'time')}")
    if found.exit_code is not None:
        lines.append(f"ended with {found.exit_code}")
    if found.step is not None:
        progress = {name: getattr(found, name) for name in _PROGRESS}
        lines.append(str(RunProgress(**progress)))
    if found.trainer is not None:
        lines.append(f"trainer: {found.trainer}")
    if found.last_error is not None:
        lines.append(str(found.last_error))
    lines.append(f"logs: {found.logs} (job.log first)")
    return lines


def _reason(job_id: str, fields: dict[str, str]) -> str | None:
    if not fields:
        told = accounted(job_id)
        return f"Slurm has forgotten it; sacct: {told}" if told else "Slurm has forgotten it"
    if is_active(fields):
        return fields["Reason"] if fields.get("Reason") != "None" else None
    return f"exit code {fields.get('ExitCode')}"


def _exit_code(folder: RunFolder) -> int | None:
    try:
        return int((folder.slurm / "exit_code").read_text())
    except (OSError, ValueError):  # there is none, or the job is writing it
        return None
