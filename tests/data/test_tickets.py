"""The labels of tickets are checked by a reader of its own, which knows the texts only."""

from __future__ import annotations

import json
import random
import re
import string
from dataclasses import replace
from statistics import mean

import pytest

from luthier.data.ticket_complaints import COMPLAINTS, PRODUCTS
from luthier.data.tickets import (
    CATEGORIES,
    LABELS,
    URGENCIES,
    Score,
    Ticket,
    answer_for,
    draw_ticket,
    generate_tickets,
    prompt_for,
    score,
    share_of,
)
from luthier.store.cache import cache_root

TICKETS = generate_tickets(1500, seed=1)

ORDER = re.compile(r"(?<!\w)#?([A-Za-z])[- ]?(\d{5})(?!\d)")
HIGH = re.compile(
    r"(?<!not )\burgent|\btoday\b|\btomorrow\b|cannot wait|can not wait|right now|asap|one more day|very fast",
    re.IGNORECASE,
)
LOW = re.compile(
    r"no rush|no hurry|not urgent|take your time|whenever you|low priority|\bcan (easily )?wait\b", re.IGNORECASE
)
WITHOUT_FAULT = re.compile(
    r"works|happy|very good|is fine|was fine|no problem|birthday|settled|nothing was ever wrong|cost back"
)
# Tried in this order: a wish before the thing it is about, a refund before the delivery that it followed.
ABOUT = {
    "feature": r"dark|export|sav\w* (the )?settings|settings to a file|silent|quiet|night|profile|second user|"
    r"more user|\bvoice",
    "login": r"password|sign|account (is|has been|that)|lock|login|logs? me out|app put me out|sends? code|"
    r"code of|reset|a code from",
    "damage": r"crack|scratch|button|\bwet\b|water|plug|dragged",
    "refund": r"refund|money (back|has not come back|is not come back)|not seen my money|kept the money|"
    r"money not returned|got back less|give back only part|sent the money|give back the|give my money",
    "billing": r"charged|payment|money|invoice|bill|fee\b|pay double",
    "delivery": r"arrive|not here|deliver|waiting|tracking|parcel|handed over|address|shipped|courier|street",
}


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+|\n", text)


def order_number_in(text: str) -> str | None:
    found = {f"{letter.upper()}-{digits}" for letter, digits in ORDER.findall(text)}
    assert len(found) <= 1, text
    return found.pop() if found else None


def urgency_in(text: str) -> str:
    is_high, is_low = bool(HIGH.search(text)), bool(LOW.search(text))
    assert not (is_high and is_low), text
    return "high" if is_high else "low" if is_low else "normal"


def products_at_fault_in(text: str) -> set[str]:
    return {
        product
        for sentence in sentences(text)
        if not WITHOUT_FAULT.search(sentence)
        for product in PRODUCTS
        if re.search(rf"\b{product}\b", sentence, re.IGNORECASE)
    }


def category_of(wording: str) -> str | None:
    return next((name for name, pattern in ABOUT.items() if re.search(pattern, wording, re.IGNORECASE)), None)


# ── labels ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_order_number_is_the_one_in_the_text_and_none_where_there_is_none():
    for ticket in TICKETS:
        assert order_number_in(ticket.text) == ticket.triage.order_number, ticket.text


def test_the_urgency_follows_from_the_cues_in_the_text():
    for ticket in TICKETS:
        assert urgency_in(ticket.text) == ticket.triage.urgency, ticket.text


def test_the_product_is_the_only_one_that_the_text_complains_about():
    for ticket in TICKETS:
        assert products_at_fault_in(ticket.text) == {ticket.triage.product}, ticket.text


def test_every_wording_of_a_complaint_tells_its_category():
    for complaint in COMPLAINTS:
        for wording in (*complaint.said, *complaint.terse, *complaint.broken):
            assert category_of(wording) == complaint.category, wording


def test_complaints_say_nothing_about_urgency_or_order_numbers():
    for complaint in COMPLAINTS:
        for wording in (*complaint.said, *complaint.terse, *complaint.broken):
            assert urgency_in(wording) == "normal"
            assert {name for _, name, _, _ in string.Formatter().parse(wording) if name} == {"product"}


def test_summaries_are_one_sentence_of_at_most_15_words_that_names_the_product():
    for ticket in TICKETS:
        assert len(ticket.summary.split()) <= 15
        assert re.fullmatch(r"[A-Z][^.]*\.", ticket.summary)
        assert ticket.triage.product in ticket.summary


# ── variety ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_labels_occur_about_as_often_as_they_should():
    for label, values in (("category", CATEGORIES), ("urgency", URGENCIES), ("product", PRODUCTS)):
        found = [getattr(ticket.triage, label) for ticket in TICKETS]
        assert set(found) == set(values)
        assert all(0.7 < found.count(value) * len(values) / len(found) < 1.3 for value in values)
    without_order = mean(ticket.triage.order_number is None for ticket in TICKETS)
    assert 0.25 < without_order < 0.35


def test_tickets_hold_what_misleads():
    texts = [ticket.text for ticket in TICKETS]
    assert mean(sum(product in text.lower() for product in PRODUCTS) == 2 for text in texts) > 0.15
    assert mean(bool(re.search(r"[$€£]\d", text)) for text in texts) > 0.08
    assert mean(bool(re.search(r"ticket\D{1,20}\d{5,6}\b", text, re.I)) for text in texts) > 0.05


def test_tickets_differ_even_apart_from_their_numbers():
    draw = random.Random(5)
    texts = [draw_ticket(draw).text for _ in range(1000)]
    assert len(set(texts)) >= 990
    assert len({re.sub(r"\d", "0", text) for text in texts}) >= 970


