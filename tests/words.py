"""An embedder for tests: the words of a text, hashed into so many dimensions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence


class HashedWords:
    """Texts with words in common are alike."""

    def __init__(self, model: str = "hashed", dimension: int = 64) -> None:
        self.model = model
        self.dimension = dimension

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        vector = [0.01] * self.dimension
        for word in re.findall(r"\w+", text.lower()):
            digest = hashlib.sha256(word.encode()).digest()
            vector[int.from_bytes(digest[:4]) % self.dimension] += 1
        return vector
