"""Whether training asks a model as serving will: the tokens, and in later turns the text, that come before learned answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from luthier.data.marked import is_learned, tokens_of
from luthier.data.rendering import Renderer, learned_messages
from luthier.data.template import ChatTemplate
from luthier.errors import DataError, GateRefusal
from luthier.types import Conversation, Example, Origin, Record

_CHARACTERS_BEFORE, _CHARACTERS_AFTER = 20, 30


def refuse_other_prompts(renderer: Renderer, rows: Iterable[tuple[Record, Example]]) -> None:
    """Compare what comes before each learned answer of these rows with what serving feeds.

    Before the first they must be the same tokens. Before the later ones it must be the same text: its tokens may be others, as
    earlier answers are learned in tokens of their own, and serving reads a history in one go.

    Raises: GateRefusal.
    """
    for record, example in rows:
        try:
            prompt = renderer.record_prompt(record)
            conversation = renderer.as_conversation(record)
            later = None
            if conversation is not None and renderer.chat is not None and renderer.answer_start is None:
                later = _other_later_prompt(renderer.chat, conversation, renderer)
        except DataError as error:
            raise GateRefusal(
                f"Serving could not render this row's prompt. {error.found}",
                error.mend,
                file=example.origin.file,
                line=example.origin.line,
            ) from error
        if prompt and not _is_asked_so(example, prompt):
            trained = tokens_of(example) if example.source_S is None else example.source_S
            raise _refusal(
                "the answer", _token_difference(trained.tolist(), prompt, renderer.tokenizer), example.origin
            )
        if later is not None:
            index, trained_text, served_text = later
            raise _refusal(
                f"the answer in message {index + 1}", _text_difference(trained_text, served_text), example.origin
            )


def _is_asked_so(example: Example, prompt: list[int]) -> bool:
    """Whether an example begins with a prompt's tokens, and the first token after them is learned."""
    tokens = tokens_of(example) if example.source_S is None else example.source_S
    is_same = tokens[: len(prompt)].tolist() == prompt[: len(tokens)]
    if example.source_S is not None:
        is_same = tokens[:-1].tolist() == prompt[: len(tokens) - 1]  # where it is cut, its last token closes it
    return is_same and (len(tokens) <= len(prompt) or bool(is_learned(example)[len(prompt)]))


def _other_later_prompt(
    chat: ChatTemplate, conversation: Conversation, renderer: Renderer
) -> tuple[int, str, str] | None:
    """The first learned answer after another before which training has other text than serving: its place, and both texts.

    None where there is none. An answer that is written otherwise once later messages follow is passed over: that is allowed
    where every token is learned, and such rows were refused elsewhere.
    """
    messages, tools = conversation.messages, conversation.tools
    learned = learned_messages(messages, renderer.learn)
    answers = [index for index in learned if messages[index].role == "assistant"]
    if len(answers) < 2:
        return None
    trained = chat.text(messages if renderer.learn == "all" else messages[: learned[-1] + 1], tools)
    for index in answers[1:]:
        served = chat.text(messages[:index], tools, opens_answer=True)
        if trained.startswith(served):
            continue
        answer = chat.answer(messages, index, tools)
        if trained.startswith(answer.text[: answer.end]):
            return index, trained, served
    return None


def _refusal(what: str, difference: str, origin: Origin) -> GateRefusal:
    return GateRefusal(
        f"In training {what} follows other tokens than in serving: the model would be asked in a way that it was "
        f"not taught. {difference}",
        "Set data.chat_template to one whose generation prompt (add_generation_prompt) is how it begins an answer.",
        file=origin.file,
        line=origin.line,
    )


def _token_difference(trained: list[int], served: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    first = _first_apart(trained, served)
    around = slice(max(0, first - 4), first + 6)
    return f"Training: {tokenizer.decode(trained[around])!r}; serving: {tokenizer.decode(served[around])!r}."


def _text_difference(trained: str, served: str) -> str:
    first = _first_apart(trained, served)
    around = slice(max(0, first - _CHARACTERS_BEFORE), first + _CHARACTERS_AFTER)
    return f"Training: {trained[around]!r}; serving: {served[around]!r}."


def _first_apart(one: Sequence[object], other: Sequence[object]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
