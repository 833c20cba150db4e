"""Records → tokens, and how much each is learned; also the tokens that serving feeds for the same prompt.

    conversation            the chat template's text; learned are the answers, each with its end-of-turn token
    prompt and completion   a question and its answer through the template, or [BOS] prompt completion EOS
    plain text              [BOS] text EOS, learned as a whole
    texts read as a whole   as the tokenizer writes them (`whole_texts`)
    answers that are judged as any other; of a conversation the last answer is. An encoder reads what was asked and the
                            answer as a pair of texts

For an encoder-decoder the prompt is the source, as the tokenizer writes a text with all that it puts around one, and the
answer is what the decoder learns: its first token, then the text and EOS, of which all but the first is learned.

The text is tokenized in one go. Where that would give an answer's prompt other tokens than it has on its own, the text is
tokenized in pieces that meet there: in training the model sees what serving will feed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from luthier.data.named_templates import TEMPLATE_NAMES
from luthier.data.settings import DataSettings
from luthier.data.split import text_key
from luthier.data.template import FIELD, ChatTemplate, Tools, read_template
from luthier.data.whole_texts import Whole, WholeTexts, even_cuts
from luthier.errors import DataError, RecipeError
from luthier.types import (
    Answered,
    Completion,
    Conversation,
    Message,
    Origin,
    Piece,
    PlainText,
    Pooled,
    Preference,
    Prompt,
    Ranking,
    Record,
    Rendered,
    TextsAs,
    Verdict,
    Weighed,
)

Learn = Literal["answers", "last_answer", "all"]


@dataclass(frozen=True)
class Encoded:
    """Text as tokens; token t covers the characters starts[t]..ends[t]."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


