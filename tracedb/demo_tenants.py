"""Who the generated workload is about: three tenants, their agents, and what their users ask."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

# US dollars for a million input and output tokens; None: runs in-house and has no price
PRICES: dict[str, tuple[str, Decimal | None, Decimal | None]] = {
    "gpt-4o": ("openai", Decimal("2.50"), Decimal("10.00")),
    "gpt-4o-mini": ("openai", Decimal("0.15"), Decimal("0.60")),
    "text-embedding-3-small": ("openai", Decimal("0.02"), Decimal("0.00")),
    "claude-sonnet-4": ("anthropic", Decimal("3.00"), Decimal("15.00")),
    "grok-3-mini": ("xai", Decimal("0.30"), Decimal("0.50")),
    "qwen3-8b": ("in-house", None, None),
    "bge-m3": ("in-house", None, None),
}


Tool = tuple[str, str, str, str]  # name, service, method, path


@dataclass(frozen=True, slots=True)
class Topic:
    """What users ask: the question, the answer, the tools and documents it takes."""

    intent: str
    question: str
    answer: str
    tools: tuple[Tool, ...]
    documents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DemoTenant:
    """A tenant of the workload, its share of it and the agents that work for it."""

    external_id: str
    name: str
    share: float
    agents: tuple[tuple[str, str, float], ...]  # agent, model, failure rate
    topics: tuple[Topic, ...]


_ORDERS = ("lookup_order", "orders", "GET", "/v1/orders/{id}")
_REFUND = ("create_refund", "payments", "POST", "/v1/refunds")
_SLOTS = ("find_slots", "calendar", "GET", "/v2/slots")
_BOOK = ("book_slot", "calendar", "POST", "/v2/appointments")
_LEDGER = ("query_ledger", "ledger", "POST", "/v1/queries")
_RATES = ("get_rates", "market-data", "GET", "/v3/rates")

TENANTS = (
    DemoTenant(
        "demo-acme",
        "Acme Retail",
        0.5,
        (("order-agent", "gpt-4o", 0.07), ("faq-agent", "gpt-4o-mini", 0.02)),
        (
            Topic(
                "order_status",
                "Where is my order {n}? It should have come on Monday.",
                "Order {n} left our warehouse yesterday and arrives tomorrow.",
                (_ORDERS,),
                ("help/shipping.md",),
            ),
            Topic(
                "refund",
                "Please refund order {n}, the lamp came broken.",
                "I am sorry about the lamp. The refund for order {n} is on its way.",
                (_ORDERS, _REFUND),
                ("policy/refunds.md", "help/damaged-goods.md"),
            ),
        ),
    ),
    DemoTenant(
        "demo-globex",
        "Globex Health",
        0.3,
        (("scheduling-agent", "claude-sonnet-4", 0.05), ("triage-agent", "qwen3-8b", 0.12)),
        (
            Topic(
                "appointment",
                "Can I see a dermatologist this week? Case {n}.",
                "You are booked for Thursday at 10:20. The reference is {n}.",
                (_SLOTS, _BOOK),
                ("guides/booking.md",),
            ),
            Topic(
                "preparation",
                "What must I bring to the examination {n}?",
                "Please come fasting and bring the referral for {n}.",
                (_SLOTS,),
                ("guides/examinations.md", "guides/fasting.md"),
            ),
        ),
    ),
    DemoTenant(
        "demo-initech",
        "Initech Finance",
        0.2,
        (("analyst-agent", "claude-sonnet-4", 0.09), ("report-agent", "grok-3-mini", 0.04)),
        (
            Topic(
                "cash_report",
                "Summarise the cash position of book {n} for the board.",
                "Book {n} closes with a positive cash position; the summary is attached.",
                (_LEDGER, _RATES),
                ("accounting/cash.md", "accounting/board-template.md"),
            ),
            Topic(
                "variance",
                "Why is the cost centre {n} over budget?",
                "Cost centre {n} is over budget because of two late licence invoices.",
                (_LEDGER,),
                ("accounting/cost-centres.md",),
            ),
        ),
    ),
)
