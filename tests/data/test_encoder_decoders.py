"""Rows for an encoder-decoder: the prompt is its source, the answer is what is learned; both count, and are padded apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_examples import example_of, row_of
from small_tokenizers import CHATML, byte_level

from luthier.data.dataset import Dataset, load_dataset
from luthier.data.gate import check_gate
from luthier.data.marked import marked_row, marked_text
from luthier.data.packing import collate, plan_micro_batches
from luthier.data.placeholders import with_placeholders
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import DataSettings
from luthier.errors import DataError, GateRefusal, RecipeError
from luthier.types import Completion, Conversation, Example, Message, Origin, PlainText

START = 5
ASKED, ANSWERED = "What is the colour of the sky?", "The sky is blue."


def renderer_of(template: str | None = None, **values: Any) -> Renderer:
    """For a tokenizer that writes <s> … </s>, and a decoder that begins with token 5."""
    return build_renderer(DataSettings(train="rows", **values), byte_level(template, adds_bos=True), answer_start=START)


def dataset_of(folder: Path, rows: list[dict[str, Any]], **values: Any) -> Dataset:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSettings(train=str(file), **{"validation": "none", **values})
    return load_dataset(data, byte_level(adds_bos=True), example_of, lambda text: None, answer_start=START)


def with_source(row: Example, length: int) -> Example:
    """The row as an answer to a source of so many tokens."""
    return Example(**{**vars(row), "source_S": np.arange(length, dtype=np.int64) + 7})


# ── rendering ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_prompt_is_the_source_as_the_tokenizer_writes_it_and_the_whole_answer_is_learned() -> None:
    renderer = renderer_of()
    tokenizer = renderer.tokenizer
    rendered = renderer.render(Completion(ASKED, ANSWERED))
    assert rendered.source_S is not None
    assert rendered.source_S.tolist() == tokenizer(ASKED)["input_ids"] == renderer.plain_prompt_tokens(ASKED)
    assert rendered.tokens_T.tolist() == [START, *tokenizer(ANSWERED)["input_ids"]]
    assert rendered.weight_T.tolist() == [0.0] + [1.0] * (len(rendered.tokens_T) - 1)
    assert rendered.num_tokens == len(rendered.source_S) + len(rendered.tokens_T)
    assert renderer.record_prompt(Completion(ASKED, "")) == rendered.source_S.tolist()


def test_an_answer_that_ends_in_the_end_token_gets_no_second_one_and_an_empty_one_is_the_end_alone() -> None:
    renderer = renderer_of()
    closed = renderer.render(Completion(ASKED, ANSWERED + "</s>"))
    assert closed.tokens_T.tolist() == renderer.render(Completion(ASKED, ANSWERED)).tokens_T.tolist()
    bare = build_renderer(DataSettings(train="rows"), byte_level(), answer_start=1)  # begins with what others end with
    assert bare.render(Completion(ASKED, "")).tokens_T.tolist() == [1, 1]


def test_a_chat_with_a_template_teaches_its_one_answer() -> None:
    renderer = renderer_of(CHATML)
    turns = (Message("user", ASKED), Message("assistant", ANSWERED))
    rendered = renderer.render(Conversation(turns))
    assert rendered.source_S is not None
    assert (
        rendered.source_S.tolist() == renderer.prompt_tokens(turns[:1]) == renderer.record_prompt(Conversation(turns))
    )
    assert rendered.tokens_T.tolist() == [START, *renderer.tokenizer(ANSWERED)["input_ids"]]
    assert renderer.end_of_turn_id is None
    with pytest.raises(DataError, match="2 messages") as caught:
        renderer.render(Conversation(turns * 2), Origin("rows.jsonl", 3))
    assert (caught.value.file, caught.value.line) == ("rows.jsonl", 3)
    last = renderer_of(CHATML, learn="last_answer").render(Conversation(turns * 2))
    assert last.source_S is not None
    assert last.source_S.tolist() == renderer.prompt_tokens((turns * 2)[:3])


def test_what_an_encoder_decoder_cannot_learn_is_refused_with_the_mend() -> None:
    turns = (Message("user", ASKED), Message("assistant", ANSWERED))
    with pytest.raises(RecipeError, match="no chat template"):
        renderer_of().render(Conversation(turns))
    with pytest.raises(DataError, match="plain text"):
        renderer_of().render(PlainText(ANSWERED))
    with pytest.raises(DataError, match="no tokens"):
        build_renderer(DataSettings(train="rows"), byte_level(), answer_start=START).render(Completion("", ANSWERED))
    with pytest.raises(RecipeError, match="cannot learn to write them") as caught:
        renderer_of(learn="all")
    assert caught.value.field == "data.learn"


# ── the gate ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sound_rows_pass_the_gate_and_show_their_source_before_what_is_learned(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [{"prompt": ASKED, "completion": ANSWERED}])
    report = check_gate(dataset, vocab_size=len(dataset.renderer.tokenizer))
    assert report.num_tokens == dataset.train[0].num_tokens
    assert report.num_learned == len(dataset.train[0].parts[0].tokens_T) - 1
    shown = marked_text(marked_row(dataset.train[0], dataset.renderer.tokenizer))
    assert shown.startswith(f"<s>{ASKED}</s>")
    assert shown.endswith(f"⟦<s>{ANSWERED}</s>⟧")


def test_a_doubled_bos_and_a_token_beyond_the_model_are_found_in_sources_too(tmp_path: Path) -> None:
    doubled = dataset_of(tmp_path, [{"prompt": "<s>" + ASKED, "completion": ANSWERED}])
    with pytest.raises(GateRefusal, match="twice"):
        check_gate(doubled)
    rows = dataset_of(tmp_path, [{"prompt": ASKED, "completion": "a"}])
    source_S = rows.train[0].source_S
    assert source_S is not None
    with pytest.raises(GateRefusal, match="vocabulary ends at"):
        check_gate(rows, vocab_size=int(source_S.max()))


def test_rows_that_are_too_long_lose_the_end_of_their_source_before_its_own_end_token(tmp_path: Path) -> None:
    row = {"prompt": ASKED, "completion": ANSWERED}
    whole = dataset_of(tmp_path, [row]).train[0]
    length = whole.num_tokens - 3
    with pytest.raises(GateRefusal, match=f"{whole.num_tokens} tokens"):
        dataset_of(tmp_path, [row], max_length=length)
    dataset = dataset_of(tmp_path, [row], max_length=length, too_long="truncate")
    cut = dataset.train[0]
    assert cut.source_S is not None
    assert whole.source_S is not None
    assert cut.num_tokens == length
    assert cut.source_S.tolist() == [*whole.source_S[:-4].tolist(), int(whole.source_S[-1])]
    assert cut.parts[0].tokens_T.tolist() == whole.parts[0].tokens_T.tolist()
    check_gate(dataset)


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_holds_both_streams_padded_apart_and_paired_by_row() -> None:
    rows = [with_source(row_of(length, i), read) for i, (length, read) in enumerate([(4, 9), (6, 2), (3, 5)])]
    batch = collate(rows, "bucketed", pad_id=3)
    sources = batch.sources
    assert sources is not None
    assert batch.tokens_BT.shape == (3, 6)
    assert sources.tokens_BS.shape == (3, 9)
    assert batch.cost == 3 * 6 + 3 * 9
    assert batch.num_real_tokens == sum(row.num_real_tokens for row in rows) == 13 + 16
    for row, example in enumerate(rows):
        assert example.source_S is not None
        real_S = sources.mask_BS[row]
        assert sources.tokens_BS[row, real_S].tolist() == example.source_S.tolist()
        assert set(sources.tokens_BS[row, ~real_S].tolist()) <= {3}
        start = sources.segments[row].start
        assert sources.tokens_BS.flatten()[start : sources.segments[row].end].tolist() == example.source_S.tolist()
    at = batch.tokens_BT.flatten()[batch.targets.source_N]
    assert (at + 1).tolist() == batch.targets.token_N.tolist()  # the rows count up


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=25),
    workers=st.integers(1, 4),
)
def test_no_micro_batch_costs_more_than_the_budget_both_paddings_included(
    pairs: list[tuple[int, int]], workers: int
) -> None:
    lengths, sources = [sum(pair) for pair in pairs], [source for _, source in pairs]
    plan = plan_micro_batches(lengths, 64, workers, "bucketed", sources)
    assert sorted(row for rows in plan for row in rows) == list(range(len(pairs)))
    for rows in plan:
        answer, source = (max(pairs[row][stream] for row in rows) for stream in (0, 1))
        assert len(rows) * (answer + source) <= 64
    assert len(plan) >= min(len(pairs), workers)


def test_placeholders_stand_before_the_source_and_only_where_asked_before_the_answer() -> None:
    row = with_source(row_of(5, 0), 4)
    prompt = with_placeholders(row, 3)
    assert prompt.source_S is not None
    assert prompt.source_S.tolist() == [0, 0, 0, 7, 8, 9, 10]
    assert prompt.parts[0].tokens_T.tolist() == row.parts[0].tokens_T.tolist()
    assert prompt.source_N.tolist() == row.source_N.tolist()
    assert (prompt.num_virtual, prompt.num_real_tokens) == (3, row.num_real_tokens)
    both = with_placeholders(row, 3, 2)
    assert both.source_S is not None
    assert (both.source_S[:3].tolist(), both.parts[0].tokens_T[:2].tolist()) == ([0, 0, 0], [0, 0])
    assert both.source_N.tolist() == (row.source_N + 2).tolist()
    assert (both.num_virtual, both.num_real_tokens) == (5, row.num_real_tokens)
