"""Client of a rollout server."""

from pathlib import Path

from services.errors import EngineError
from services.http.clients.proven import ProvenClient
from services.schemas.rollouts import RolloutRequest, RolloutResponse
from services.schemas.scene_graphs import SceneGraphRequest, SceneGraphResponse
from services.schemas.weights import CommitRequest, PassOnRequest, PolicyInfo, StageRequest, Version
from services.settings import SecuritySettings


class RolloutClient(ProvenClient):
    """Typed `POST /v1/rollouts`, `POST /v1/scene-graphs`, `GET /v1/policy`, `POST /v1/weights/*`.

    Example: `response = await RolloutClient("http://127.0.0.1:8200").rollouts(request)`
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        admin_token: str | None = None,
        timeout_s: float = 300.0,
        registered: SecuritySettings | None = None,
        pulse: bool = False,
    ) -> None:
        """Connects on first use.

        Args:
            url: `http://host:port` of the server.
            token: For sampling.
            admin_token: For weights; `token` where it is None.
            timeout_s: Longest wait for one answer, all attempts together.
            registered: Set where `url` stood in Redis; see `ProvenClient`.
            pulse: As `ServiceClient`'s.
        """
        super().__init__(url, token, timeout_s, registered, pulse)
        self._admin = ProvenClient(url, admin_token or token, timeout_s, registered, pulse)

    async def aclose(self) -> None:
        await super().aclose()
        await self._admin.aclose()

    async def rollouts(self, request: RolloutRequest, *, retry: bool = True) -> RolloutResponse:
        """Sample one group.

        Args:
            request: The group.
            retry: False where the caller would rather ask another server.

        Raises:
            UnavailableError: Not reachable, or not ready, until the deadline.
            InvalidInputError: The prompt, the image or the sampling is wrong.
            EngineError: The engine failed until the deadline, or answered for another `n`.
        """
        response = await self.post("/v1/rollouts", request, RolloutResponse, retry=retry)
        if len(response.completions) != request.sampling.n:
            raise EngineError(f"{self.url} answered {len(response.completions)} completions")
        return response

    async def scene_graphs(
        self, request: SceneGraphRequest, *, retry: bool = True
    ) -> SceneGraphResponse:
        """The scene graphs of pictures, in their order.

        A picture that cannot be answered has an `error` in place of its graph. Where no picture
        can be answered, the first one's error is raised.

        Args:
            request: The pictures.
            retry: False where the caller would rather ask another server.

        Raises:
            UnavailableError: Not reachable, or not ready, until the deadline.
            InvalidInputError: The pictures or the sampling are wrong.
            TooLargeError: Send smaller pictures, or fewer at a time.
            NotFoundError: The server's store does not have the images.
            EngineError: The engine failed until the deadline, or answered for other pictures.
        """
        response = await self.post("/v1/scene-graphs", request, SceneGraphResponse, retry=retry)
        if len(response.graphs) != len(request.images):
            raise EngineError(f"{self.url} answered {len(response.graphs)} graphs")
        return response

    async def policy(self) -> PolicyInfo:
        """What the server serves."""
        return await self.get("/v1/policy", PolicyInfo)

    async def upload(self, file: Path, version: Version) -> PolicyInfo:
        """Send a version's safetensors file, to be staged with transport `http` or `lora`.

        Sent once more where the connection is lost or dead. A server that takes nothing for
        `timeout_s` seconds, and says that it is at work, is given up; there is no limit on the
        whole.

        Raises:
            UnavailableError: Not reachable, or lost twice.
            WaitTimeoutError: It takes no more, or does not answer.
            TooLargeError: It is more than the server's model can need.
        """
        path = f"/v1/weights/files/{version.incarnation}/{version.policy_version}"
        return await self._admin.put_file(path, file, PolicyInfo)

    async def pass_on(self, request: PassOnRequest) -> PolicyInfo:
        """Have a version that the server has staged sent to another server, as `upload` does.

        Raises:
            NotFoundError: It was not uploaded to this server, or is not verified.
            UnauthorizedError: The other server does not prove itself.
            UnavailableError: The other server is not reached, or lost twice.
            WaitTimeoutError: It is silent, or the whole takes over `timeout_s`.
        """
        return await self._admin.post("/v1/weights/pass-on", request, PolicyInfo, retry=False)

    async def stage(self, request: StageRequest) -> PolicyInfo:
        """Have a version brought in and verified while sampling goes on.

        Asked once, like `commit`: a server that misses a version catches up by itself.

        Raises:
            InvalidInputError: The bytes are not what the manifest says, or not this model's.
            NotFoundError: The bytes are not on the server's host.
            ConflictError: The server has a later version.
        """
        return await self._admin.post("/v1/weights/stage", request, PolicyInfo, retry=False)

    async def commit(self, request: CommitRequest) -> PolicyInfo:
        """Have the staged version served. Again is a no-op.

        Raises:
            ConflictError: That version is not staged.
            EngineError: It could not be loaded; the server is out of service until it can.
        """
        return await self._admin.post("/v1/weights/commit", request, PolicyInfo, retry=False)

    async def abort(self, request: CommitRequest) -> PolicyInfo:
        """Have a staged version forgotten.

        Raises:
            ConflictError: It is already served.
        """
        return await self._admin.post("/v1/weights/abort", request, PolicyInfo)
