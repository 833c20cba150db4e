"""The gate: what would train a broken model is refused, and rows are shown as they will be learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_examples import example_of
from small_tokenizers import (
    CHATML,
    COLON,
    FORCES_THINKING,
    LLAMA_2,
    LLAMA_3,
    PHI_3,
    STRIPS_THINKING,
    byte_level,
    metaspace,
)
from transformers import PreTrainedTokenizerBase

from luthier.data.dataset import Dataset, load_dataset
from luthier.data.gate import check_gate
from luthier.data.marked import marked_row, marked_text
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import DataSettings
from luthier.errors import GateRefusal, RecipeError
from luthier.types import Completion, Conversation, Example, Message, Origin, Part, PlainText, Record

QUESTION = {"role": "user", "content": "What is the sky?"}
ANSWER = {"role": "assistant", "content": "The sky is blue."}


def chats(*rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"messages": row} for row in rows]


def dataset_of(folder: Path, rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **values: Any) -> Dataset:
    """The rows as a file, loaded; nothing is held out unless a value says so."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given_values = {"validation": "none", **values}
    return load_dataset(DataSettings(train=str(file), **given_values), tokenizer, example_of, lambda text: None)


def dataset_from(renderer: Renderer, records: list[Record]) -> Dataset:
    """The records as a data set, past the readers."""
    examples = tuple(
        example_of(renderer.render(record), i, Origin("rows.jsonl", i + 1)) for i, record in enumerate(records)
    )
    return Dataset(examples, (), tuple(records), (), renderer, "auto", "", (), "")


# ── what passes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, LLAMA_3, PHI_3, STRIPS_THINKING, COLON])
@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("learn", ["answers", "last_answer", "all"])
def test_sound_chats_pass(tmp_path: Path, template: str, make: Any, learn: str) -> None:
    rows = chats([QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION, ANSWER])
    dataset = dataset_of(tmp_path, rows, make(template), learn=learn)
    report = check_gate(dataset, vocab_size=len(dataset.renderer.tokenizer))
    lengths = [example.num_tokens for example in dataset.train]
    assert (report.num_rows, report.num_tokens, report.longest_row) == (2, sum(lengths), max(lengths))
    assert report.mean_row == sum(lengths) / 2
    assert report.num_learned == sum(example.num_learned for example in dataset.train)
    assert report.notes == ()


@pytest.mark.parametrize("adds_bos", [True, False])
def test_sound_plain_rows_pass(tmp_path: Path, adds_bos: bool) -> None:
    tokenizer = byte_level(None, adds_bos=adds_bos)
    for row in ({"prompt": "The sky is", "completion": " blue."}, {"text": "The sky is blue."}):
        report = check_gate(dataset_of(tmp_path, [row] * 5, tokenizer))
        assert (report.num_rows, len(report.rows)) == (5, 3)


def test_the_report_counts_held_out_rows_apart(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(20)]
    report = check_gate(dataset_of(tmp_path, rows, byte_level(CHATML), validation="auto"))
    assert (report.num_rows, report.num_held_out) == (16, 4)


# ── marks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_marked_text_shows_what_is_learned(tmp_path: Path) -> None:
    report = check_gate(dataset_of(tmp_path, chats([QUESTION, ANSWER]), byte_level(CHATML)))
    (row,) = report.rows
    assert marked_text(row) == (
        "<|im_start|>user\nWhat is the sky?<|im_end|>\n<|im_start|>assistant\n⟦The sky is blue.<|im_end|>⟧\n"
    )
    assert (row.origin.line, row.num_learned) == (1, report.num_learned)


