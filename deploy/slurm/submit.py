"""`sgg-rl slurm submit`: the run's folder with all that the job needs, and the job in the queue."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from deploy.slurm.commands import is_active, job_fields, sbatch
from deploy.slurm.layout import Job
from deploy.slurm.render import render, render_rehearsal
from deploy.slurm.site import DEPLOY_FOLDER
from planning.preflight.inputs import checked, checked_inference
from services.errors import ConflictError, InvalidInputError, NotFoundError, SettingsError
from services.redis.keys import NO_REDIS
from services.run_folder import RunFolder
from services.schemas.common import Message
from services.settings import Settings, dump_settings
from services.settings.secrets import ensure_secrets


class JobRecord(Message):
    """`<run folder>/slurm/job.json`. Example: `{"job": "train", "job_id": "1234", …}`."""

    job: Job
    job_id: str
    kind: str
    submitted: float
    """Seconds since 1970."""


def job_settings(settings: Settings, job: Job) -> Settings:
    """A job's settings. An inference is a run of its own, `<run folder>/inference`."""
    if job != "infer":
        return settings
    run = {"root": settings.run.folder, "name": "inference"}
    return settings.changed(run=run, redis={"url": NO_REDIS})


def submit(
    settings: Settings,
    job: Job,
    *,
    data: str | None = None,
    resume: bool = False,
    allow_changes: bool = False,
    after: str | None = None,
    rehearse: bool = False,
) -> str:
    """Write `config.toml`, `secrets/` and `slurm/` into the run's folder, and queue the job.

    What Slurm refuses leaves the folder as it was.

    Args:
        settings: The job's settings, as `job_settings` makes them.
        job: What it does.
        data: The dataset of `infer`.
        resume: Go on from checkpoints that are there.
        allow_changes: Also from those of another dataset, instruction, reward or algorithm.
        after: Id of a job that must have ended well before this one starts; when it fails, Slurm
            cancels this one.
        rehearse: A job on one node comes first, `sgg-rl rehearse`, which must end well too.

    Returns:
        Slurm's id of the job.

    Raises:
        ConflictError: A job of this run waits or runs, or the run has checkpoints and `resume` is
            not asked for.
        SettingsError: The folder cannot be written, the run could not start, or what `render`
            refuses.
        InvalidInputError: Slurm refuses the job.
        NotFoundError: There is no Slurm here.
    """
    if rehearse and job == "infer":
        raise SettingsError("--rehearse is for training: an inference has no chain of its own")
    script = render(settings, job, data=data, allow_changes=allow_changes)
    folder = settings.run.files
    _refuse_second(folder)
    checkpoints = folder.checkpoints
    if job != "infer" and not resume and checkpoints.is_dir() and any(checkpoints.iterdir()):
        raise ConflictError(
            f"{checkpoints} has checkpoints of a run of this name: add --resume to go on from "
            "them, or choose another run.name"
        )
    knows_model = after is None or Path(settings.model.path).exists()  # that job may make it
    if job == "infer":
        data = data or settings.data.heldout or settings.data.train
        settings = checked_inference(settings, data, knows_model=knows_model, fetch=False)
    else:
        settings = checked(settings, job, knows_model=knows_model, fetch=False)
    rehearsal = render_rehearsal(settings) if rehearse else None
    with _undone_where_refused(folder):
        file = _write(settings, folder, script)
        sbatch("--test-only", str(file))
        first = [after] if after else []
        if rehearsal is not None:
            first.append(_submit_rehearsal(rehearsal, folder))
        order = [f"--dependency=afterok:{':'.join(first)}", "--kill-on-invalid-dep=yes"]
        job_id = _queued(*(order if first else []), str(file))
    record = JobRecord(job=job, job_id=job_id, kind=settings.deploy.kind, submitted=time.time())
    (folder.slurm / "job.json").write_text(record.model_dump_json() + "\n")
    return job_id


def _submit_rehearsal(script: str, folder: RunFolder) -> str:
    file = folder.slurm / "rehearse.sh"
    file.write_text(script)
    sbatch("--test-only", str(file))
    return _queued(str(file))


def _queued(*arguments: str) -> str:
    return sbatch("--parsable", *arguments).strip().partition(";")[0]


def read_record(folder: RunFolder) -> JobRecord | None:
    """The job that was submitted last; None before the first.

    Raises:
        InvalidInputError: The file is damaged, or another release's.
    """
    file = folder.slurm / "job.json"
    try:
        return JobRecord.model_validate_json(file.read_text()) if file.is_file() else None
    except ValidationError as error:
        raise InvalidInputError(
            f"{file} names no job ({error.errors()[0]['msg']}): remove it where no job of the run "
            "is in the queue"
        ) from error


def _refuse_second(folder: RunFolder) -> None:
    record = read_record(folder)
    fields = job_fields(record.job_id) if record else None
    if record and fields and is_active(fields):
        raise ConflictError(
            f"job {record.job_id} of the run in {folder.path} is {fields['JobState']}: wait for "
            f"it, or end it with `scancel {record.job_id}`"
        )


@contextmanager
def _undone_where_refused(folder: RunFolder) -> Iterator[None]:
    """Where Slurm refuses the job, what the block made is gone, and what it replaced is back.

    A Slurm that gives no answer may have queued the job: then the files stay.
    """
    folders = (folder.secrets, folder.slurm, folder.logs, folder.path, *folder.path.parents)
    made = [path for path in folders if not path.exists()]
    before = {path: path.read_bytes() for path in _files(folder)}
    try:
        yield
    except (InvalidInputError, NotFoundError):
        for path in _files(folder) - before.keys():
            path.unlink()
        for path, content in before.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
        for path in made:
            with suppress(OSError):  # somebody else's files are in it meanwhile
                path.rmdir()
        raise


def _files(folder: RunFolder) -> set[Path]:
    """The files of a run's folder that a submission may write."""
    return {
        path
        for path in (folder.config, *folder.slurm.glob("*"), *folder.secrets.glob("*"))
        if path.is_file()
    }


def _write(settings: Settings, folder: RunFolder, script: str) -> Path:
    """All files of the job; the script's place."""
    try:
        for made in (folder.logs, folder.slurm):
            made.mkdir(parents=True, exist_ok=True)
        (folder.slurm / "exit_code").unlink(missing_ok=True)
        shutil.copyfile(DEPLOY_FOLDER / "task.sh", folder.slurm / "task.sh")
        folder.config.write_text(dump_settings(_with_secrets(settings)))
        file = folder.slurm / "job.sh"
        file.write_text(script)
    except OSError as error:
        raise SettingsError(
            f"{folder.path} cannot be written: {error.strerror}; choose a run.root on a file "
            "system that you can write and that all nodes share"
        ) from error
    return file


def _with_secrets(settings: Settings) -> Settings:
    """The settings with the run's own secrets, where the user has not named files."""
    made = ensure_secrets(settings.run.files.secrets.absolute())
    security, redis = settings.security, settings.redis
    return settings.changed(
        security={
            "data_token_file": security.data_token_file or made.data_token,
            "admin_token_file": security.admin_token_file or made.admin_token,
        },
        redis={"password_file": redis.password_file or made.redis_password},
    )
