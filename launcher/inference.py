"""`sgg-rl infer`: finds rollout servers, or starts one, and asks them about a dataset."""

import asyncio
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from evaluation.inference.folder import infer_into
from evaluation.inference.progress import Progress
from launcher.processes import Supervisor
from launcher.run_parts import service_part
from launcher.signals import handled, heeded_signals
from launcher.views.inference import ProgressView, summary
from launcher.views.terminal import SafeConsole, Say, open_console, say_on
from planning.preflight.folders import check_run_folder
from planning.preflight.gpus import check_gpus
from planning.preflight.inputs import checked_inference
from scene_data.dataset import open_dataset
from scene_data.templates import check_instruction
from services.errors import SettingsError, SggError, UnauthorizedError, UnavailableError
from services.host.ports import ReservedPorts
from services.http.clients.rollout import RolloutClient
from services.redis.keys import NO_REDIS
from services.redis.registry import open_registry
from services.schemas.weights import PolicyInfo
from services.settings import Settings, dump_settings
from services.telemetry import log_beside, setup_logging

logger = logging.getLogger(__name__)

_POLICY_S = 10.0


def run_inference(
    settings: Settings,
    data: str,
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
        data: A dataset.
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
    console = console or open_console()
    say = say_on(console)
    logs = folder / "logs"
    check_run_folder(logs, named_by="the output folder")
    if any("@" in server for server in servers):
        raise SettingsError(
            "--server takes http://host:port without a user or password: every user of this "
            "machine sees it; the token is SGG_DATA_TOKEN, or security.data_token_file"
        )
    registered = not (own_server or servers)
    urls = registered_servers(settings) if registered else list(servers)
    settings = checked_inference(
        settings, data, limit=limit, knows_model=not _is_elsewhere(settings, urls)
    )
    logs.mkdir(parents=True, exist_ok=True)
    setup_logging("infer", beside=log_beside(logs, "infer"))
    check_instruction(settings.data.template, settings.data.vocabulary)
    dataset = open_dataset(data)
    num_images = min(len(dataset), limit or len(dataset))
    progress = Progress(total=num_images)
    with (
        handled(heeded_signals(), signal.default_int_handler),
        ReservedPorts() as ports,
        Supervisor(logs, say=say) as supervisor,
    ):
        if not urls:
            url = f"http://127.0.0.1:{ports.take()}"
            settings = _start_server(settings, folder, url, supervisor, say)
            urls, registered = [settings.rollout.url], False
        say(f"{num_images} images of {data} through {', '.join(urls)}, into {folder}")
        try:
            with ProgressView(progress, console) as view:
                work = infer_into(folder, settings, urls, dataset, progress, registered=registered)
                supervisor.watch(work, tick=view.update)
        except KeyboardInterrupt:
            say(
                f"interrupted with {progress.done} of {num_images} images done: the same command "
                "goes on from there"
            )
            raise
    console.print(summary(progress, folder))
    return progress


def _is_elsewhere(settings: Settings, urls: list[str]) -> bool:
    """Running servers' model may lie on their hosts alone: then the settings say its box space.

    The fake engine has none at all.
    """
    model, served = settings.model, bool(urls) or settings.rollout.engine == "fake"
    return served and model.box_space != "auto" and not Path(model.path).exists()


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
            await client.get("/v1/policy", PolicyInfo, retry=False)
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
        check_gpus(1, who="a rollout server")
    settings = settings.changed(
        run={"root": folder / "logs"}, redis={"url": NO_REDIS}, rollout={"url": url}
    )
    config = folder / "logs" / "rollout.toml"
    config.write_text(dump_settings(settings))
    say(f"starting a rollout server of {settings.model.path} (log in {folder / 'logs'})")
    supervisor.start(service_part("rollout", url, config))
    supervisor.wait_ready("rollout")
    return settings