@settings(max_examples=30, deadline=None)
@given(prompt=st.text("abc é漢\n", min_size=1, max_size=12), answer=st.text("abc é漢\n", min_size=1, max_size=12))
def test_the_pieces_of_a_marked_row_are_its_text(prompt: str, answer: str) -> None:
    for tokenizer in (byte_level(None), metaspace(None)):
        rendered = Renderer(tokenizer, None).render(Completion(prompt, answer))
        row = marked_row(example_of(rendered, 0, Origin("rows.jsonl", 1)), tokenizer)
        assert "".join(text for text, _ in row.pieces) == tokenizer.decode(rendered.tokens_T)
        assert [learned for _, learned in row.pieces] == [False, True]


def test_answers_that_share_a_prompt_are_marked_from_their_first_token_on() -> None:
    tokenizer = byte_level(None)
    prompt, *answers = (
        np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
        for text in ("q: ", "yes", "no")
    )
    starts = [len(prompt), len(prompt) + len(answers[0])]
    sources = [
        [len(prompt) - 1, *range(start, start + len(tokens) - 1)] for start, tokens in zip(starts, answers, strict=True)
    ]
    example = Example(
        parts=(Part(prompt), Part(answers[0], parent=0), Part(answers[1], parent=0)),
        source_N=np.array(sources[0] + sources[1]),
        token_N=np.concatenate(answers),
        weight_N=np.ones(len(sources[0] + sources[1]), dtype=np.float32),
        sample_N=np.repeat([0, 1], [len(sources[0]), len(sources[1])]),
        document=0,
        origin=Origin("pairs.jsonl", 1),
    )
    assert marked_text(marked_row(example, tokenizer)) == "q: ⟦yesno⟧"


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_row_is_refused(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, chats([QUESTION, ANSWER]), byte_level(CHATML), max_length=8, too_long="drop")
    with pytest.raises(GateRefusal, match="no row to train on") as refused:
        check_gate(dataset)
    assert "max_length" in refused.value.mend


def test_rows_in_which_nothing_is_learned_are_refused_with_their_number_and_first_line() -> None:
    renderer = build_renderer(DataSettings(train="rows.jsonl"), byte_level(CHATML))
    sound = Conversation((Message("user", "a"), Message("assistant", "b")))
    unlearned = Conversation((Message("user", "a"), Message("assistant", "b", learn=False)))
    without_answer = Conversation((Message("user", "a"),))
    with pytest.raises(GateRefusal, match="2 of 3 rows") as refused:
        check_gate(dataset_from(renderer, [sound, unlearned, without_answer]))
    assert (refused.value.file, refused.value.line) == ("rows.jsonl", 2)
    assert "assistant" in refused.value.mend
    assert refused.value.is_of_rows


def test_a_template_without_a_token_that_ends_answers_is_refused(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>", "<|unheard|>")
    with pytest.raises(GateRefusal, match="never learn to stop") as refused:
        check_gate(dataset_of(tmp_path, chats([QUESTION, ANSWER]), byte_level(template)))
    assert "</s>" in refused.value.mend


def test_chats_whose_end_is_always_cut_off_are_refused(tmp_path: Path) -> None:
    rows, tokenizer = chats([QUESTION, ANSWER], [QUESTION, ANSWER]), byte_level(CHATML)
    length = dataset_of(tmp_path, rows, tokenizer).train[0].num_tokens
    for allowed, passes in ((length - 1, True), (length - 2, False)):  # the last token is the line break after the end
        dataset = dataset_of(tmp_path, rows, tokenizer, max_length=allowed, too_long="truncate")
        if passes:
            check_gate(dataset)
            continue
        with pytest.raises(GateRefusal, match=r"end-of-turn token '<\|im_end\|>' is never learned"):
            check_gate(dataset)


def test_plain_rows_whose_end_is_always_cut_off_are_refused(tmp_path: Path) -> None:
    rows, tokenizer = [{"text": "The sky is blue, and so is the sea."}] * 3, byte_level(None)
    length = dataset_of(tmp_path, rows, tokenizer).train[0].num_tokens
    dataset = dataset_of(tmp_path, rows, tokenizer, max_length=length - 1, too_long="truncate")
    with pytest.raises(GateRefusal, match="end-of-text token '</s>' is never learned"):
        check_gate(dataset)


def test_plain_rows_without_an_end_of_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no end-of-text token"):
        dataset_of(tmp_path, [{"text": "The sky is blue."}], byte_level(None, eos=None))


def test_a_template_that_asks_otherwise_in_serving_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GateRefusal, match="other tokens than in serving") as refused:
        check_gate(dataset_of(tmp_path, chats([QUESTION, ANSWER]), byte_level(FORCES_THINKING)))
    assert "think" in refused.value.found
    assert refused.value.line == 1
    assert "generation prompt" in refused.value.mend
    thought = {"role": "assistant", "content": "<think>\nblue\n</think>\nblue"}
    check_gate(dataset_of(tmp_path, chats([QUESTION, thought]), byte_level(FORCES_THINKING)))