def test_tickets_are_short_and_of_many_lengths():
    words = [len(ticket.text.split()) for ticket in TICKETS]
    assert 25 < mean(words) < 50
    assert min(words) < 10
    assert 70 < max(words) < 120


def test_every_slot_is_filled_and_no_sentence_is_empty():
    for ticket in TICKETS:
        assert not re.search(r"[{}]|  |^\s|\s$", ticket.text), ticket.text


# ── seeds and shares ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_seed_decides_the_tickets():
    assert generate_tickets(50, seed=3) == generate_tickets(50, seed=3)
    assert generate_tickets(50, seed=3) != generate_tickets(50, seed=4)
    assert generate_tickets(20, seed=3) == generate_tickets(50, seed=3)[:20]


def test_training_and_held_out_tickets_never_meet():
    held_out = {ticket.text for seed in range(4) for ticket in generate_tickets(300, seed, "held_out")}
    train = {ticket.text for seed in range(4) for ticket in generate_tickets(300, seed, "train")}
    assert not held_out & train
    assert {share_of(text) for text in held_out} == {"held_out"}
    assert {share_of(text) for text in train} == {"train"}


def test_the_tickets_of_one_draw_are_distinct():
    assert len({ticket.text for ticket in TICKETS}) == len(TICKETS)


# ── prompts, answers, scores ────────────────────────────────────────────────────────────────────────────────────────


def ticket_of(order_number: str | None = "A-10482") -> Ticket:
    return next(
        replace(ticket, triage=replace(ticket.triage, order_number=order_number))
        for ticket in TICKETS
        if ticket.triage.urgency == "high" and ticket.triage.category == "billing"
    )


def test_the_prompt_names_the_fields_and_their_allowed_values():
    instruction, question = prompt_for(TICKETS[0])
    assert (instruction.role, question.role, question.content) == ("system", "user", TICKETS[0].text)
    form = instruction.content
    for name in (*LABELS, "summary", *CATEGORIES, *URGENCIES, *PRODUCTS, "null"):
        assert re.search(rf"\b{name}\b", form), name


def test_right_answers_are_valid_and_right_in_every_field():
    for ticket in TICKETS:
        answer = answer_for(ticket)
        assert "\n" not in answer
        assert tuple(json.loads(answer)) == (*LABELS, "summary")
        assert score(answer, ticket) == Score(True, dict.fromkeys(LABELS, True), ticket.summary)


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "```\n{}\n```", "  {}\n", "```JSON {}```\n"])
def test_an_answer_may_stand_in_a_code_fence(fence: str):
    ticket = ticket_of()
    assert score(fence.replace("{}", answer_for(ticket)), ticket).valid_json


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: "",
        lambda answer: "I am sorry to hear that.",
        lambda answer: "Here it is: " + answer,
        lambda answer: answer + " I hope this helps.",
        lambda answer: answer[:-1],
        lambda answer: answer.replace('"', "'"),
        lambda answer: f"[{answer}]",
        lambda answer: "[" * 100_000,
    ],
)
def test_nothing_is_right_in_an_answer_that_is_not_a_json_object(spoil):
    ticket = ticket_of()
    assert score(spoil(answer_for(ticket)), ticket) == Score(False, dict.fromkeys(LABELS, False), "")


@pytest.mark.parametrize(
    "change",
    [
        {"summary": None},
        {"category": ["billing"]},
        {"urgency": 2},
        {"order_number": 10482},
        {"extra": "field"},
    ],
)
def test_other_fields_and_other_types_are_not_valid(change: dict[str, object]):
    ticket = ticket_of()
    fields = json.loads(answer_for(ticket)) | change
    result = score(json.dumps(fields), ticket)
    assert not result.valid_json
    assert result.fields_right == {label: label not in change for label in LABELS}


@pytest.mark.parametrize("missing", [*LABELS, "summary"])
def test_a_missing_field_is_not_valid_and_not_right(missing: str):
    ticket = ticket_of(order_number=None)
    fields = json.loads(answer_for(ticket))
    del fields[missing]
    result = score(json.dumps(fields), ticket)
    assert not result.valid_json
    assert result.fields_right == {label: label != missing for label in LABELS}


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("category", "refund"),
        ("urgency", "normal"),
        ("product", "lamp"),
        ("order_number", None),
        ("order_number", "A10482"),
    ],
)
def test_a_wrong_value_is_valid_but_wrong(label: str, value: object):
    ticket = ticket_of()
    result = score(json.dumps(json.loads(answer_for(ticket)) | {label: value}), ticket)
    assert result.valid_json
    assert result.fields_right == {each: each != label for each in LABELS}


def test_an_order_number_where_there_is_none_is_wrong():
    ticket = ticket_of(order_number=None)
    fields = json.loads(answer_for(ticket)) | {"order_number": "A-10482"}
    assert not score(json.dumps(fields), ticket).fields_right["order_number"]


def test_prompts_and_answers_keep_to_their_budget_of_tokens():
    from tokenizers import Tokenizer

    file = cache_root() / "models" / "smollm2-135m" / "tokenizer.json"
    if not file.is_file():
        pytest.skip("the built-in model has not been fetched")
    tokenizer = Tokenizer.from_file(str(file))

    def lengths(texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    prompts = lengths(["\n".join(message.content for message in prompt_for(ticket)) for ticket in TICKETS])
    answers = lengths([answer_for(ticket) for ticket in TICKETS])
    assert mean(prompts) < 145
    assert max(prompts) < 260
    assert max(answers) < 60
