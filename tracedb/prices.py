"""The price list of the genai-prices package, as entries of `tracedb.model_prices`.

What that list cannot say of our token classes is left out: prices by the time of day, prices for
other things than tokens and requests, and models it has no price for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from tracedb.errors import ExtraMissing
from tracedb.money_rows import ModelName, ModelPrice

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo
    from genai_prices.types import ModelPrice as ListedPrice

SOURCE = "genai-prices"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Tier(NamedTuple):
    """A row of an entry, in US dollars; see `ModelPrice`."""

    min_input_tokens: int
    input_usd_per_mtok: Decimal | None
    cache_read_usd_per_mtok: Decimal | None
    cache_write_usd_per_mtok: Decimal | None
    output_usd_per_mtok: Decimal | None
    reasoning_usd_per_mtok: Decimal | None
    request_usd: Decimal


# what the list calls the classes, in the order of `Tier`
_CLASSES = (
    *("input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok"),
    "output_reasoning_mtok",
)

Name = tuple[str | None, str]
"""A provider and a model."""
Timeline = dict[datetime, tuple[Tier, ...]]
"""The entries of a model, by the time from which they are valid."""


@dataclass(frozen=True, slots=True)
class Sync:
    """What is to be added to the price list, and what cannot be."""

    entries: list[dict[str, Any]]
    models: int
    skipped: int
    """Models of the list whose prices cannot be told in our token classes."""
    kept: int
    """Models whose price somebody else has set, which a sync leaves alone."""
    unknown: list[ModelName]
    """Names of calls for which the list has no price."""


def snapshot() -> DataSnapshot:
    """The list that the installed package brings; ExtraMissing without it."""
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        raise ExtraMissing(
            "the price list comes with genai-prices: pip install 'tracedb[prices]'"
        ) from None
    return get_snapshot()


def plan(listed: DataSnapshot, known: Sequence[ModelPrice], names: Iterable[ModelName]) -> Sync:
    """What the price list lacks: models by the list's own names, and by those that calls give.

    Names are resolved by the package's own rules. Entries that are there already are not given
    again; one that says something else is corrected by another of the same time.
    """
    timelines: dict[Name, Timeline] = {}
    skipped = 0
    for provider in listed.providers:
        for model in provider.models:
            if entries := timeline(model):
                timelines[provider.id, model.id] = entries
            else:
                skipped += 1
    models = len(timelines)
    have, foreign = _known(known)
    unknown = []
    for name in names:
        for model_name in (name.response_model, name.request_model):
            if model_name and (entries := _resolved(listed, name.provider, model_name)):
                timelines[name.provider or "", model_name] = entries
                break
        else:
            unknown.append(name)
    # names that earlier syncs have resolved
    for named, model_name in have.keys() - timelines.keys():
        if entries := _resolved(listed, named or None, model_name):
            timelines[named, model_name] = entries
    found = [
        entry
        for name, entries in sorted(timelines.items(), key=lambda item: (item[0][0] or "", item[0]))
        if name not in foreign
        for entry in _missing(name, entries, have.get(name, {}))
    ]
    return Sync(found, models, skipped, len(foreign & timelines.keys()), unknown)


def timeline(model: ModelInfo) -> Timeline:
    """The prices of a model from when on; empty if they cannot be told in our token classes."""
    from genai_prices.types import ModelPrice as ListedPrice
    from genai_prices.types import StartDateConstraint

    if isinstance(model.prices, ListedPrice):
        entries = {EPOCH: tiers(model.prices)}
    else:
        constraints = [item.constraint for item in model.prices if item.constraint is not None]
        starts = [
            datetime.combine(item.start_date, time(), UTC)
            for item in constraints
            if isinstance(item, StartDateConstraint)
        ]
        if len(starts) < len(constraints):
            return {}
        entries = {at: tiers(model.get_prices(at)) for at in sorted({EPOCH, *starts})}
    has_price = any(price is not None for entry in entries.values() for price in entry[0][1:-1])
    return entries if has_price else {}


def tiers(price: ListedPrice) -> tuple[Tier, ...]:
    """The rows of an entry; the list's tiers begin above a number of tokens, ours at one."""
    from genai_prices.types import TieredPrices

    values = [getattr(price, name, None) for name in _CLASSES]
    starts = {tier.start + 1 for v in values if isinstance(v, TieredPrices) for tier in v.tiers} | {
        0
    }
    # the list has the price of a thousand
    request = getattr(price, "requests_kcount", None) or Decimal(0)

    def at(value: Decimal | TieredPrices | None, tokens: int) -> Decimal | None:
        if not isinstance(value, TieredPrices):
            return value
        reached = [tier.price for tier in value.tiers if tokens > tier.start]
        return reached[-1] if reached else value.base

    return tuple(
        Tier._make((start, *(at(value, start) for value in values), request.scaleb(-3)))
        for start in sorted(starts)
    )


def _resolved(listed: DataSnapshot, provider: str | None, model: str) -> Timeline:
    try:
        return timeline(listed.find_provider_model(model, None, provider, None)[1])
    except LookupError:
        return {}


def _known(known: Sequence[ModelPrice]) -> tuple[dict[Name, Timeline], set[Name]]:
    """The entries that count, of the names that were synced; and the other names."""
    rows: dict[Name, dict[datetime, tuple[int, list[Tier]]]] = {}
    foreign: set[Name] = set()
    for price in known:
        name = (price.provider, price.model)
        if price.source != SOURCE:
            foreign.add(name)
        tier = Tier(*(getattr(price, field) for field in Tier._fields))
        entries = rows.setdefault(name, {})
        revision, entry = entries.get(price.valid_from, (0, []))
        if price.revision > revision:
            entries[price.valid_from] = (price.revision, [tier])
        else:
            entry.append(tier)
    have = {
        name: {at: tuple(sorted(entry)) for at, (_, entry) in entries.items()}
        for name, entries in rows.items()
        if name not in foreign
    }
    return have, foreign


def _missing(name: Name, wanted: Timeline, have: Timeline) -> Iterator[dict[str, Any]]:
    """What makes the entries that are there say what is wanted, at every time."""
    before: tuple[Tier, ...] | None = None
    for at in sorted(wanted.keys() | have.keys()):
        want = wanted.get(at, before)
        if want is not None and have.get(at, before) != want:
            yield {
                "provider": name[0],
                "model": name[1],
                "valid_from": at,
                "source": SOURCE,
                "tiers": [tier._asdict() for tier in want],
            }
        before = want
