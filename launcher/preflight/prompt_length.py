"""How many tokens a prompt has, by the model folder's own tokenizer and chat template."""

from pathlib import Path
from typing import Any

from scene_data.dataset import Sample
from scene_data.templates import prompt_messages
from scene_data.wire import box_space
from scene_graph.boxes import smart_resize
from services.chat_template import chat_template, read_json_object
from services.errors import InvalidInputError, SettingsError
from services.model_families import model_family
from services.schemas.common import ChatMessage
from services.settings import Settings


class PromptLength:
    """Counts a row's prompt as the sampler will see it.

    Args:
        settings: Of the run, with `box_space` decided; `model.path` is a folder.

    Raises:
        SettingsError: The tokenizer cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        # Not AutoTokenizer: that loads every library that a model may generate with.
        from transformers import PreTrainedTokenizerFast

        path = settings.model.path
        self._settings = settings
        self._template = chat_template(path)
        self._factor = model_family(path).patch_factor
        self._image_token = read_json_object(Path(path) / "config.json").get("image_token_id")
        try:
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(path)
        except Exception as error:  # the tokenizers library raises bare ones
            raise SettingsError(f"model.path: the tokenizer of {path} does not load: {error}") from error

    def text_tokens(self, messages: list[ChatMessage]) -> int:
        """Tokens of a prompt, its image's placeholder not counted.

        Raises:
            SettingsError: The chat template does not take the prompt, or leaves out the image.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [message.model_dump() for message in messages],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # whatever a template does
            raise SettingsError(f"model.path: its chat template fails: {error}") from error
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        images = ids.count(self._image_token)
        if self._image_token is not None and images != 1:
            raise SettingsError(
                f"model.path: its chat template writes {images} placeholders (token "
                f"{self._image_token}) for one image: take that of the published model"
            )
        return len(ids) - images

    def image_tokens(self, width: int, height: int) -> int:
        """Visual tokens of an image of that size in pixels.

        Raises:
            InvalidInputError: No model takes such a shape.
        """
        model = self._settings.model
        try:
            sides = smart_resize(
                width,
                height,
                factor=self._factor,
                min_pixels=model.min_pixels,
                max_pixels=model.max_pixels,
            )
        except ValueError as error:
            raise InvalidInputError(str(error)) from error
        return sides[0] * sides[1] // self._factor**2


def row_messages(settings: Settings, sample: Sample) -> list[ChatMessage]:
    """What is asked about a row."""
    data = settings.data
    return prompt_messages(
        data.template,
        box_space(settings.model, sample),
        data.vocabulary,
        thinking=data.thinking,
        task=data.task,
    )
