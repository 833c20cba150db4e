"""Support tickets with their triage: the quickstart's own task, drawn from a seed.

A ticket is a customer's message; its triage says what it is about. Every label can be read off the text: category and
product off the one complaint, urgency off a stated cue (without one it is normal), the order number off the only number
that is a letter with five digits. Other products, other numbers, quotes and praise are there to mislead.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from luthier.data.ticket_complaints import COMPLAINTS, PRODUCTS, Category, Complaint, Tone
from luthier.data.ticket_words import (
    ASIDES,
    ENDINGS,
    GREETINGS,
    MONTHS,
    NAMES,
    NO_ORDER,
    OPENINGS,
    ORDERS,
    PATIENT,
    PRAISE,
    TOWNS,
    URGENT,
    Urgency,
)
from luthier.types import Message

Share = Literal["train", "held_out"]

CATEGORIES: tuple[str, ...] = get_args(Category)
URGENCIES: tuple[str, ...] = get_args(Urgency)


def _either(values: Sequence[str]) -> str:
    """The values as a choice in words."""
    return f"{', '.join(values[:-1])} or {values[-1]}"


LABELS = ("category", "urgency", "product", "order_number")
FIELDS = (*LABELS, "summary")

# The form comes first, so that all prompts begin alike, and is shown as JSON: of the forms tried, the untuned model tries
# to follow this one most often.
INSTRUCTION = (
    f'Answer with one JSON object only: {{"category":"{_either(CATEGORIES)}",'
    f'"urgency":"low (no rush), normal or high (urgent)","product":"{_either(PRODUCTS)}",'
    '"order_number":"A-12345 or null","summary":"one short sentence"}'
)

_TONE_SHARES: dict[Tone, float] = {"polite": 0.27, "angry": 0.2, "terse": 0.22, "rambling": 0.11, "broken": 0.2}
_NUM_ASIDES: dict[Tone, tuple[int, ...]] = {
    "polite": (0, 1),
    "angry": (0, 1),
    "terse": (0, 0, 1),
    "rambling": (1,),
    "broken": (0, 1),
}
_ORDER_LETTERS = "ABCDEFGHJKLMNPRSTUVW"
_WRITTEN_ORDERS = ("{letter}-{digits}", "{letter}{digits}", "#{letter}{digits}", "{letter} {digits}")
_CODE_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Triage:
    """What a ticket is about; `order_number` is written as `A-12345`, or None where the ticket gives none."""

    category: Category
    urgency: Urgency
    product: str
    order_number: str | None


@dataclass(frozen=True)
class Ticket:
    """A customer's message, its triage, and a summary in one sentence."""

    text: str
    triage: Triage
    summary: str


@dataclass(frozen=True)
class Score:
    """How an answer compares with a ticket's triage.

    valid_json: it is an object with the five fields and no others, each of the right type. fields_right: by label; all
    wrong where the answer is not a JSON object. summary: what it gives as summary, or nothing.
    """

    valid_json: bool
    fields_right: dict[str, bool]
    summary: str


# ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def generate_tickets(count: int, seed: int, share: Share = "train") -> list[Ticket]:
    """So many tickets with distinct texts, decided by the seed and the share alone.

    A text belongs to one share for good (its hash decides), so training and held-out tickets never meet, whatever their
    seeds.
    """
    draw = random.Random(f"tickets {seed}")
    tickets: dict[str, Ticket] = {}
    while len(tickets) < count:
        ticket = draw_ticket(draw)
        if share_of(ticket.text) == share:
            tickets.setdefault(ticket.text, ticket)
    return list(tickets.values())


def share_of(text: str) -> Share:
    """The share that a ticket's text belongs to: about one in four is held out."""
    return "held_out" if hashlib.sha256(text.encode()).digest()[0] % 4 == 0 else "train"


def draw_ticket(draw: random.Random) -> Ticket:
    """One ticket: a complaint about one product, in one tone, among what people write around it."""
    tone = draw.choices(tuple(_TONE_SHARES), tuple(_TONE_SHARES.values()))[0]
    complaint = draw.choice(COMPLAINTS)
    product, other = draw.sample(PRODUCTS, 2)
    urgency: Urgency = draw.choice(("low", "normal", "high"))
    order_number = f"{draw.choice(_ORDER_LETTERS)}-{draw.randrange(10000, 100000)}" if draw.random() < 0.7 else None
    facts = _facts(draw, product, other, order_number)
    sentences = [
        sentence.format(**facts)
        for sentence in _sentences(draw, tone, complaint, urgency, has_order=order_number is not None)
    ]
    greeting, ending = (draw.choice(lines[tone]).format(**facts) for lines in (GREETINGS, ENDINGS))
    gap = "\n" if tone != "terse" and draw.random() < 0.3 else " "
    body = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
    text = gap.join(part for part in (greeting, body, ending) if part)
    return Ticket(
        text, Triage(complaint.category, urgency, product, order_number), complaint.summary.format(product=product)
    )


