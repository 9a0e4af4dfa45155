"""What the fake engine's tokens are: bytes, or those of the model that the trainer trains."""

import json
from collections.abc import Sequence
from pathlib import Path

from scene_graph.boxes import smart_resize
from services.images import check_fits, decode_image
from services.models.token_text import token_ends
from services.settings import ModelSettings

_IMAGE_TOKENS = 16


class ByteVocabulary:
    """Needs no model: a token is a byte, images are not looked at."""

    end = 256
    """Ends an answer."""
    _pad = 257

    def image(self, data: bytes) -> list[int]:
        """The part of a prompt that stands for an encoded image; any bytes will do."""
        return [self._pad] * _IMAGE_TOKENS

    def encode(self, text: str) -> list[int]:
        """A text's tokens."""
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, without its end."""
        return bytes(token for token in token_ids if token < self.end).decode(errors="replace")

    def token_ends(self, token_ids: Sequence[int], text: str) -> list[int]:
        """See `services.models.token_text`."""
        return [len(self.decode(token_ids[: i + 1])) for i in range(len(token_ids))]


class ModelVocabulary:
    """A Qwen-VL's tokenizer and image sizes, read without torch, so that its trainer can train.

    Example: `ModelVocabulary(ModelSettings(path="assets/toy-start"))`
    """

    def __init__(self, model: ModelSettings) -> None:
        """Reads the model's folder.

        Args:
            model: `path` is a local folder with `tokenizer.json` and `config.json`.
        """
        from tokenizers import Tokenizer

        folder = Path(model.path)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        self.end = int(config.get("text_config", config)["eos_token_id"])
        self._start, self._pad, self._stop = (
            int(config[f"{name}_token_id"]) for name in ("vision_start", "image", "vision_end")
        )
        vision = config["vision_config"]
        self._cell = int(vision["patch_size"]) * int(vision["spatial_merge_size"])
        self._limits = {
            "factor": self._cell,
            "min_pixels": model.min_pixels,
            "max_pixels": model.max_pixels,
        }

    def image(self, data: bytes) -> list[int]:
        """A placeholder for each visual token.

        Raises:
            InvalidInputError: The trainer could not use the image.
            TooLargeError: The same.
        """
        size, limits = decode_image(data).size, self._limits
        check_fits(*size, **limits)
        width, height = smart_resize(*size, **limits)
        num_tokens = (width // self._cell) * (height // self._cell)
        return [self._start, *[self._pad] * num_tokens, self._stop]

    def encode(self, text: str) -> list[int]:
        """A text's tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, without its end."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def token_ends(self, token_ids: Sequence[int], text: str) -> list[int]:
        """See `services.models.token_text`."""
        return token_ends(self._tokenizer, token_ids, text)


Vocabulary = ByteVocabulary | ModelVocabulary
"""Token ids of prompts and answers"""


def vocabulary_of(model: ModelSettings) -> Vocabulary:
    """The model's own where it is a local folder, else bytes."""
    if (Path(model.path) / "tokenizer.json").is_file():
        return ModelVocabulary(model)
    return ByteVocabulary()
