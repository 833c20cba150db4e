"""Prompt and completion: two columns of text, the second of which is learned.

    {"prompt": "The capital of France is", "completion": " Paris."}

The form of OpenAI's first fine-tuning interface, and of TRL (https://huggingface.co/docs/trl/dataset_formats), which
also allows lists of chat messages in both columns. Other names are taken where one column alone may be the prompt and
one alone the answer, such as prompt/canonical_solution in HumanEval (https://github.com/openai/human-eval). A text with an
answer beside it is one too, unless the text itself ends with the answer.
"""

from __future__ import annotations

from luthier.data.formats.chat import messages_of
from luthier.data.formats.table import Recognition, Table, as_filled_text, fault, one, required
from luthier.data.formats.turns import check_order, tools_of, unlearned
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Completion, Conversation, Gives

NAME: FormatName = "completion"
GIVES: Gives = "text"
COLUMNS = "prompt and completion (or other names that pair in one way only, such as question and answer)"

PROMPTS = ("prompt", "question", "input", "query", "instruction")
ANSWERS = ("completion", "answer", "output", "response", "target", "canonical_solution")


def recognise(table: Table) -> Recognition | None:
    """Rows with prompt and completion, or with exactly one column for each among their other names."""
    prompts, answers = candidates(table)
    if len(prompts) != 1 or len(answers) != 1:
        return None
    prompt, answer = prompts[0], answers[0]
    reads = frozenset({prompt, answer, "tools", "functions"})
    return Recognition(f"{prompt} is followed by {answer}", reads, one(to_record, prompt=prompt, answer=answer))


def candidates(table: Table) -> tuple[list[str], list[str]]:
    """The columns that may be the prompt and those that may be the answer; prompt and completion themselves go first."""
    prompt, completion = table.column("prompt"), table.column("completion")
    if prompt is not None and completion is not None:
        return [prompt], [completion]
    texts = {column for column, kind in table.kinds.items() if kind == "text"}
    prompts = [column for column in table.columns(PROMPTS) if column in texts]
    answers = [column for column in table.columns(ANSWERS) if column in texts]
    text = table.named(("text",))
    if not prompts and text is not None and [column.lower() for column in answers] == ["answer"]:
        holds_answer = [
            str(row.values.get(text)).rstrip().endswith(str(row.values.get(answers[0])).rstrip()) for row in table.first
        ]
        prompts = [] if 2 * sum(holds_answer) >= len(holds_answer) else [text]
    return prompts, answers


def to_record(row: Row, prompt: str = "prompt", answer: str = "completion") -> Completion | Conversation:
    """The row's prompt and what should follow; a conversation where both are lists of messages."""
    asked = required(row, row.values, prompt, prompt)
    answered = required(row, row.values, answer, answer)
    if isinstance(asked, list) != isinstance(answered, list):
        listed, plain = (prompt, answer) if isinstance(asked, list) else (answer, prompt)
        found = f"{listed} is a list of messages and {plain} is not."
        raise fault(row, plain, found, "Write both as text, or both as lists of messages.")
    if isinstance(asked, list):
        return _conversation(row, prompt, answer)
    return Completion(
        as_filled_text(row, prompt, asked, "the prompt"), as_filled_text(row, answer, answered, "the answer")
    )


def _conversation(row: Row, prompt: str, answer: str) -> Conversation:
    """The messages of both columns in one; answers within the prompt are not learned."""
    before = unlearned(messages_of(row, prompt))
    if not before:
        raise fault(row, prompt, "the list of messages is empty.", "Give at least a message of the user.")
    after = messages_of(row, answer)
    check_order(row, answer, after)
    if after[0].role == "system":
        raise fault(row, f"{answer}[0].role", "a system message may only stand first.", f"Move it to {prompt}.")
    for index, message in enumerate(before):
        if index > 0 and message.role == "system":
            found = "a system message may only stand first."
            raise fault(row, f"{prompt}[{index}].role", found, "Move it to the start.")
    return Conversation(before + after, tools_of(row))
