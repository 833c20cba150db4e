"""A call's runs and keys, cut down to chosen positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.rows import batch_of, random_rows

from luthier.data.packing import collate
from luthier.models.call import (
    Call,
    Draws,
    Run,
    call_of_batch,
    calling,
    current_call,
    prompts_of_batch,
    prompts_of_row,
    prompts_of_rows,
)
from luthier.types import Layout, Segment


def adapter_by_position(call: Call) -> list[str | None]:
    """Each position's adapter."""
    assert all(a.stop == b.start for a, b in zip(call.runs, call.runs[1:], strict=False)), "runs leave no gap"
    assert not call.runs or call.runs[0].start == 0
    return [run.adapter for run in call.runs for _ in range(run.start, run.stop)]


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A call over a few positions, each position its own key."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    runs, at = [], 0
    for length in lengths:
        runs.append(Run(at, at + length, draw(st.sampled_from(["a", "b", None]))))
        at += length
    return Call(None, tuple(runs), torch.arange(at) if draw(st.booleans()) else None)


@given(call=calls(), data=st.data())
def test_chosen_positions_keep_their_adapters_and_keys(call: Call, data: st.DataObject) -> None:
    adapters = adapter_by_position(call)
    chosen = sorted(data.draw(st.lists(st.integers(0, len(adapters) - 1), max_size=8)))
    cut = call.at(torch.tensor(chosen, dtype=torch.int64))
    assert adapter_by_position(cut) == [adapters[i] for i in chosen]
    assert (cut.keys_N is None) == (call.keys_N is None)
    assert cut.keys_N is None or cut.keys_N.tolist() == chosen
    assert cut.segments is None


@given(call=calls(), data=st.data())
def test_a_slice_is_the_positions_between_its_ends(call: Call, data: st.DataObject) -> None:
    adapters = adapter_by_position(call)
    start = data.draw(st.integers(0, len(adapters)))
    stop = data.draw(st.integers(start, len(adapters)))
    cut = call.slice(start, stop)
    assert adapter_by_position(cut) == adapters[start:stop]
    assert cut.keys_N is None or cut.keys_N.tolist() == list(range(start, stop))


def test_chosen_positions_and_slices_draw_at_the_address_of_the_whole() -> None:
    for adapters in ("a", ("a", "b", None)):
        call = call_of_batch(batch_of((3, 2, 4), "packed"), adapters, Draws(1, 2, 3))
        assert call.draws == call.at(torch.tensor([1, 4, 7])).draws == call.slice(2, 6).draws == Draws(1, 2, 3)


def test_neighbouring_documents_of_one_adapter_are_one_run_and_padding_belongs_to_its_row() -> None:
    packed = call_of_batch(batch_of((3, 2, 4), "packed"), ("a", "a", None), None)
    assert packed.runs == (Run(0, 5, "a"), Run(5, 9, None))
    bucketed = call_of_batch(batch_of((3, 2, 4), "bucketed"), ("a", "b", "b"), None)
    assert bucketed.runs == (Run(0, 4, "a"), Run(4, 12, "b"))
    assert bucketed.segments is None
    assert packed.segments is not None


def test_a_token_has_the_same_key_in_both_layouts_and_wherever_it_stands() -> None:
    draws = Draws(1, 2)
    packed = call_of_batch(batch_of((3, 5), "packed"), "a", draws).keys_N
    bucketed = call_of_batch(batch_of((3, 5), "bucketed"), "a", draws).keys_N
    assert packed is not None
    assert bucketed is not None
    assert torch.equal(packed, bucketed[[0, 1, 2, 5, 6, 7, 8, 9]])
    assert packed.unique().numel() == 8


def divide(run: Run) -> float:
    """An error, raised within the call of adapter `a`."""
    assert run.adapter == "a"
    return 1 / run.start


def test_a_call_ends_where_its_with_block_ends_even_by_an_error() -> None:
    outer = current_call()
    with pytest.raises(ZeroDivisionError), calling(Call(None, (Run(0, 1, "a"),))):
        divide(current_call().runs[0])
    assert current_call() is outer


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), layout=st.sampled_from(["packed", "bucketed"]))
def test_a_prompt_is_over_where_its_document_first_learns_to_go_on(lengths: list[int], layout: Layout) -> None:
    rows = random_rows(lengths)
    batch = collate(rows, layout, pad_id=0)
    told = prompts_of_batch(batch).tolist()
    for row, segment in zip(rows, batch.segments, strict=True):
        prompt = min((int(source) + 1 for source in row.source_N), default=row.num_tokens)
        assert told[segment.start : segment.end] == [prompt] * row.num_tokens
        told[segment.start : segment.end] = [0] * row.num_tokens
    assert not any(told)  # padding has no prompt


def test_prompts_that_are_generated_from_are_over_at_their_last_token() -> None:
    segments = (Segment(0, 3), Segment(3, 5, parent=0), Segment(5, 9, parent=0), Segment(9, 10))
    assert prompts_of_row(segments, torch.device("cpu")).tolist() == [3, 3, 3, 5, 5, 7, 7, 7, 7, 1]
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert prompts_of_rows(mask).tolist() == [0, 2, 2, 3, 3, 3]
    assert prompts_of_rows(mask.flip(1)).tolist() == [2, 2, 0, 3, 3, 3]