SECOND_TURN = FORCES_THINKING.replace("add_generation_prompt %}", "add_generation_prompt and messages|length > 2 %}")
AFTER_TOOLS = FORCES_THINKING.replace(
    "add_generation_prompt %}", "add_generation_prompt and messages[-1]['role'] == 'tool' %}"
)


@pytest.mark.parametrize("learn", ["answers", "all"])
@pytest.mark.parametrize(
    ("template", "asks"), [(SECOND_TURN, QUESTION), (AFTER_TOOLS, {"role": "tool", "content": "blue"})]
)
def test_a_template_that_asks_otherwise_in_a_later_turn_alone_is_refused(
    tmp_path: Path, template: str, asks: dict[str, Any], learn: str
) -> None:
    template = template.replace(
        "{% endif %}", "{% elif add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = [QUESTION, ANSWER, asks, ANSWER]
    check_gate(dataset_of(tmp_path, chats(turns[:2]), byte_level(template), learn=learn))
    with pytest.raises(GateRefusal, match="the answer in message 4 follows other tokens than in serving") as refused:
        check_gate(dataset_of(tmp_path, chats(turns[:2], turns), byte_level(template), learn=learn))
    assert refused.value.line == 2
    assert "think" in refused.value.found
    check_gate(dataset_of(tmp_path, chats(turns), byte_level(CHATML), learn=learn))
    unlearned = [*turns[:3], {**ANSWER, "weight": 0}]
    if learn == "answers":
        check_gate(dataset_of(tmp_path, chats(unlearned), byte_level(template)))


def test_where_all_is_learned_a_template_may_drop_old_thoughts(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "<think>blue</think>It is blue."}
    rows = chats([QUESTION, thought, QUESTION, thought])
    check_gate(dataset_of(tmp_path, rows, byte_level(STRIPS_THINKING), learn="all"))


def test_a_tokenizer_that_lacks_the_models_end_token_or_has_a_word_there_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML)
    rows, size = dataset_of(tmp_path, chats([QUESTION, ANSWER]), tokenizer), len(tokenizer)
    own = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    assert check_gate(rows, size + 8, marks=own).notes == check_gate(rows, size + 8).notes
    with pytest.raises(
        GateRefusal, match=f"eos_token_id is {size}, but the tokenizer's tokens end at {size - 1}"
    ) as refused:
        check_gate(rows, size + 8, marks={"eos_token_id": size})
    assert refused.value.field == "model"
    check_gate(rows, size, marks={"eos_token_id": size + 8})  # a config's default, beyond the model too
    word = next(index for index in range(size) if index not in tokenizer.added_tokens_decoder)
    assert any("an ordinary token" in note for note in check_gate(rows, size, marks={"bos_token_id": word}).notes)
    with pytest.raises(
        GateRefusal, match=f"eos_token_id {word}, which the tokenizer writes as .* another model"
    ) as refused:
        check_gate(rows, size, marks={"eos_token_id": word})
    assert "model.trust_tokenizer" in refused.value.mend
    (note,) = check_gate(rows, size, marks={"eos_token_id": word}, trusts_tokenizer=True).notes
    assert note.endswith("is it the model's own tokenizer?")


