"""`sgg-rl infer` and `predict`: find rollout servers, or start one, and ask them about images."""

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from evaluation.inference.answers import NOT_ASKED
from evaluation.inference.drawings import Drawings, Kind
from evaluation.inference.fleet import served_policy
from evaluation.inference.folder import Work, inference
from evaluation.inference.predict import (
    kept_lines,
    picture_dataset,
    picture_reader,
    prediction,
)
from evaluation.inference.progress import Progress
from evaluation.inference.record import kept_settings
from evaluation.report.predictions import write_predictions
from launcher.processes import Supervisor
from launcher.run_parts import service_part
from launcher.signals import handled, heeded_signals
from launcher.views.inference import ProgressView, say_failed, summary
from launcher.views.terminal import SafeConsole, Say, open_console, say_on
from planning.preflight.folders import check_run_folder
from planning.preflight.gpus import check_gpus
from planning.preflight.inputs import checked_inference, checked_prediction, first_readable
from planning.preflight.rows import is_of_the_hub
from scene_data.dataset import open_dataset
from scene_data.templates import check_instruction
from services.errors import SettingsError, SggError, UnauthorizedError, UnavailableError
from services.host.ports import ReservedPorts
from services.http.clients.rollout import RolloutClient
from services.printable import counted
from services.redis.keys import NO_REDIS
from services.redis.registry import open_registry
from services.settings import Settings, dump_settings
from services.settings.secrets import read_token
from services.telemetry import log_beside, setup_logging

logger = logging.getLogger(__name__)

_POLICY_S = 10.0
_CONNECT_S = 3.0


def run_inference(
    settings: Settings,
    data: str | Sequence[Path],
    folder: Path,
    *,
    servers: Sequence[str] = (),
    own_server: bool = False,
    limit: int | None = None,
    console: SafeConsole | None = None,
) -> Progress:
    """Ask about a dataset's images; see `docs/inference.md`.

    Args:
        settings: The run's settings.
        data: A dataset's name, or pictures.
        folder: Gets predictions, their settings, and logs.
        servers: Urls of running servers; without them those of the run's registry.
        own_server: Start a server here, whatever else runs.
        limit: Only the first images.
        console: Gets what is said for people; standard output when None.

    Returns:
        What came of it.

    Raises:
        SggError: With what to do about it.
        KeyboardInterrupt: What is written stays, and the same command goes on from there.
    """
    found = _find_servers(settings, folder, servers, own_server=own_server)
    named = data if isinstance(data, str) else picture_dataset(data)
    settings = checked_inference(settings, named, limit=limit, knows_model=found.knows_model)
    _begin_logs(settings, folder)
    dataset = open_dataset(named, annotated=False) if isinstance(named, str) else named
    progress = Progress(total=min(len(dataset), limit or len(dataset)))
    console = console or open_console()
    what = counted(progress.total, "image")
    with inference(folder, dataset, progress) as work:
        _do(work, f"{what} of {data}" if isinstance(data, str) else what, settings, found, console)
    console.print(summary(progress, folder))
    return progress


def run_prediction(
    settings: Settings,
    pictures: Sequence[Path],
    folder: Path,
    *,
    servers: Sequence[str] = (),
    own_server: bool = False,
    draw: Kind = "png",
) -> bool:
    """Ask about pictures; see `docs/predict.md`.

    Args:
        settings: The model's.
        pictures: Files.
        folder: Gets predictions, drawings, a page, settings and logs.
        servers: As `run_inference`.
        own_server: As `run_inference`.
        draw: The kind of the drawings.

    Returns:
        Whether a model has seen every picture.

    Raises:
        SggError: With what to do about it.
        KeyboardInterrupt: As `run_inference`.
    """
    dataset = picture_dataset(pictures)
    sample = first_readable(dataset)  # of what cannot be read no server need hear
    found = _find_servers(settings, folder, servers, own_server=own_server)
    settings = checked_prediction(settings, sample, knows_model=found.knows_model)
    _begin_logs(settings, folder)
    progress = Progress(total=len(dataset))
    files = {dataset.image_id(index): path for index, path in enumerate(pictures)}
    console = open_console()
    with (
        Drawings(folder / "drawings", picture_reader(files), draw) as drawings,
        prediction(folder, dataset, progress, drawings) as work,
    ):
        _do(work, counted(progress.total, "picture"), settings, found, console)
    lines = kept_lines(folder)
    page = write_predictions(lines, folder, picture_reader(files), kept_settings(folder))
    failed = [line for line in lines if line.status in NOT_ASKED and line.image_id in files]
    console.print(summary(progress, folder))
    say_failed(say_on(console), failed, files)
    say_on(console)(f"look at {page}")
    return not failed


