"""Named chat templates write what their papers wrote, teach the answers and their ends, and are what serving feeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from form_rows import records_of
from small_tokenizers import byte_level
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from luthier.data.dataset import load_dataset
from luthier.data.gate import check_gate
from luthier.data.named_templates import TEMPLATE_NAMES
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import DataSettings
from luthier.errors import DataError, NotFound, RecipeError
from luthier.export.ollama import frame_of
from luthier.objectives import SFT
from luthier.types import Conversation, Message, Rendered

ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ROWS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [
        {"instruction": "Say what colour it is.", "input": "The sky.", "output": "Blue."},
        {"instruction": "Say hello.", "input": "", "output": "Hello there!"},
    ],
    "guanaco": [
        {"text": "### Human: What is the sky?### Assistant: It is blue."},
        {"text": "### Human: one### Assistant: two### Human: three### Assistant: four"},
    ],
    "chatml": [
        {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
            ]
        },
    ],
}
WRITTEN: dict[str, list[tuple[str, ...]]] = {
    "alpaca": [
        (WITH_INPUT.format(instruction="Say what colour it is.", input="The sky."), "Blue.</s>"),
        (ALONE.format(instruction="Say hello."), "Hello there!</s>"),
    ],
    "guanaco": [
        ("### Human: What is the sky?### Assistant:", " It is blue.</s>"),
        ("### Human: one### Assistant:", " two</s>", "### Human: three### Assistant:", " four</s>"),
    ],
    "chatml": [
        ("<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n", "Yes.<|im_end|>", "\n"),
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n",
            "two<|im_end|>",
            "\n",
        ),
    ],
}
"""Of each row what is said before an answer, and the answer, in turn."""


def renderer_of(name: str, tokenizer: PreTrainedTokenizerBase, **values: Any) -> Renderer:
    return build_renderer(DataSettings(train="rows.jsonl", chat_template=name, **values), tokenizer)


def records(rows: list[dict[str, Any]]) -> list[Conversation]:
    return [record for record in records_of(*rows) if isinstance(record, Conversation)]


def pieces(rendered: Rendered, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text in pieces that are learned or not, in turn."""
    found: list[tuple[bool, list[int]]] = []
    for token, weight in zip(rendered.tokens_T.tolist(), rendered.weight_T.tolist(), strict=True):
        if not found or found[-1][0] != (weight > 0):
            found.append((weight > 0, []))
        found[-1][1].append(token)
    return tuple(str(tokenizer.decode(ids)) for _, ids in found)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_a_row_is_the_published_text_and_its_answers_alone_are_learned(name: str, adds_bos: bool) -> None:
    tokenizer = byte_level(adds_bos=adds_bos)
    renderer = renderer_of(name, tokenizer)
    lead = "<s>" if adds_bos else ""
    for record, (first, *rest) in zip(records(ROWS[name]), WRITTEN[name], strict=True):
        rendered = renderer.render(record)
        assert pieces(rendered, tokenizer) == (lead + first, *rest)
        # what is said and what is answered are tokens apart, as serving feeds the one and writes the other
        apart = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in (lead + first, *rest)]
        assert rendered.tokens_T.tolist() == [token for ids in apart for token in ids]


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_what_serving_feeds_is_what_stands_before_the_answer(name: str) -> None:
    renderer = renderer_of(name, byte_level(adds_bos=True))
    for record in records(ROWS[name]):
        rendered = renderer.render(record)
        assert renderer.record_prompt(record) == rendered.tokens_T[: int(rendered.weight_T.argmax())].tolist()


@pytest.mark.parametrize("name", ["alpaca", "guanaco"])
def test_a_llama_tokenizer_writes_the_published_text_with_one_bos(name: str, shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "stories260k_llama")
    renderer = renderer_of(name, tokenizer)
    record = records(ROWS[name])[0]
    rendered = renderer.render(record)
    learned = int(rendered.weight_T.argmax())
    asked, answer = WRITTEN[name][0]
    served = renderer.record_prompt(record)
    assert rendered.tokens_T[:learned].tolist() == tokenizer(asked)["input_ids"] == served
    assert str(tokenizer.decode(rendered.tokens_T[learned:])).strip() == answer.strip()


