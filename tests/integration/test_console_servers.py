"""What the console's page of servers says, by a real Redis."""

from pathlib import Path

import httpx

from console.app import create_console
from console.reading.servers import RedisReader
from console.runs import Run
from console.web import fragment
from services.host.ports import free_port
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.schemas.weights import ServerRecord
from services.settings import RedisSettings
from tests.console_runs import make_run


async def test_servers_and_dead_groups_come_from_redis(
    tmp_path: Path, redis_url: str, run_keys: RunKeys
) -> None:
    name = run_keys.prefix.split(":")[1]
    async with connect(redis_url) as redis:
        record = ServerRecord(
            server_id="node7-1", url="http://node7:8200", host="node7", gpu=None, state="ready",
            policy_version=4, tokens_per_s=913.27, groups_done=12, last_error="no <b>room</b>",
        )  # fmt: skip
        await Registry(redis, run_keys).heartbeat(record)
        queue = RedisQueue(redis, run_keys)
        for i in range(3):
            await queue.bury("prompts", f"group-{i}", b"{}", f"data: picture {i} <i>is gone</i>")
        reader = RedisReader(RedisSettings(url=redis_url), name)
        view = await reader.read()
        assert view.problem is None
        assert [letter.work_id for letter in view.letters] == ["group-2", "group-1", "group-0"]
        part = fragment("servers/now.html", run=Run("live", tmp_path), view=view, changes=False)
        for words in ("node7-1", "913.3", "no &lt;b&gt;room", "data: picture 2 &lt;i&gt;", "ready"):
            assert words in part
        make_run(tmp_path / name, steps=1, total=2).config.write_text(
            f'[redis]\nurl="{redis_url}"\n'
        )
        await drop_over_http(tmp_path, f"/admin/runs/{name}/dead/{view.letters[0].entry_id}/drop")
        assert len((await reader.read()).letters) == 2
        await reader.aclose()
    silent = RedisReader(RedisSettings(url=f"redis://127.0.0.1:{free_port()}/0"), name)
    assert "does not answer" in str((await silent.read()).problem)
    await silent.aclose()


async def drop_over_http(runs: Path, path: str) -> None:
    """Only the admin token does it, once, and no page of another origin."""
    app = create_console(runs, data_token="data-secret", admin_token="admin-secret")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

        async def status(token: str, **headers: str) -> int:
            headers |= {"Authorization": f"Bearer {token}"}
            return (await client.post(path, headers=headers)).status_code

        assert await status("data-secret") == 401
        assert await status("admin-secret", Origin="http://elsewhere") == 403
        assert await status("admin-secret") == 200
        assert await status("admin-secret") == 404