def _do(work: Work, what: str, settings: Settings, found: "_Servers", console: SafeConsole) -> None:
    """Ask about what a folder lacks; no server is started for nothing.

    Raises:
        ConflictError: What is there was made in another way.
        SggError: As `Work.ask`.
        KeyboardInterrupt: As `run_inference`.
    """
    say, folder, progress = say_on(console), work.folder, work.progress
    if not found.urls:
        work.check_started(settings)
        if not work.num_missing:
            progress.skipped = progress.done
            say(f"{what}: all are done, in {folder}; nothing is asked again")
            return
    with _serving(settings, folder, found, console) as serving:
        say(f"{what} through {', '.join(serving.urls)}, into {folder}")
        asked = work.ask(serving.settings, serving.urls, registered=serving.registered)
        try:
            with ProgressView(progress, console) as view:
                serving.supervisor.watch(asked, tick=view.update)
        except KeyboardInterrupt:
            say(
                f"interrupted with {progress.done} of {progress.total} images done: the same "
                "command goes on from there"
            )
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Servers:
    """Running servers; none of them where one is to be started."""

    urls: list[str]
    registered: bool
    """Whether they stood in Redis."""
    knows_model: bool
    """Whether `model.path` leads to the model from here."""


def _find_servers(
    settings: Settings, folder: Path, servers: Sequence[str], *, own_server: bool
) -> _Servers:
    """Which servers are asked; what can be refused without looking further is refused.

    Raises:
        SettingsError: The folder cannot be written, or a URL has a password.
        UnavailableError: Nobody is at any of the URLs.
    """
    check_run_folder(folder / "logs", named_by="--output")
    _check_named(servers)
    registered = not (own_server or servers)
    urls = registered_servers(settings) if registered else list(servers)
    return _Servers(urls=urls, registered=registered, knows_model=not _is_elsewhere(settings, urls))


def _check_named(servers: Sequence[str]) -> None:
    if any("@" in server for server in servers):
        raise SettingsError(
            "--server takes http://host:port without a user or password: every user of this "
            "machine sees it; the token is SGG_DATA_TOKEN, or security.data_token_file"
        )
    if wrong := [s for s in servers if not s.startswith(("http://", "https://"))]:
        raise SettingsError(f"--server {wrong[0]}: write http://host:port")
    if servers and not any(map(_is_there, servers)):
        raise UnavailableError(
            f"nobody is at {', '.join(servers)}: start a server there (sgg-rl serve rollout), or "
            "leave out --server, and one of --model is started for this"
        )


def _is_there(url: str) -> bool:
    """Whether somebody listens there, ready or not."""
    place = urlsplit(url)
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        with socket.create_connection((place.hostname or "", port), timeout=_CONNECT_S):
            return True
    except (OSError, ValueError):  # no port is "a"
        return False


def _begin_logs(settings: Settings, folder: Path) -> None:
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    setup_logging("infer", beside=log_beside(logs, "infer"))
    data = settings.data
    check_instruction(data.template, data.vocabulary, data.notation)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Serving:
    """Servers that are ready, and who watches over them."""

    settings: Settings
    urls: list[str]
    registered: bool
    supervisor: Supervisor