def test_the_end_of_an_answer_is_the_end_of_text_or_chatmls_own() -> None:
    tokenizer = byte_level()
    ends = {name: renderer_of(name, tokenizer).end_of_turn_id for name in TEMPLATE_NAMES}
    eos, closes = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    assert ends == {"alpaca": eos, "guanaco": eos, "chatml": closes}


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_rows_pass_the_gate_on_a_base_without_a_template(name: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
    for settings in ({"chat_template": name}, {}):
        data = DataSettings(train=str(file), validation="none", **settings)
        if settings:
            dataset = load_dataset(data, byte_level(), SFT().example, lambda text: None)
            assert check_gate(dataset).num_learned > 0
        else:
            with pytest.raises(RecipeError, match="no chat template") as refused:
                load_dataset(data, byte_level(), SFT().example, lambda text: None)
            assert "alpaca, guanaco, chatml" in refused.value.mend


def test_an_input_is_told_in_a_chat_by_its_heading_and_a_system_message_stands_in_the_sentences_place() -> None:
    tokenizer = byte_level()
    renderer = renderer_of("alpaca", tokenizer)
    asked = Message("user", "Say what colour it is.\n\n### Input:\nThe sky.")
    assert tokenizer.decode(renderer.prompt_tokens([asked])) == WRITTEN["alpaca"][0][0]
    told = renderer.prompt_tokens([Message("system", "Answer in rhyme."), Message("user", "Say hello.")])
    assert tokenizer.decode(told) == "Answer in rhyme.\n\n### Instruction:\nSay hello.\n\n### Response:"
    later = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    said = tokenizer.decode(renderer.prompt_tokens(later))
    assert said == ALONE.format(instruction="a") + "b</s>\n\n### Instruction:\nc\n\n### Response:"


def test_other_templates_write_an_alpaca_row_as_they_always_did() -> None:
    tokenizer = byte_level()
    (with_input, _) = records(ROWS["alpaca"])
    assert dict(with_input.messages[0].extra) == {"input": "The sky."}
    assert pieces(renderer_of("chatml", tokenizer).render(with_input), tokenizer)[0] == (
        "<|im_start|>user\nSay what colour it is.\n\nThe sky.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ["alpaca", "guanaco"])
def test_calls_of_tools_have_no_place_and_are_refused(name: str) -> None:
    chat = Conversation((Message("user", "q"), Message("tool", "42"), Message("assistant", "It is 42.")))
    with pytest.raises(DataError, match="this one is of the tool"):
        renderer_of(name, byte_level()).render(chat)


def test_a_template_whose_tokens_are_missing_is_refused_with_the_mend() -> None:
    tokenizer = byte_level(eos=None)
    with pytest.raises(RecipeError, match="end-of-text token, and it has none"):
        renderer_of("alpaca", tokenizer)
    tokenizer = byte_level()
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str().replace("<|im_", "<|in_"))
    with pytest.raises(RecipeError, match="which the tokenizer knows as no token") as refused:
        renderer_of("chatml", PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert (refused.value.field, "guanaco" in refused.value.mend) == ("data.chat_template", True)
    with pytest.raises(NotFound) as missing:
        renderer_of("alpacca", tokenizer)
    assert "alpaca, guanaco, chatml" in missing.value.mend


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_ollama_is_given_the_same_texts(name: str) -> None:
    tokenizer = byte_level(adds_bos=True)
    renderer = renderer_of(name, tokenizer)
    assert renderer.chat is not None
    tokenizer.chat_template = renderer.chat.source
    frame = frame_of(tokenizer)
    assert frame is not None
    for opening in ((), (Message("system", "Be brief."),)):
        talk = [*opening, *(Message(("user", "assistant")[turn % 2], f"Word {turn}") for turn in range(5))]
        served = "<s>" + frame.rendered([{"role": each.role, "content": each.content} for each in talk])
        assert tokenizer(served, add_special_tokens=False)["input_ids"] == renderer.prompt_tokens(talk)


def test_an_encoder_reads_the_prompt_with_what_its_tokenizer_puts_around_a_text() -> None:
    tokenizer = byte_level(adds_bos=True)  # <s> … </s>
    settings = DataSettings(train="rows.jsonl", chat_template="alpaca")
    renderer = build_renderer(settings, tokenizer, answer_start=5)
    rendered = renderer.render(records(ROWS["alpaca"])[1])
    assert rendered.source_S is not None
    assert rendered.source_S.tolist() == tokenizer(ALONE.format(instruction="Say hello."))["input_ids"]
    assert rendered.tokens_T.tolist() == [5, *tokenizer("Hello there!")["input_ids"]]