def test_a_doubled_first_token_is_refused(tmp_path: Path) -> None:
    doubled = "{{ bos_token }}" + LLAMA_3
    with pytest.raises(GateRefusal, match="'<s>' twice") as refused:
        check_gate(dataset_of(tmp_path, chats([QUESTION, ANSWER]), byte_level(doubled)))
    assert not refused.value.is_of_rows
    assert "data.chat_template" in refused.value.mend
    written = [{"text": "<s><s>The sky is blue."}, {"text": "The sky is blue."}]
    with pytest.raises(GateRefusal, match="1 of 2 rows") as refused:
        check_gate(dataset_of(tmp_path, written, byte_level(None)))
    assert refused.value.is_of_rows
    assert "from the rows" in refused.value.mend


def test_tokens_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(CHATML)
    tokenizer.add_tokens(["<|new|>"])
    size = len(tokenizer)
    row = chats([QUESTION, {"role": "assistant", "content": "The <|new|> sky"}])
    check_gate(dataset_of(tmp_path, row, tokenizer), vocab_size=size)
    with pytest.raises(GateRefusal, match=rf"'<\|new\|>' as token {size - 1}") as refused:
        check_gate(dataset_of(tmp_path, row, tokenizer), vocab_size=size - 1)
    assert refused.value.line == 1
    report = check_gate(dataset_of(tmp_path, chats([QUESTION, ANSWER]), tokenizer), vocab_size=size - 1)
    assert any("no row uses" in note for note in report.notes)


def test_a_template_that_leaves_the_header_to_the_model_is_told(tmp_path: Path) -> None:
    ignores = CHATML.partition("{% if add_generation_prompt %}")[0]
    report = check_gate(dataset_of(tmp_path, chats([QUESTION, ANSWER]), byte_level(ignores)))
    assert any("ignores add_generation_prompt" in note and "assistant" in note for note in report.notes)
    assert "⟦<|im_start|>assistant\nThe sky is blue.<|im_end|>⟧" in marked_text(report.rows[0])


CALL = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
WRITES_CALLS = CHATML.replace("m['content'] +", "m['content'] + (m.tool_calls | tojson if m.tool_calls else '') +")


def calling(**values: Any) -> list[dict[str, Any]]:
    return [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL], **values}]


def test_a_template_that_leaves_out_the_calls_to_be_learned_is_refused(tmp_path: Path) -> None:
    rows = chats([QUESTION, ANSWER], calling())
    with pytest.raises(GateRefusal, match="without the call") as refused:
        check_gate(dataset_of(tmp_path, rows, byte_level(CHATML)))
    assert refused.value.line == 2
    assert check_gate(dataset_of(tmp_path, rows, byte_level(WRITES_CALLS))).notes == ()


def test_what_the_template_leaves_out_of_rows_is_told(tmp_path: Path) -> None:
    unlearned = [*calling(weight=0), {"role": "tool", "content": "blue"}, ANSWER]
    rows = [{"messages": unlearned, "tools": [{"type": "function", "function": {"name": "look"}}]}]
    report = check_gate(dataset_of(tmp_path, rows, byte_level(CHATML)))
    assert [
        name for name in ("tool_calls", "tools") if any(f"leaves out {name} " in note for note in report.notes)
    ] == [
        "tool_calls",
        "tools",
    ]
    says_tools = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + WRITES_CALLS
    assert check_gate(dataset_of(tmp_path, rows, byte_level(says_tools))).notes == ()


def test_plain_text_and_chats_are_each_judged_by_their_own_end() -> None:
    renderer = build_renderer(DataSettings(train="rows.jsonl", render="plain"), byte_level(CHATML))
    chat = Conversation((Message("user", "a"), Message("assistant", "b")))
    check_gate(dataset_from(renderer, [chat, PlainText("hello"), Completion("a", "b")]))
