"""How many tokens a prompt has, by the model folder's own tokenizer and chat template."""

from functools import cached_property
from pathlib import Path
from typing import Any

from scene_data.dataset import Sample
from scene_graph.boxes import smart_resize
from services.errors import SettingsError
from services.images import check_fits
from services.models.chat_template import chat_template, read_json_object
from services.models.families import model_family
from services.schemas.common import ChatMessage
from services.settings import Settings


class PromptLength:
    """Counts a row's prompt as the sampler will see it.

    Args:
        settings: The run's settings.
        folder: Its model's folder, as `tokenizer_folder` finds it.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._folder = folder
        self._limits = {
            "factor": model_family(settings.model.path).patch_factor,
            "min_pixels": settings.model.min_pixels,
            "max_pixels": settings.model.max_pixels,
        }

    @cached_property
    def _tokenizer(self) -> Any:
        # Not AutoTokenizer: that loads every library that a model may generate with.
        from transformers import PreTrainedTokenizerFast

        try:
            return PreTrainedTokenizerFast.from_pretrained(str(self._folder))
        except Exception as error:  # the tokenizers library raises bare ones
            raise SettingsError(
                f"model.path: no tokenizer loads of {self._folder}: {error}"
            ) from error

    def text_tokens(self, messages: list[ChatMessage]) -> int:
        """Tokens of a prompt, its image's placeholder not counted.

        Raises:
            SettingsError: The tokenizer does not load, or the chat template does not take the
                prompt or leaves out the image.
        """
        tokenizer = self._tokenizer
        try:
            text = tokenizer.apply_chat_template(
                [message.model_dump() for message in messages],
                chat_template=chat_template(str(self._folder)),
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # whatever a template does
            raise SettingsError(f"model.path: its chat template fails: {error}") from error
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        token = read_json_object(self._folder / "config.json").get("image_token_id")
        images = ids.count(token)
        if token is not None and images != 1:
            raise SettingsError(
                f"model.path: its chat template writes {images} placeholders (token {token}) for "
                "one image: take that of the published model"
            )
        return int(len(ids) - images)

    def answer_tokens(self, text: str) -> int:
        """Tokens of an answer, its end token counted.

        Raises:
            SettingsError: The tokenizer does not load.
        """
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    def image_tokens(self, sample: Sample) -> int:
        """Visual tokens of an image that fits."""
        width, height = smart_resize(sample.width, sample.height, **self._limits)
        return width * height // self._limits["factor"] ** 2

    def check_fits(self, sample: Sample) -> None:
        """Refuse an image that cannot be resized to the pixels that the run allows.

        Raises:
            InvalidInputError: As `services.images.check_fits`.
        """
        check_fits(sample.width, sample.height, **self._limits)


def tokenizer_folder(path: str) -> Path | None:
    """A model's folder, or the hub's copy of one that is here with tokenizer and chat template."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "tokenizer.json")
    if not isinstance(cached, str) or chat_template(str(Path(cached).parent)) is None:
        return None
    return Path(cached).parent
