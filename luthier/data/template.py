"""Chat templates: conversations → text, and where in that text each answer stands.

No `{% generation %}` tag is needed. An answer is what the rendering with it holds beyond the rendering of the messages
before it, generation prompt included; so what comes before an answer is exactly what serving feeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from luthier.data.named_templates import TEMPLATE_NAMES, is_name, named_template
from luthier.errors import DataError, NotFound, RecipeError
from luthier.store.places import expanded
from luthier.types import Conversation, Message

Tools = Sequence[dict[str, Any]]

FIELD = "data.chat_template"
PROBE_QUESTION = "Which colour?"
PROBE_ANSWERS = ("Quartz", "Yellow")  # no common beginning, so two renderings part where the content begins

# transformers lets templates ask for the date: https://huggingface.co/docs/transformers/chat_templating_writing
_TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")

# What the expressions of a template raise on a conversation that they were not made for, beside Jinja's own errors.
EXPRESSION_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True)
class EndOfTurn:
    """The token that ends an answer, its text, and what the template writes after it (a line break, often)."""

    id: int
    text: str
    trailer: str


@dataclass(frozen=True)
class Answer:
    """A message inside a rendering: characters start..end of `text`, which is the conversation up to that message."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, or one given in its place; rendered in the sandbox of transformers.

    source: the template itself; None is the tokenizer's own. day: what it prints where it asks for the date.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str | None
    day: date = field(default_factory=date.today)

    def text(self, messages: Sequence[Message], tools: Tools = (), opens_answer: bool = False) -> str:
        """The conversation as text; with `opens_answer` it ends where the assistant is to begin.

        Raises: DataError without a place, if the template refuses the conversation or fails on it.
        """
        try:
            rendered = self.tokenizer.apply_chat_template(
                [message.as_dict() for message in messages],
                tools=list(tools) or None,
                chat_template=self._dated(tools),
                add_generation_prompt=opens_answer,
                tokenize=False,
            )
        except TemplateSyntaxError as error:
            raise self.syntax_fault(error) from error
        except (TemplateError, *EXPRESSION_ERRORS) as error:
            raise DataError(
                f"The chat template cannot render this conversation: {error}",
                "Mend the row, or set data.chat_template to a template that takes such conversations.",
            ) from error
        return str(rendered)

    @property
    def prints_date(self) -> bool:
        """Whether the template asks for the date, so that it writes another text on another day."""
        return "strftime_now" in str(self.source or self.tokenizer.chat_template)

    def _dated(self, tools: Tools) -> str:
        """The template for conversations with these tools, the day's date in place of each question for it."""
        chosen = str(self.tokenizer.get_chat_template(self.source, tools=list(tools) or None))
        return _TODAY.sub(lambda asked: json.dumps(self.day.strftime(asked["format"])), chosen)

    def syntax_fault(self, error: TemplateSyntaxError, file: str | None = None) -> RecipeError:
        """The error to raise for a template that is not sound Jinja."""
        whose = "The chat template" if self.source is not None else "The model's own chat template"
        return RecipeError(
            f"{whose} is not a sound Jinja template: {error.message}.",
            "Mend the template." if self.source is not None else "Set data.chat_template to a sound one.",
            file=file,
            line=error.lineno,
            field=FIELD,
        )

    def answer(self, messages: Sequence[Message], index: int, tools: Tools = ()) -> Answer:
        """Where the message at `index` stands: from the end of its header to and including its end-of-turn token."""
        text = self.text(messages[: index + 1], tools)
        start = self._start(messages, index, tools, text)
        return Answer(text, start, self._end(text, start))

    def _start(self, messages: Sequence[Message], index: int, tools: Tools, text: str) -> int:
        if messages[index].role == "assistant" and index > 0:
            before = self.text(messages[:index], tools, opens_answer=True)
            if text.startswith(before):
                return len(before)
        # The generation prompt is not how the template writes this message: its header is what two other contents share.
        probes = [Message(messages[index].role, content) for content in PROBE_ANSWERS]
        return len(_common_beginning([text, *(self.text([*messages[:index], probe], tools) for probe in probes)]))

    def _end(self, text: str, start: int) -> int:
        end_of_turn = self.end_of_turn
        if end_of_turn is not None and text.endswith(end_of_turn.text + end_of_turn.trailer):
            return max(start, len(text) - len(end_of_turn.trailer))
        trimmed = text.rstrip()  # another token may end this kind of message, such as a call of a tool
        if any(trimmed.endswith(token) for token in self.tokenizer.get_added_vocab()):
            return max(start, len(trimmed))
        return len(text)

    def left_out(self, conversation: Conversation) -> list[str]:
        """Which of `tools`, `tool_calls` and `reasoning_content` the conversation holds and the rendering does not."""
        messages, tools = conversation.messages, conversation.tools
        text = self.text(messages, tools)
        missing = []
        for key in ("tool_calls", "reasoning_content"):
            plain = [_without(message, key) for message in messages]
            if plain != list(messages) and self._is_same(text, plain, tools):
                missing.append(key)
        if tools and self._is_same(text, messages, ()):
            missing.append("tools")
        return missing

    def _is_same(self, text: str, messages: Sequence[Message], tools: Tools) -> bool:
        try:
            return self.text(messages, tools) == text
        except DataError:  # without it the template refuses the conversation, so it is not left out
            return False

    @cached_property
    def end_of_turn(self) -> EndOfTurn | None:
        """The added token that follows an answer; None if answers end in ordinary text or in nothing.

        Raises: RecipeError, if the template leaves answers out, or cannot render a question and its answer.
        """
        answer = PROBE_ANSWERS[0]
        text = self._probe_text(answer)
        content_start = text.rfind(answer)
        if content_start < 0:
            raise RecipeError(
                "The chat template leaves out what the assistant says, so nothing could be learned.",
                "Set data.chat_template to one that writes the content of messages with the role 'assistant'.",
                field=FIELD,
            )
        content_end = content_start + len(answer)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        added = self.tokenizer.get_added_vocab()
        for token_id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if start < content_end:
                continue
            token = str(self.tokenizer.convert_ids_to_tokens(token_id))
            if token in added:
                return EndOfTurn(token_id, token, text[text.index(token, content_end) + len(token) :])
            if text[start:end].strip():
                return None
        return None

    def _probe_text(self, answer: str) -> str:
        question_and_answer = [Message("user", PROBE_QUESTION), Message("assistant", answer)]
        try:
            return self.text(question_and_answer)
        except DataError as without_system:
            try:
                return self.text([Message("system", "Be brief."), *question_and_answer])
            except DataError:
                raise RecipeError(
                    f"A question and its answer cannot be rendered. {without_system.found}",
                    "Set data.chat_template to a template that can.",
                    field=FIELD,
                ) from without_system

    @cached_property
    def header_left_to_the_model(self) -> str:
        """The answer's header, if the template has one but ignores add_generation_prompt; otherwise empty.

        The model then writes the header itself, and it shows in every answer.
        """
        question = [Message("user", PROBE_QUESTION)]
        closed, opened = self.text(question), self.text(question, opens_answer=True)
        if closed != opened:
            return ""
        renderings = [self.text([*question, Message("assistant", content)]) for content in PROBE_ANSWERS]
        return _common_beginning(renderings)[len(opened) :].strip()


