"""Files of prompts and their answers, as they come to be judged; and prompts that are yet to be answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luthier.data.formats import to_records
from luthier.data.formats.message_trees import iter_whole_rows
from luthier.data.formats.prompts import asked_of, to_record
from luthier.data.formats.table import as_list, fault
from luthier.data.reading import Row
from luthier.errors import DataError
from luthier.evaluation.judged.blind import Asked, Question, Response, prompt_key
from luthier.types import Answered, Completion, Conversation, Preference, Prompt

Announce = Callable[[str], None]


def questions_in(source: str, announce: Announce, limit: int | None = None) -> list[Question]:
    """The prompts of a file with their answers: rows of `prompt` and `answers`, or of a better and a worse answer.

    An answer is a text, or an object with `text` and `model`; where no model is named it is answer 1, answer 2 and so on.

    Raises: DataError, with line and field, for rows that are neither.
    """
    rows = list(iter_whole_rows(source, announce, limit))
    if any("answers" in row.values for row in rows):
        return [_question(row) for row in rows]
    recognised = to_records(rows, "auto", "preferences")
    return [_preferred(record) for record, _ in recognised.records if isinstance(record, Preference)]


def _question(row: Row) -> Question:
    answers = as_list(row, "answers", row.values.get("answers"), "answers")
    if len(answers) < 2:
        raise fault(row, "answers", f"there are {len(answers)} answers.", "Give two or more, or leave this row out.")
    return Question(_json(to_record(row)), tuple(_response(row, i, each) for i, each in enumerate(answers, start=1)))


def _response(row: Row, number: int, value: Any) -> Response:
    if isinstance(value, str):
        return Response(str(number), value, f"answer {number}")
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        model = value.get("model", f"answer {number}")
        if isinstance(model, str) and model:
            return Response(str(number), value["text"], model)
    mend = 'Write a text, or an object such as {"text": "…", "model": "…"}.'
    raise fault(row, f"answers[{number - 1}]", "this is no answer.", mend)


def _preferred(record: Preference) -> Question:
    prompt = asked_of(record)
    assert prompt is not None, "a preference has a prompt"
    texts = {"chosen": record.chosen, "rejected": record.rejected}
    return Question(_json(prompt), tuple(Response(name, _last(each), name) for name, each in texts.items()))


def _last(answered: Answered) -> str:
    """The answer's text; of a conversation all that the assistant says at its end."""
    if isinstance(answered, Completion):
        return answered.completion
    asked = asked_of(answered)
    num_asked = len(asked.asked.messages) if asked is not None and isinstance(asked.asked, Conversation) else 0
    return "\n\n".join(message.content for message in answered.messages[num_asked:])


def _json(prompt: Prompt) -> Asked:
    return prompt.asked if isinstance(prompt.asked, str) else [each.as_dict() for each in prompt.asked.messages]


def prompts_in(source: str, system: str | None, announce: Announce, limit: int | None = None) -> list[Asked]:
    """The prompts of a file, each once; rows may be of any form that asks something.

    system: an instruction that stands before each.

    Raises: DataError for rows that ask nothing, or that offer tools.
    """
    prompts: dict[str, Asked] = {}
    for record, origin in to_records(list(iter_whole_rows(source, announce, limit)), "auto", "prompts").records:
        assert isinstance(record, Prompt)
        if isinstance(record.asked, Conversation) and record.asked.tools:
            found = "the prompt offers tools, and what calls them return is not here to be judged."
            raise DataError(found, "Leave this row out.", file=origin.file, line=origin.line)
        prompt = _json(record)
        if system is not None:
            before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            prompt = [{"role": "system", "content": system}, *before]
        prompts.setdefault(prompt_key(prompt), prompt)
    return list(prompts.values())
