"""The clean files: how each is written, which of its fields are read, and which are to be learned."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.planted_faults.forms import JSON_LINES, SENTENCES, Form, Values, document, separated


@dataclass(frozen=True)
class Chat:
    """Where a row's turns lie, and what they are called there."""

    turns: str
    role: str
    text: str
    user: str
    assistant: str
    system: str = "system"


@dataclass(frozen=True)
class Source:
    """A clean file.

    place: its path under the folder of data sets.
    prompts, answers: paths of the fields that are read and of those that are written by the model; of a chat, None.
    label: the path of a field of few values.
    context: other fields that the prompt is made of.
    keys: fields that number the rows, and so differ between copies.
    validation: the file of the same form that it is validated on, and how that one is written.
    """

    place: str
    form: Form
    prompts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    label: str | None = None
    chat: Chat | None = None
    context: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    validation: str | None = None

    def prompt_texts(self, values: Values) -> list[tuple[str, str]]:
        """Path and text of what the model reads."""
        spoken = () if self.chat is None else self._turns(values, self.chat, self.chat.user)
        return [*_texts(values, self.prompts), *spoken]

    def answer_texts(self, values: Values) -> list[tuple[str, str]]:
        """Path and text of what the model is to write."""
        spoken = () if self.chat is None else self._turns(values, self.chat, self.chat.assistant)
        return [*spoken, *_texts(values, self.answers)]

    def texts(self, values: Values) -> list[tuple[str, str]]:
        """Path and text of all that is prose."""
        return self.prompt_texts(values) + self.answer_texts(values)

    def _turns(self, values: Values, chat: Chat, role: str) -> Iterator[tuple[str, str]]:
        for number, turn in enumerate(values[chat.turns]):
            if turn[chat.role] == role and isinstance(turn[chat.text], str):
                yield f"{chat.turns}[{number}].{chat.text}", turn[chat.text]


_SHAREGPT = Chat("conversations", "from", "value", "human", "gpt")
_ROWS = document(1, escaped=False)

BANKING = Source(
    "banking77/train.csv", separated(",", quotes=True), ("text",), label="category", validation="banking77/test.csv"
)
BITEXT = Source(
    "bitext_support/train.csv", separated(",", quotes=True), ("utterance",), label="intent",
    validation="bitext_support/test.csv",
)  # fmt: skip
SICK = Source(
    "sick_nli/train.tsv", separated("\t"), ("sentence_A", "sentence_B"), label="entailment_judgment", keys=("pair_ID",),
    validation="sick_nli/test.tsv",
)  # fmt: skip
AMAZON = Source("uci_sentiment/amazon_cells_labelled.txt", separated("\t", ("text", "label")), ("text",), label="label")
GSM8K = Source("gsm8k/train_1500.jsonl", JSON_LINES, ("question",), ("answer",), validation="gsm8k/test.jsonl")
SCITLDR = Source(
    "scitldr/train_500.jsonl", JSON_LINES, ("source", "title"), ("target",), keys=("paper_id",),
    validation="scitldr/test.jsonl",
)  # fmt: skip
COT = Source("flan_cot/cot_mixture.jsonl", JSON_LINES, ("input",), ("rationale",), label="answer")
LEGAL = Source(
    "legalbench_ccby/tasks.jsonl", JSON_LINES, ("fields.text",), label="answer", context=("question", "fields")
)
C4 = Source("c4_demo/c4_demo.jsonl", JSON_LINES, (), ("text",))
ALPACA = Source("alpaca_demo/alpaca_en_demo.json", _ROWS, ("instruction", "input"), ("output",))
DPO = Source(
    "dpo_kto_demo/dpo_en_demo.json", _ROWS, answers=("chosen.value", "rejected.value"), chat=_SHAREGPT
)  # fmt: skip
KTO = Source(
    "dpo_kto_demo/kto_en_demo.json", _ROWS, label="label", chat=Chat("messages", "role", "content", "user", "assistant")
)
GLAIVE = Source("chat_toolcall/glaive_toolcall_en_demo.json", _ROWS, chat=_SHAREGPT)
REASONING = Source("chat_toolcall/reason_tool_use_demo_50.jsonl", JSON_LINES)
DUMMY = Source("sharegpt_dummy/dummy_conversation.json", document(1, escaped=True), chat=_SHAREGPT, keys=("id",))
XQUAD = Source("xquad_en_zh/xquad.en.json", document(6, escaped=True), ("question",), keys=("id",))
WNUT = Source("wnut17_ner/train.conll", SENTENCES, label="tags", validation="wnut17_ner/dev.conll")

SOURCES = (
    BANKING, BITEXT, SICK, AMAZON, GSM8K, SCITLDR, COT, LEGAL, C4, ALPACA, DPO, KTO, GLAIVE, REASONING, DUMMY, XQUAD, WNUT,
)  # fmt: skip

PROSE = (ALPACA, GSM8K, SCITLDR, COT, C4, DPO, KTO, GLAIVE)
"""Those with texts of several sentences."""

SHORT = (BANKING, BITEXT, SICK, AMAZON, DUMMY, XQUAD)
"""Those whose texts are one sentence or two."""


# ── values by their path, such as answers[0].text ───────────────────────────────────────────────────────────────────


def steps_of(path: str) -> list[str]:
    """The names and numbers of a path, one by one."""
    return [step for step in re.split(r"[.\[\]]+", path) if step]


def value_at(values: Any, path: str) -> Any:
    """What lies there. Raises: KeyError or IndexError where nothing does."""
    for step in steps_of(path):
        values = values[int(step)] if isinstance(values, list) else values[step]
    return values


def with_value(values: Values, path: str, new: Any) -> Values:
    """A copy of the row in which something else lies there."""
    row = copy.deepcopy(values)
    *way, last = steps_of(path)
    holder: Any = row
    for step in way:
        holder = holder[int(step)] if isinstance(holder, list) else holder[step]
    holder[int(last) if isinstance(holder, list) else last] = new
    return row


def _texts(values: Values, paths: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path in paths:
        try:
            found = value_at(values, path)
        except KeyError:  # a field that some rows lack
            continue
        if isinstance(found, str):
            yield path, found
        else:
            yield from ((f"{path}[{number}]", text) for number, text in enumerate(found))