@contextmanager
def _serving(
    settings: Settings, folder: Path, found: _Servers, console: SafeConsole
) -> Iterator[_Serving]:
    """The servers that were found, or one that is started for this and stopped at the end."""
    say = say_on(console)
    urls, registered = found.urls, found.registered
    with (
        handled(heeded_signals(), signal.default_int_handler),
        ReservedPorts() as ports,
        Supervisor(folder / "logs", say=say) as supervisor,
    ):
        if not urls:
            url = f"http://127.0.0.1:{ports.take()}"
            settings = _start_server(settings, folder, url, supervisor, say)
            urls, registered = [settings.rollout.url], False
        yield _Serving(settings=settings, urls=urls, registered=registered, supervisor=supervisor)


def _is_elsewhere(settings: Settings, urls: list[str]) -> bool:
    """Running servers' model may lie on their hosts alone: then the settings say its box space.

    The fake engine has none at all.
    """
    model, served = settings.model, bool(urls) or settings.rollout.engine == "fake"
    return served and model.box_space != "auto" and not Path(model.path).exists()


def served_model(servers: Sequence[str], pictures: Sequence[Path]) -> str:
    """The model that the first of these servers serves.

    Args:
        servers: Their URLs.
        pictures: That it is to be asked about; one at least has to be readable.

    Raises:
        InvalidInputError: No picture can be read.
        SettingsError: A URL has a password, or the model is not to be found from here.
        UnavailableError: Nobody is there.
    """
    first_readable(picture_dataset(pictures))
    _check_named(servers)
    url = next(filter(_is_there, servers))

    async def ask() -> str:
        token = read_token("SGG_DATA_TOKEN", None)
        async with RolloutClient(url, token=token, timeout_s=_POLICY_S) as client:
            return (await served_policy(client)).model

    model = asyncio.run(ask())
    if not Path(model).exists() and not is_of_the_hub(model):
        raise SettingsError(
            f"{url} serves {model}, which is not here (seen from {Path.cwd()}): give the --config "
            "of its run, with model.box_space, or a copy of it as --model"
        )
    return model


def registered_servers(settings: Settings) -> list[str]:
    """Urls of the run's live servers; none where its Redis does not answer.

    A record whose address is refused is left out, and said.

    Raises:
        UnauthorizedError: All are refused; it says why the first one is.
    """

    async def read() -> list[str]:
        try:
            async with open_registry(settings) as registry:
                records = await registry.servers()
        except UnavailableError:
            return []
        refusals = await asyncio.gather(*(_refusal(settings, record.url) for record in records))
        for refusal in filter(None, refusals):
            logger.warning("%s", refusal.message)
        if records and all(refusals):
            raise next(filter(None, refusals))
        return [r.url for r, refusal in zip(records, refusals, strict=True) if refusal is None]

    return asyncio.run(read())


async def _refusal(settings: Settings, url: str) -> UnauthorizedError | None:
    """Why a registered address is not asked; None for one that may be, also if it is away now."""
    async with RolloutClient(
        url, token=settings.data_token, timeout_s=_POLICY_S, registered=settings.security
    ) as client:
        try:
            await served_policy(client)
        except UnauthorizedError as error:
            return error
        except SggError:
            pass
    return None


def _start_server(
    settings: Settings, folder: Path, url: str, supervisor: Supervisor, say: Say
) -> Settings:
    """Start a rollout server of `model.path` and wait for it; the settings with its url."""
    if settings.rollout.engine == "vllm":
        check_gpus(settings.rollout.tensor_parallel_size, who="a rollout server")
    settings = settings.changed(
        run={"root": folder / "logs"}, redis={"url": NO_REDIS}, rollout={"url": url}
    )
    config = folder / "logs" / "rollout.toml"
    config.write_text(dump_settings(settings))
    say(f"starting a rollout server of {settings.model.name} (log in {folder / 'logs'})")
    supervisor.start(service_part("rollout", url, config))
    supervisor.wait_ready("rollout")
    return settings
