"""vLLM's own handlers of OpenAI's API, for requests that `services.schemas.chat` let through."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from PIL import Image
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.renderers.online_renderer import OnlineRenderer

from rollout_service.vllm.lora import lora_request
from rollout_service.vllm.sampling import check_finite
from services.errors import EngineError, InvalidInputError, NotFoundError, SggError
from services.schemas.chat import ChatRequest
from services.settings import Settings


class PolicyChat(OpenAIServingChat):  # type: ignore[misc]
    """Samples by what the settings say a model's name stands for."""

    settings: Settings

    def _maybe_get_adapters(self, request: ChatCompletionRequest, **_: Any) -> LoRARequest | None:
        """The policy itself may be an adapter, which vLLM's handler does not know."""
        named = request.model in self.settings.rollout.adapters
        return lora_request(self.settings, request.model if named else None)

    async def chat_completion_full_generator(
        self,
        request: ChatCompletionRequest,
        results: AsyncIterator[RequestOutput],
        *rest: Any,
        **options: Any,
    ) -> Any:
        """A whole answer: without numbers that no JSON has."""
        return await super().chat_completion_full_generator(
            request, finite_results(results), *rest, **options
        )

    def chat_completion_stream_generator(
        self,
        request: ChatCompletionRequest,
        results: AsyncIterator[RequestOutput],
        *rest: Any,
        **options: Any,
    ) -> Any:
        """The events of an answer: the same."""
        return super().chat_completion_stream_generator(
            request, finite_results(results), *rest, **options
        )


class VllmChat:
    """Chat completions and the list of models."""

    def __init__(
        self, llm: EngineClient, settings: Settings, served_name: str, template: str | None
    ) -> None:
        """Answers at once.

        Args:
            llm: The running engine.
            settings: The run's settings.
            served_name: The policy's name.
            template: Chats' template; None where the tokenizer has it.
        """
        # Not the folder: answers show it.
        base = BaseModelPath(name=served_name, model_path=served_name)
        self._models = OpenAIServingModels(llm, [base])
        adapters = {
            name: lora_request(settings, name) for name in sorted(settings.rollout.adapters)
        }
        self._models.lora_requests.update(adapters)
        options: dict[str, Any] = {
            "request_logger": None,
            "chat_template": template,
            "chat_template_content_format": "openai",
        }
        renderer = OnlineRenderer(llm.model_config, llm.renderer, **options)
        self._chat = PolicyChat(llm, self._models, "assistant", online_renderer=renderer, **options)
        self._chat.settings = settings

    async def models(self) -> dict[str, Any]:
        """As `GET /v1/models` answers; without folders."""
        cards = await self._models.show_available_models()
        for card in cards.data:
            card.root = card.id
        return dict(cards.model_dump())

    async def complete(
        self, request: ChatRequest, images: Sequence[Image.Image]
    ) -> dict[str, Any] | AsyncIterator[str]:
        """The whole answer, or server-sent events.

        Args:
            request: Checked, and its schema too.
            images: Decoded, in the order of the parts.

        Raises:
            InvalidInputError: vLLM refuses it.
            NotFoundError: There is no such model.
            EngineError: The engine failed.
        """
        fields = request.model_dump(exclude_none=True, exclude={"messages", "user"})
        # No HTTP request goes along: vLLM would read priorities and ranks from its headers.
        asked = ChatCompletionRequest(messages=[], **fields)
        asked.messages = _messages(request, images)  # unchecked: no schema of vLLM's has images
        answer = await self._chat.create_chat_completion(asked)
        if isinstance(answer, ErrorResponse):
            raise _error(answer)
        return answer if isinstance(answer, AsyncIterator) else dict(answer.model_dump())


async def finite_results(results: AsyncIterator[RequestOutput]) -> AsyncIterator[RequestOutput]:
    """Results as they come.

    Raises:
        EngineError: The log-probabilities that were asked for are not finite.
    """
    async for result in results:
        for output in result.outputs:
            steps = zip(output.token_ids, output.logprobs or (), strict=False)
            check_finite((step[token].logprob for token, step in steps), output)
        yield result


def _messages(request: ChatRequest, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Turns for vLLM, with images that are decoded already."""
    left = iter(images)
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text}
                if part.type == "text"
                else {"type": "image_pil", "image_pil": next(left)}
                for part in message.content
            ],
        }
        for message in request.chat
    ]


def _error(answer: ErrorResponse) -> SggError:
    """VLLM's error as ours; its status says whose fault it is."""
    message = str(answer.error.message)
    if answer.error.code == 404:
        return NotFoundError(message)
    return InvalidInputError(message) if answer.error.code < 500 else EngineError(message)