def read_template(
    given: str | None, tokenizer: PreTrainedTokenizerBase, day: date | None = None
) -> ChatTemplate | None:
    """The template that a recipe gives (by name, inline, or as a file's path), else the tokenizer's own; None without either.

    day: the date that it prints where it asks for one (None: today's).
    Raises: NotFound for a path that does not exist, RecipeError for a template that is not sound.
    """
    if given is None and not tokenizer.chat_template:
        return None
    file = None if given is None or _is_inline(given) or is_name(given) else given
    source = given if file is None else _read_file(file)
    if source is not None and is_name(source):
        source = named_template(source, tokenizer, FIELD)
    template = ChatTemplate(tokenizer, source, day or date.today())
    try:
        # Only the syntax is judged here: what a template makes of a conversation is judged row by row.
        tokenizer.apply_chat_template([Message("user", PROBE_QUESTION).as_dict()], chat_template=source, tokenize=False)
    except TemplateSyntaxError as error:
        raise template.syntax_fault(error, file) from error
    except (TemplateError, *EXPRESSION_ERRORS):
        pass
    return template


def _without(message: Message, key: str) -> Message:
    return replace(message, extra=tuple(pair for pair in message.extra if pair[0] != key))


def _common_beginning(texts: Sequence[str]) -> str:
    columns = zip(*texts, strict=False)
    return "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))


def _is_inline(given: str) -> bool:
    return "{{" in given or "{%" in given


def _read_file(name: str) -> str:
    path = expanded(name)
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            "The chat template is not UTF-8 text.", "Save it as UTF-8.", file=name, field=FIELD
        ) from error
    except OSError as error:
        raise NotFound(
            f"data.chat_template is {name!r}, which is neither a Jinja template nor a file that can be read ({error.strerror}).",
            f"Give the template itself (it holds {{{{ … }}}} or {{% … %}}), the path of a file with it, or one of {', '.join(TEMPLATE_NAMES)}.",
            field=FIELD,
        ) from error
    if not _is_inline(source):
        raise RecipeError("This file holds no Jinja expression.", "Give a chat template.", file=name, field=FIELD)
    return source