def _sentences(
    draw: random.Random, tone: Tone, complaint: Complaint, urgency: Urgency, *, has_order: bool
) -> list[str]:
    """The body's sentences with their slots: opening, complaint, then the rest in any order, seldom one of it first."""
    asides = draw.sample(ASIDES[tone], draw.choice(_NUM_ASIDES[tone]))
    if tone != "terse" and draw.random() < 0.2:
        asides.append(draw.choice(PRAISE[complaint.category]))
    opening, problem = draw.choice(OPENINGS[tone]), draw.choice(complaint.worded(tone))
    if draw.random() < 0.3:  # mistyped; but not cues, order numbers, or what frees the other product from blame
        opening, problem = _mistyped(draw, opening), _mistyped(draw, problem)
        asides = [aside if "{other}" in aside else _mistyped(draw, aside) for aside in asides]
    rest = [*asides, draw.choice((ORDERS if has_order else NO_ORDER)[tone])]
    if urgency != "normal":
        rest.append(draw.choice((URGENT if urgency == "high" else PATIENT)[tone]))
    rest = draw.sample(rest, len(rest))
    num_first = 1 if draw.random() < 0.15 else 0
    ordered = [*rest[:num_first], opening, problem, *rest[num_first:]]
    return [sentence for sentence in ordered if sentence]


def _mistyped(draw: random.Random, sentence: str) -> str:
    """The sentence with two neighbouring letters swapped inside one of its longer words; slots stay as they are."""
    words = sentence.split(" ")
    places = [place for place, word in enumerate(words) if word.isalpha() and word.islower() and len(word) >= 5]
    if not places:
        return sentence
    place = draw.choice(places)
    word = words[place]
    at = draw.randrange(1, len(word) - 2)
    words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def _facts(draw: random.Random, product: str, other: str, order_number: str | None) -> dict[str, str]:
    """What fills the slots of a ticket's sentences."""
    letter, digits = order_number.split("-") if order_number else ("", "")
    letter = letter.lower() if draw.random() < 0.15 else letter
    return {
        "product": product,
        "other": other,
        "order": draw.choice(_WRITTEN_ORDERS).format(letter=letter, digits=digits),
        "price": f"{draw.choice('$€£')}{draw.randrange(20, 400)}.{draw.choice(('00', '50', '90', '99'))}",
        "date": f"{draw.randrange(1, 29)} {draw.choice(MONTHS)}",
        "month": draw.choice(MONTHS),
        "year": str(draw.randrange(2009, 2025)),
        "days": str(draw.randrange(3, 15)),
        "phone": f"555-{draw.randrange(10000):04d}",
        "ticket": str(draw.randrange(10000, 1000000)),
        "name": draw.choice(NAMES),
        "town": draw.choice(TOWNS),
    }


# ── asking and scoring ──────────────────────────────────────────────────────────────────────────────────────────────


def prompt_for(ticket: Ticket) -> tuple[Message, ...]:
    """What is asked about a ticket: the form of the answer with the fields and their allowed values, then its text."""
    return Message("system", INSTRUCTION), Message("user", ticket.text)


def answer_for(ticket: Ticket) -> str:
    """The right answer: compact JSON on one line, the fields in the order asked for."""
    fields = {label: getattr(ticket.triage, label) for label in LABELS} | {"summary": ticket.summary}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def score(answer: str, ticket: Ticket) -> Score:
    """How an answer compares with the ticket's triage; it may stand in a code fence."""
    fields = _json_object(answer)
    valid = set(fields) == set(FIELDS) and all(
        isinstance(value, str) or (name == "order_number" and value is None) for name, value in fields.items()
    )
    summary = fields.get("summary")
    return Score(
        valid_json=valid,
        fields_right={label: fields.get(label, ...) == getattr(ticket.triage, label) for label in LABELS},
        summary=summary if isinstance(summary, str) else "",
    )


def _json_object(answer: str) -> dict[str, Any]:
    """The object that an answer is; empty if it is not one."""
    fenced = _CODE_FENCE.fullmatch(answer.strip())
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):  # RecursionError: brackets nested thousands deep
        return {}
    return value if isinstance(value, dict) else {}
