"""How alike two names are to a text embedding model: the optional extra `embedding`.

    sim(a, b) = max(0, cos(E(a), E(b))), rounded to 6 decimals; 1 for equal names

Each name is encoded alone, so that its vector does not depend on what else is asked for. A new name
costs a forward pass; a table made once from the model (`sgg-rl similarity build --embedding`) costs
none.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_graph.similarity import Floats, Indices
from services.errors import InvalidInputError

MAX_CHARACTERS = 200
"""A longer name is no name: it is not encoded, so that hostile text cannot buy compute."""
_MAX_VECTORS = 32_768
_DECIMALS = 6
"""Beyond them float32 results differ between machines."""
_PAIRS_AT_ONCE = 4096

Encoder = Callable[[str], NDArray[np.float32]]
"""Text to its embedding [D], any length of vector, always the same for the same text."""


class EmbeddingSimilarity:
    """Cosine of embeddings; keeps those of the last 32768 names. Safe for several threads."""

    def __init__(self, encode: Encoder, version: str) -> None:
        self.version = version
        self._encode = encode
        self._encoding = Lock()  # a tokenizer sets its own truncation and padding in every call
        self._vector = lru_cache(_MAX_VECTORS)(self._unit_vector)

    def of_pairs(self, names: Sequence[str], left: Indices, right: Indices) -> Floats:
        """[N] cosine, at least 0; 0 for a name over 200 characters, 1 for equal names."""
        # Each pair of names is computed once, whichever way round and however often it is asked.
        code = np.minimum(left, right) * len(names) + np.maximum(left, right)
        distinct, position = np.unique(code, return_inverse=True)
        low, high = np.divmod(distinct, max(len(names), 1))
        values = (low == high).astype(np.float64)
        short = np.array([len(name) <= MAX_CHARACTERS for name in names], dtype=np.bool_)
        asked = np.flatnonzero((low != high) & short[low] & short[high])
        values[asked] = self._cosines(names, low[asked], high[asked])
        pairs: Floats = values[position]
        return pairs

    def _cosines(self, names: Sequence[str], left: Indices, right: Indices) -> Floats:
        """[N] of pairs of different names."""
        needed, position = np.unique(np.stack([left, right]), return_inverse=True)
        if not needed.size:
            return np.empty(0)
        vectors = np.stack([self._vector(names[index]) for index in needed])
        left, right = position.reshape(2, -1)
        parts = []
        for start in range(0, left.size, _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            a, b = (vectors[side[part]].astype(np.float64) for side in (left, right))
            parts.append(np.einsum("nd,nd->n", a, b))
        cosines: Floats = np.concatenate(parts).round(_DECIMALS).clip(0.0, 1.0)
        return cosines

    def _unit_vector(self, name: str) -> NDArray[np.float32]:
        # JSON can hold half a surrogate pair, which no tokenizer takes.
        text = name.encode("utf-8", "replace").decode()
        with self._encoding:
            vector = self._encode(text).astype(np.float64)
        norm = float(np.linalg.norm(vector))
        usable = np.isfinite(norm) and norm > 0  # a text of unknown words may have the zero vector
        return (vector / norm if usable else np.zeros_like(vector)).astype(np.float32)


def load_embedding(model: str) -> EmbeddingSimilarity:
    """Load a sentence-transformers model on the CPU; nothing is downloaded.

    Args:
        model: Its folder, or the hub name of a model that is in the local cache.

    Raises:
        InvalidInputError: The extra is not installed, or the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InvalidInputError(
            'embedding similarity needs the optional extra: pip install "sgg-rl[embedding]"'
        ) from error
    try:
        loaded: Any = SentenceTransformer(model, device="cpu", local_files_only=True).float().eval()
        version = f"embedding:{model}:{_digest(loaded)}"
        loaded.encode("man", show_progress_bar=False)
    except Exception as error:  # a model's files can break its loaders in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(
            f"embedding model {model!r} cannot be loaded: {reason}; it must be a folder of "
            "sentence-transformers, or be in the hub's local cache (hf download NAME)"
        ) from error
    return EmbeddingSimilarity(
        lambda text: loaded.encode(text, show_progress_bar=False), version=version
    )


def _digest(model: Any) -> str:
    """Covers all that decides its vectors: modules, settings, tokenizer, prompts, weights."""
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
    texts = (
        tokenizer.to_str()
        if hasattr(tokenizer, "to_str")
        else sorted(tokenizer.get_vocab().items())
    )
    settings = [MAX_CHARACTERS, _DECIMALS, repr(model), texts, model.max_seq_length]
    settings += [model.prompts, model.default_prompt_name]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