@dataclass(frozen=True)
class Renderer:
    """Turns records into tokens for one tokenizer and one template.

    chat: the chat template, or None where there is none. learn: what of a conversation is learned, unless a message says
    otherwise. completions_as: how prompt/completion rows are written; "auto" uses the template where there is one.
    pooled: which token of a text the model's head over classes reads.
    answer_start: the token that an encoder-decoder's decoder begins with; None for models of one stream.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: ChatTemplate | None
    learn: Learn = "answers"
    completions_as: Literal["auto", "chat", "plain"] = "auto"
    pooled: Pooled = "last"
    answer_start: int | None = None

    def render(self, record: Record, origin: Origin | None = None) -> Rendered:
        """The record's tokens and weights. The first token of a row is never learned: nothing comes before it.

        A conversation ends after its last learned message, since what follows that teaches nothing.
        Raises: DataError, at `origin`, for a conversation that the template refuses or rewrites; RecipeError where the
        tokenizer or the template lacks what the record needs.
        """
        if isinstance(record, Preference):
            chosen, rejected = (self.render_judged(each, origin) for each in (record.chosen, record.rejected))
            shares = record.probability, 1 - record.probability
            worse = replace(rejected, place=int(shares[0] != shares[1]), share=shares[1])
            return replace(chosen, beside=(worse,), share=shares[0], score=record.margin)
        if isinstance(record, Ranking):
            best = record.places.count(0)
            first, *others = (
                replace(self.render_judged(answer, origin), place=place, share=(place == 0) / best)
                for answer, place in zip(record.answers, record.places, strict=True)
            )
            return replace(first, beside=tuple(others))
        if isinstance(record, Prompt):
            with _located(origin):
                tokens = self.asking_tokens(record)
            return _rendered(tokens, np.zeros(len(tokens), dtype=np.float32))
        if isinstance(record, Verdict):
            return replace(self.render_judged(record.answered, origin), score=float(record.is_good))
        return _weighed(self._render_one(record, origin), record)

    def _render_one(self, record: Weighed | Whole, origin: Origin | None) -> Rendered:
        """A record of one text, or of several that are read apart, before its row's weight."""
        with _located(origin):
            if self.answer_start is not None:
                return self._render_answer(record, self.answer_start)
            conversation = self.as_conversation(record)
            if conversation is not None:
                return self._render_chat(conversation)
        if isinstance(record, Completion):
            return self._render_plain(record.prompt, record.completion)
        if isinstance(record, Whole):
            return self.render_whole(record, origin)
        assert isinstance(record, PlainText)
        return self._render_plain("", record.text)

    def render_judged(self, answered: Answered, origin: Origin | None = None) -> Rendered:
        """An answer that is judged, behind what was asked. Raises: as render."""
        if self.pooled == "last":
            return self._judging.render(answered, origin)
        with _located(origin):
            return self._whole.text(*self._as_pair(answered))

    def _as_pair(self, answered: Answered) -> tuple[str, str]:
        """What was asked and the answer, as two texts. Turns are written by the chat template, or without one after their roles."""
        if isinstance(answered, Completion):
            return answered.prompt, answered.completion
        *before, answer = answered.messages
        if self.chat is not None:
            return self.chat.text(before, answered.tools), answer.content
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in before), answer.content

    @cached_property
    def _judging(self) -> Renderer:
        """The same for answers that are judged: of a conversation the last one alone."""
        return replace(self, learn="last_answer")

    def pieces(
        self, record: Record, texts: TextsAs, longest: int | None, origin: Origin | None = None
    ) -> Iterator[tuple[Record, Rendered]]:
        """The record rendered; a plain text in pieces of at most `longest` tokens, each a text of its own, where that is given.

        texts: how a plain text becomes tokens. Raises: as render; DataError, at `origin`, for a record that is no plain text
        where only those can be read.
        """
        if isinstance(record, PlainText) and (texts != "written" or longest is not None):
            yield from self._text_pieces(record, texts, longest or 2**62, origin)
        elif texts == "written" or isinstance(record, Whole):
            yield record, self.render(record, origin)
        else:
            with _located(origin):
                raise DataError(
                    "The row is no plain text, which the objective learns from.",
                    'Write it as {"text": "…"}, or set data.template: {text: "…"} to make it one.',
                )

    def _text_pieces(
        self, record: PlainText, texts: TextsAs, longest: int, origin: Origin | None
    ) -> Iterator[tuple[Record, Rendered]]:
        if texts == "read":
            with _located(origin):
                for part, rendered in self._whole.pieces(record.text, longest):
                    yield part, _weighed(rendered, record)
            return
        encoded = self._encode(record.text)
        lead = self._lead if texts == "written" else []
        end = [self.end_of_text_id] if texts == "written" else []
        cuts = even_cuts(len(encoded.ids), max(1, longest - len(lead) - len(end)))
        whole_T = np.array([*encoded.ids, *end], dtype=np.int64)
        whole = text_key(record.text) if len(cuts) > 1 else ""
        for index, (start, stop) in enumerate(cuts):
            is_last = stop == len(encoded.ids)
            ids = [*lead, *encoded.ids[start:stop], *(end if is_last else [])]
            weight_T = np.full(len(ids), float(texts == "written"), dtype=np.float32)
            piece = Piece(whole_T, len(lead), index, len(cuts)) if len(cuts) > 1 else None
            text = record.text[encoded.starts[start] : encoded.ends[stop - 1]]
            rendered = replace(_rendered(ids, weight_T), piece=piece)
            yield PlainText(text, record.weight, whole), _weighed(rendered, record)

    def writes_as_chat(self, kind: type[Record]) -> bool:
        """Whether records of a class go through the chat template."""
        is_chat = self.completions_as == "chat" or (self.completions_as == "auto" and self.chat is not None)
        return kind is Conversation or (kind is Completion and is_chat)

    def as_conversation(self, record: Record) -> Conversation | None:
        """The record as it goes through the chat template; None if it is written plainly."""
        if isinstance(record, Conversation):
            return record
        if isinstance(record, Completion) and self.writes_as_chat(Completion):
            return Conversation((Message("user", record.prompt), Message("assistant", record.completion)))
        return None

    # ── what serving feeds ──────────────────────────────────────────────────────────────────────────────────────────

    def prompt_tokens(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """The tokens that serving feeds before the assistant's answer to these messages.

        For an encoder-decoder, with what its tokenizer puts around a text, as far as the template does not write it.
        """
        ids = self._encode(self._template().text(messages, tools, opens_answer=True)).ids
        if self.answer_start is None:
            return ids
        end = self._trail
        return self._with_lead(ids if ids[len(ids) - len(end) :] == end else [*ids, *end])

    def asking_tokens(self, record: Prompt) -> list[int]:
        """The tokens that serving feeds for a prompt. Raises: as render, without a place."""
        if isinstance(record.asked, Conversation):
            return self.prompt_tokens(record.asked.messages, record.asked.tools)
        if self.writes_as_chat(Completion):
            return self.prompt_tokens((Message("user", record.asked),))
        return self.plain_prompt_tokens(record.asked)

    def plain_prompt_tokens(self, prompt: str) -> list[int]:
        """The tokens that serving feeds for a prompt without chat: as the tokenizer writes it, without a final EOS.

        For an encoder-decoder, as the tokenizer writes it.
        """
        if self.answer_start is not None:
            return list(self.tokenizer(prompt, verbose=False)["input_ids"])
        return self._with_lead(self._encode(prompt).ids)

    def record_prompt(self, record: Record) -> list[int] | None:
        """What serving feeds before the record's first learned answer; None where nothing comes before it.

        Raises: as render, without a place.
        """
        conversation = self.as_conversation(record)
        if conversation is not None and self.answer_start is not None:
            before, _ = self._last_answer(conversation)
            return self.prompt_tokens(before, conversation.tools)
        if conversation is not None:
            messages = conversation.messages
            answers = (i for i in learned_messages(messages, self.learn) if messages[i].role == "assistant")
            first = next(answers, 0)
            return self.prompt_tokens(messages[:first], conversation.tools) if first else None
        return self.plain_prompt_tokens(record.prompt) if isinstance(record, Completion) else None

    @property
    def end_of_turn_id(self) -> int | None:
        """The token that ends an answer in a chat; None without a template, or if no single token ends answers.

        None for an encoder-decoder too, whose answers end as plain text does.
        """
        end_of_turn = None if self.chat is None or self.answer_start is not None else self.chat.end_of_turn
        return None if end_of_turn is None else end_of_turn.id

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer beside the model's own."""
        return frozenset() if self.end_of_turn_id is None else frozenset([self.end_of_turn_id])

    @property
    def end_of_text_id(self) -> int:
        """The token that ends plain text. Raises: RecipeError, if the tokenizer has none."""
        eos = self.tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise RecipeError(
                "The tokenizer has no end-of-text token, so a model trained on plain text would never stop.",
                "Set eos_token in the model's tokenizer_config.json, or train on chats with a template that ends answers.",
                field="model",
            )
        return eos

    # ── chats ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _template(self) -> ChatTemplate:
        if self.chat is None:
            raise RecipeError(
                "A chat has to be written, but the model has no chat template.",
                f"Set data.chat_template to one of {', '.join(TEMPLATE_NAMES)}, or to a Jinja template or the path of one; or "
                "train on prompt/completion rows.",
                field=FIELD,
            )
        return self.chat

    def _render_chat(self, conversation: Conversation) -> Rendered:
        template = self._template()
        messages, tools = conversation.messages, conversation.tools
        learned = learned_messages(messages, self.learn)
        refused = [i for i, message in enumerate(messages) if message.learn is False]
        # With "all" the answers' places are not needed for the weights, only for their prompts' tokens.
        placed = sorted({*learned, *refused}) if self.learn == "all" else learned
        answers = {i: template.answer(messages, i, tools) for i in placed}
        text = template.text(messages, tools) if self.learn == "all" or not placed else answers[placed[-1]].text
        kept = [i for i in placed if text.startswith(answers[i].text[: answers[i].end])]
        if len(kept) < len(placed) and not (self.learn == "all" and set(refused) <= set(kept)):
            raise DataError(
                "The chat template writes an earlier message otherwise once later ones follow (it drops old thinking, "
                "perhaps), so not all answers of this row can be learned from one rendering.",
                "Set data.learn: last_answer.",
            )
        ids, bounds = self._encode_with_bounds(text, [(answers[i].start, answers[i].end) for i in kept])
        weight_T = np.full(len(ids), float(self.learn == "all"), dtype=np.float32)
        for i, (first, last) in zip(kept, bounds, strict=True):
            weight_T[first:last] = messages[i].weight if i in learned else 0.0
        return _rendered(ids, weight_T)

    # ── plain text ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _render_plain(self, prompt: str, text: str) -> Rendered:
        before = self.plain_prompt_tokens(prompt) if prompt else []
        after = self._encode(text, continues=bool(prompt)).ids
        if not prompt:
            after = self._with_lead(after)
        if after[-1:] != [self.end_of_text_id]:
            after = [*after, self.end_of_text_id]
        weight_T = np.zeros(len(before) + len(after), dtype=np.float32)
        weight_T[0 if self.learn == "all" else len(before) :] = 1.0
        return _rendered(before + after, weight_T)

    # ── sources and answers ─────────────────────────────────────────────────────────────────────────────────────────

    def _render_answer(self, record: Record, start: int) -> Rendered:
        """A row for an encoder-decoder."""
        if isinstance(record, PlainText):
            raise DataError(
                "The row is plain text, but an encoder-decoder learns to answer a source.",
                "Give rows with a prompt and a completion.",
            )
        conversation = self.as_conversation(record)
        if conversation is not None:
            before, answer = self._last_answer(conversation)
            source = self.prompt_tokens(before, conversation.tools)
        else:
            assert isinstance(record, Completion)
            source, answer = self.plain_prompt_tokens(record.prompt), Message("assistant", record.completion)
        if not source:
            raise DataError("The row's prompt has no tokens, so the encoder would read nothing.", "Fill it in.")
        tokens = [start, *self._with_lead(self._encode(answer.content).ids)]
        if tokens[-1] != self.end_of_text_id or len(tokens) == 1:
            tokens.append(self.end_of_text_id)
        rendered = _rendered(tokens, np.full(len(tokens), answer.weight, dtype=np.float32))
        return replace(rendered, source_S=np.array(source, dtype=np.int64))

    def _last_answer(self, conversation: Conversation) -> tuple[Sequence[Message], Message]:
        """The one answer that a chat teaches an encoder-decoder, and the messages before it. Raises: DataError."""
        messages = conversation.messages
        learned = learned_messages(messages, self.learn)
        if len(learned) != 1 or learned[0] == 0:
            raise DataError(
                f"An encoder-decoder learns one answer a row, and {len(learned)} messages of this chat are to be learned.",
                "Set data.learn: last_answer, and let a question come before the answer.",
            )
        return messages[: learned[0]], messages[learned[0]]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before a text and after it of its own accord."""
        whole, inner = list(self.tokenizer("a", verbose=False)["input_ids"]), self._encode("a").ids
        starts = range(len(whole) - len(inner) + 1)
        start = next((s for s in starts if whole[s : s + len(inner)] == inner), 0)
        return whole[:start], whole[start + len(inner) :]

    @property
    def _lead(self) -> list[int]:
        """What the tokenizer puts before a text: BOS, or nothing."""
        return self._around[0]

    @property
    def _trail(self) -> list[int]:
        """What the tokenizer puts after a text: EOS, or nothing."""
        return self._around[1]

    def _with_lead(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self._lead)] == self._lead else [*self._lead, *ids]

    # ── whole texts ─────────────────────────────────────────────────────────────────────────────────────────────────

    def render_whole(self, record: Whole, origin: Origin | None = None) -> Rendered:
        """A record whose texts are read as a whole. Raises: DataError, at `origin`, for a text without tokens."""
        with _located(origin):
            return self._whole.render(record)

    @cached_property
    def _whole(self) -> WholeTexts:
        return WholeTexts(self.tokenizer, self.pooled)

    # ── text → tokens ───────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_vocab().values())

    @cached_property
    def _anchor(self) -> tuple[str, list[int]] | None:
        """Text to put before a piece that continues other text, where the tokenizer would add a space to its beginning."""
        anchor = "\n"
        ids = self._encode(anchor).ids
        return None if self._encode("a").ids == self._encode(anchor + "a").ids[len(ids) :] else (anchor, ids)

    def _encode(self, text: str, continues: bool = False) -> Encoded:
        """The text's tokens without special ones around; `continues`: other text comes right before it."""
        if continues and text and self._anchor is not None:
            anchor, ids = self._anchor
            encoded = self._encode(anchor + text)
            if encoded.ids[: len(ids)] == ids:
                kept = slice(len(ids), None)
                starts, ends = (
                    [max(0, at - len(anchor)) for at in all_at[kept]] for all_at in (encoded.starts, encoded.ends)
                )
                return Encoded(encoded.ids[kept], starts, ends)
        output = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = output["offset_mapping"]
        return Encoded(list(output["input_ids"]), [start for start, _ in offsets], [end for _, end in offsets])

    def _encode_with_bounds(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The text's tokens, and for each span of characters (in order, apart) its first token and the one after it."""
        done: list[int] = []
        base, current = 0, self._encode(text)
        bounds: list[int] = []
        for cut in (at for span in spans for at in span):
            num_before, left = self._tokens_before(text, cut, base, current)
            if left is not None:
                done += left
                base, current = cut, self._encode(text[cut:], continues=True)
                num_before = 0
            bounds.append(len(done) + num_before)
        return done + current.ids, list(zip(bounds[::2], bounds[1::2], strict=True))

    def _tokens_before(self, text: str, cut: int, base: int, current: Encoded) -> tuple[int, list[int] | None]:
        """How many tokens of `current` (which encodes text[base:]) come before `cut`.

        Where text[base:cut] on its own has other tokens, these come second, and the text must be parted at the cut.
        """
        assert base <= cut <= len(text), "spans must come in order"
        if cut == base or cut == len(text):
            return (0, None) if cut == base else (len(current.ids), None)
        # Text on both sides of an added token is tokenized apart, so only what follows the last one can differ. Such a
        # token may also swallow the blanks after it, even those that belong to an answer.
        near = bisect_left(current.starts, cut - base)
        if near > 0 and current.ids[near - 1] in self._added_ids and current.ends[near - 1] >= cut - base:
            return near, None
        at = next((t for t in range(near - 1, -1, -1) if current.ids[t] in self._added_ids), 0)
        piece_start = base + current.starts[at] if at else base
        left = self._encode(text[piece_start:cut], continues=base > 0 and at == 0)
        num_before = at + len(left.ids)
        agrees = current.ids[at:num_before] == left.ids
        if agrees and left.ids:
            agrees = base + current.ends[num_before - 1] == piece_start + left.ends[-1]
        return num_before, None if agrees else current.ids[:at] + left.ids


def build_renderer(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    pooled: Pooled = "last",
    answer_start: int | None = None,
) -> Renderer:
    """The renderer that a recipe asks for; pooled, answer_start: as `Renderer` has them.

    Raises: RecipeError for a tokenizer or a template that cannot be used, NotFound for a template's path.
    """
    if not tokenizer.is_fast:
        raise RecipeError(
            f"The model's tokenizer ({type(tokenizer).__name__}) is a slow one, which cannot tell which characters a token covers.",
            "Use a model that has a tokenizer.json.",
            field="model",
        )
    if answer_start is not None and settings.learn == "all":
        raise RecipeError(
            "An encoder-decoder reads the prompts and cannot learn to write them.",
            "Set data.learn to answers or last_answer.",
            field="data.learn",
        )
    template = read_template(settings.chat_template, tokenizer, settings.day)
    return Renderer(tokenizer, template, settings.learn, settings.render, pooled, answer_start)


def learned_messages(messages: Sequence[Message], learn: Learn) -> list[int]:
    """Which messages are learned: those that say so, and of those that say nothing, the answers that the recipe chooses."""
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    chosen = set(answers[-1:] if learn == "last_answer" else answers)
    return [i for i, message in enumerate(messages) if (i in chosen if message.learn is None else message.learn)]


def _rendered(ids: list[int], weight_T: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Rendered:
    weight_T[:1] = 0.0
    return Rendered(np.array(ids, dtype=np.int64), weight_T)


def _weighed(rendered: Rendered, record: Record) -> Rendered:
    """What a record became, with its row's weight."""
    if not isinstance(record, Weighed) or record.weight == 1:
        return rendered
    return replace(rendered, weight_T=rendered.weight_T * np.float32(record.weight), row_weight=record.weight)


@contextmanager
def _located(origin: Origin | None) -> Iterator[None]:
    """Within: a DataError that does not know its place gets the row's."""
    try:
        yield
    except DataError as error:
        if origin is None or error.file is not None:
            raise
        raise DataError(error.found, error.mend, file=origin.file, line=origin.line, field=error.field) from error
