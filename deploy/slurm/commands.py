"""Slurm's own commands, with their failures as this project's errors."""

import subprocess

from services.errors import InvalidInputError, NotFoundError, UnavailableError

_PATIENCE_S = 60.0
_ACTIVE = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
)


def sbatch(*arguments: str) -> str:
    """What it printed.

    Raises:
        InvalidInputError: It refuses the job; the message says why.
        NotFoundError: There is no Slurm here.
    """
    code, out, error = _run("sbatch", *arguments)
    if code:
        raise InvalidInputError(f"sbatch refuses the job: {_one_line(error)} ({arguments[-1]})")
    return out


def job_fields(job_id: str) -> dict[str, str] | None:
    """`scontrol`'s fields of a job, such as `JobState` and `NodeList`; None for one that it forgot.

    The nodes of a job of several components are put together.

    Raises:
        UnavailableError: Slurm's controller does not answer.
        NotFoundError: There is no Slurm here.
    """
    code, out, error = _run("scontrol", "show", "job", "--oneliner", job_id)
    if code:
        if "invalid job id" in error.lower():
            return None
        raise UnavailableError(f"Slurm does not answer: {_one_line(error)}")
    components = [_fields(line) for line in out.splitlines() if line.strip()]
    if not components:
        return None
    nodes = [part.get("NodeList", "") for part in components]
    known = [node for node in nodes if node not in ("", "(null)")]
    return components[0] | {"NodeList": ",".join(known)}


def is_active(fields: dict[str, str] | None) -> bool:
    """Whether a job waits or runs."""
    return fields is not None and fields.get("JobState") in _ACTIVE


def accounted(job_id: str) -> str | None:
    """State and exit code by `sacct`, where the cluster keeps accounts: `FAILED 1:0`."""
    try:
        code, out, _ = _run(
            "sacct", "-X", "-n", "-P", "--duplicates", "-j", job_id, "-o", "State,ExitCode"
        )
    except NotFoundError:
        return None
    lines = out.split("\n") if code == 0 else []
    return next((line.replace("|", " ") for line in reversed(lines) if line), None)


def _run(*command: str) -> tuple[int, str, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no {command[0]} here: run this on a login node of the cluster "
            "(`sgg-rl slurm render` works anywhere)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{command[0]} did not answer in {_PATIENCE_S:g} s") from error
    return done.returncode, done.stdout, done.stderr


def _fields(line: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in line.split())
    return {name: value for name, equals, value in pairs if equals}


def _one_line(text: str) -> str:
    """The last thing that was said, for that is the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (
        lines[-1].removeprefix("sbatch: ").removeprefix("error: ") if lines else "no reason given"
    )
