"""Rendering: what is learned is the answers and their ends, and prompts have the tokens that serving feeds."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
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
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import DataSettings
from luthier.data.template import ChatTemplate
from luthier.errors import DataError, NotFound, RecipeError
from luthier.types import Completion, Conversation, Message, Origin, PlainText, Rendered

ENDS = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama-2": (LLAMA_2, "</s>"),
    "llama-3": (LLAMA_3, "<|eot|>"),
    "phi-3": (PHI_3, "<|end|>"),
    "colon": (COLON, "</s>"),
}

words = st.text(alphabet="abchelo Ü漢\n.!<|>", min_size=1, max_size=20).filter(lambda text: "<s>" not in text)


def renderer_of(tokenizer: PreTrainedTokenizerBase, template: str | None = None, **values: Any) -> Renderer:
    return build_renderer(DataSettings(train="rows.jsonl", chat_template=template, **values), tokenizer)


def chat(*contents: str, **learn: bool) -> Conversation:
    """User and assistant in turn; `learn` is given as m0=…, m1=…"""
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], text, learn.get(f"m{i}")) for i, text in enumerate(contents)))


def learned_texts(rendered: Rendered, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each unbroken run of learned tokens."""
    runs: list[list[int]] = []
    was_learned = False
    for token, weight in zip(rendered.tokens_T.tolist(), rendered.weight_T.tolist(), strict=True):
        if weight and not was_learned:
            runs.append([])
        if weight:
            runs[-1].append(token)
        was_learned = bool(weight)
    return [tokenizer.decode(run) for run in runs]


def prompt_part(rendered: Rendered) -> list[int]:
    """The tokens before the first learned one."""
    return rendered.tokens_T[: int(rendered.weight_T.argmax())].tolist()


# ── chats ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENDS)
@settings(max_examples=25, deadline=None)
@given(turns=st.lists(words, min_size=2, max_size=6).map(lambda turns: turns[: len(turns) // 2 * 2]))
def test_learned_are_the_answers_and_their_ends_and_nothing_else(name: str, turns: list[str]) -> None:
    template, end = ENDS[name]
    tokenizer = byte_level(template)
    rendered = renderer_of(tokenizer).render(chat(*turns))
    answers = [f" {answer} {end}" if name == "llama-2" else answer + end for answer in turns[1::2]]
    assert learned_texts(rendered, tokenizer) == answers


@pytest.mark.parametrize("name", ENDS)
@settings(max_examples=25, deadline=None)
@given(turns=st.lists(words, min_size=2, max_size=2))
def test_the_tokens_before_an_answer_are_those_that_serving_feeds(name: str, turns: list[str]) -> None:
    tokenizer = byte_level(ENDS[name][0])
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": turns[0]}], add_generation_prompt=True, return_dict=False
    )
    renderer = renderer_of(tokenizer)
    assert prompt_part(renderer.render(chat(*turns))) == served == renderer.prompt_tokens([Message("user", turns[0])])


@pytest.mark.parametrize("name", ENDS)
def test_the_whole_text_is_that_of_the_template(name: str) -> None:
    tokenizer = byte_level(ENDS[name][0])
    conversation = chat("hello there", "yes", "what is it?", "the sky")
    rendered = renderer_of(tokenizer).render(conversation)
    text = tokenizer.apply_chat_template([m.as_dict() for m in conversation.messages], tokenize=False)
    assert tokenizer.decode(rendered.tokens_T) == text


def test_a_text_that_needs_no_parting_has_the_tokens_of_the_whole() -> None:
    tokenizer = byte_level(CHATML)
    conversation = chat("hello there", "yes", "what is it?", "the sky")
    whole = tokenizer.apply_chat_template([m.as_dict() for m in conversation.messages], return_dict=False)
    assert renderer_of(tokenizer).render(conversation).tokens_T.tolist() == whole


def test_a_token_across_the_border_of_prompt_and_answer_is_parted() -> None:
    tokenizer = byte_level(COLON)
    text = "User: q\nAssistant: the"
    whole = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert any("Ġ" in token and len(token) > 1 for token in tokenizer.convert_ids_to_tokens(whole["input_ids"])[-1:])
    rendered = renderer_of(tokenizer).render(chat("q", "the"))
    assert prompt_part(rendered) == tokenizer("User: q\nAssistant: ", add_special_tokens=False)["input_ids"]
    assert learned_texts(rendered, tokenizer) == ["the</s>"]


def test_a_border_that_changes_how_blanks_are_split_is_parted_too() -> None:
    # GPT-2's rule splits "\n\n" before a word into two tokens, but keeps it whole at the end of a text.
    tokenizer = byte_level(LLAMA_3)
    text = "<|header|>assistant<|end_header|>\n\n"
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer(text + "yes", add_special_tokens=False)["input_ids"][: len(alone)] != alone
    rendered = renderer_of(tokenizer).render(chat("q", "yes"))
    assert prompt_part(rendered)[-len(alone) :] == alone


def test_a_tokenizer_that_adds_a_blank_to_any_text_adds_none_inside_a_row() -> None:
    tokenizer = metaspace(COLON.replace("Assistant: ", "Assistant:"))
    rendered = renderer_of(tokenizer).render(chat("hello", "yes"))
    assert tokenizer.decode(rendered.tokens_T).startswith("User: hello\nAssistant:yes</s>")
    plain = renderer_of(tokenizer, render="plain").render(Completion("the sky is", "blue"))
    assert tokenizer.decode(plain.tokens_T) == "the sky isblue</s>"


def test_only_the_last_answer_is_learned_when_the_recipe_says_so() -> None:
    tokenizer = byte_level(CHATML)
    rendered = renderer_of(tokenizer, learn="last_answer").render(chat("a", "b", "c", "d"))
    assert learned_texts(rendered, tokenizer) == ["d<|im_end|>"]


def test_a_messages_own_weight_goes_before_the_recipes_choice() -> None:
    tokenizer = byte_level(CHATML)
    without_first = chat("a", "b", "c", "d", m1=False)
    assert learned_texts(renderer_of(tokenizer).render(without_first), tokenizer) == ["d<|im_end|>"]
    with_question = chat("a", "b", "c", "d", m2=True)
    learned = learned_texts(renderer_of(tokenizer, learn="last_answer").render(with_question), tokenizer)
    assert learned == ["c<|im_end|>", "d<|im_end|>"]
    assert learned_texts(renderer_of(tokenizer).render(chat("a", "b", m1=False)), tokenizer) == []


def test_all_learns_every_token_but_the_first_and_but_messages_that_say_no() -> None:
    tokenizer = byte_level(CHATML)
    rendered = renderer_of(tokenizer, learn="all").render(chat("a", "b", "c", "d"))
    assert rendered.weight_T.tolist() == [0.0] + [1.0] * (len(rendered.tokens_T) - 1)
    rendered = renderer_of(tokenizer, learn="all").render(chat("a", "b", "c", "d", m1=False))
    unlearned = [t for t, weight in zip(rendered.tokens_T.tolist(), rendered.weight_T, strict=True) if not weight]
    assert tokenizer.decode(unlearned) == "<|im_start|>b<|im_end|>"


def test_what_follows_the_last_learned_answer_is_left_out() -> None:
    tokenizer = byte_level(CHATML)
    renderer = renderer_of(tokenizer)
    assert (
        renderer.render(chat("a", "b", "thanks")).tokens_T.tolist() == renderer.render(chat("a", "b")).tokens_T.tolist()
    )


def test_an_answer_that_opens_the_chat_is_learned_after_its_header() -> None:
    tokenizer = byte_level(CHATML)
    conversation = Conversation((Message("assistant", "Hello"), Message("user", "hi"), Message("assistant", "yes")))
    rendered = renderer_of(tokenizer).render(conversation)
    assert learned_texts(rendered, tokenizer) == ["Hello<|im_end|>", "yes<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_can_teach_the_last_answer_only() -> None:
    tokenizer = byte_level(STRIPS_THINKING)
    conversation = chat("a", "<think>x</think>b", "c", "<think>y</think>d")
    with pytest.raises(DataError, match="last_answer") as refused:
        renderer_of(tokenizer).render(conversation, Origin("rows.jsonl", 7))
    assert (refused.value.file, refused.value.line) == ("rows.jsonl", 7)
    rendered = renderer_of(tokenizer, learn="last_answer").render(conversation)
    assert learned_texts(rendered, tokenizer) == ["<think>y</think>d<|im_end|>"]
    assert "x" not in tokenizer.decode(rendered.tokens_T)
    without_thinking = renderer_of(tokenizer).render(chat("a", "b", "c", "d"))
    assert learned_texts(without_thinking, tokenizer) == ["b<|im_end|>", "d<|im_end|>"]


def test_an_answer_unlike_its_generation_prompt_is_learned_after_its_own_header() -> None:
    tokenizer = byte_level(FORCES_THINKING)
    rendered = renderer_of(tokenizer).render(chat("hello", "yes"))
    assert learned_texts(rendered, tokenizer) == ["yes<|im_end|>"]


def test_a_tool_call_is_learned_with_the_token_that_ends_it() -> None:
    template = (
        "{% for m in messages %}{{ '<|header|>' + m['role'] + '\n' }}{% if m.tool_calls %}"
        "{{ m.tool_calls | tojson }}<|eot|>{% else %}{{ m['content'] }}<|end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if tools %}{{ '' }}{% endif %}{% if add_generation_prompt %}{{ '<|header|>assistant\n' }}{% endif %}"
    )
    tokenizer = byte_level(template)
    call = Message("assistant", "", extra=(("tool_calls", [{"name": "look"}]),))
    conversation = Conversation((Message("user", "q"), call, Message("tool", "42"), Message("assistant", "It is 42.")))
    rendered = renderer_of(tokenizer).render(conversation)
    assert learned_texts(rendered, tokenizer) == ['[{"name": "look"}]<|eot|>', "It is 42.<|end|>"]


def test_tools_reach_the_template_in_training_and_in_serving() -> None:
    tokenizer = byte_level("{% for tool in tools or [] %}{{ tool['name'] }}{% endfor %}" + CHATML)
    renderer = renderer_of(tokenizer)
    conversation = Conversation(chat("q", "a").messages, tools=({"name": "weather"},))
    rendered = renderer.render(conversation)
    assert tokenizer.decode(rendered.tokens_T).startswith("weather<|im_start|>")
    assert prompt_part(rendered) == renderer.prompt_tokens([Message("user", "q")], conversation.tools)


# ── the end of a turn ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_turn_is_the_token_after_an_answer(name: str) -> None:
    template, end = ENDS[name]
    tokenizer = byte_level(template)
    assert renderer_of(tokenizer).end_of_turn_id == tokenizer.convert_tokens_to_ids(end)


def test_there_is_no_end_of_turn_where_the_tokenizer_does_not_know_it() -> None:
    tokenizer = byte_level(CHATML.replace("<|im_end|>", "<|unheard|>"))
    assert renderer_of(tokenizer).end_of_turn_id is None
    assert renderer_of(byte_level(None)).end_of_turn_id is None


def test_a_template_without_answers_is_refused() -> None:
    tokenizer = byte_level(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(RecipeError, match="leaves out what the assistant says") as refused:
        renderer_of(tokenizer).render(chat("a", "b"))
    assert refused.value.field == "data.chat_template"


# ── plain text ──────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(prompt=words, completion=words, adds_bos=st.booleans())
def test_a_plain_row_is_the_prompts_tokens_then_the_completion_then_the_end(
    prompt: str, completion: str, adds_bos: bool
) -> None:
    tokenizer = byte_level(None, adds_bos=adds_bos)
    renderer = renderer_of(tokenizer)
    rendered = renderer.render(Completion(prompt, completion))
    assert prompt_part(rendered) == renderer.plain_prompt_tokens(prompt)
    assert tokenizer.decode(prompt_part(rendered)) == ("<s>" if adds_bos else "") + prompt
    assert learned_texts(rendered, tokenizer) == [completion + "</s>"]


def test_the_first_token_is_never_doubled_nor_is_the_last() -> None:
    tokenizer = byte_level(None, adds_bos=True)
    rendered = renderer_of(tokenizer).render(PlainText("<s>hello</s>"))
    assert tokenizer.decode(rendered.tokens_T) == "<s>hello</s>"


def test_plain_text_is_learned_but_for_its_first_token() -> None:
    for adds_bos, unlearned in ((False, "T"), (True, "<s>")):
        tokenizer = byte_level(None, adds_bos=adds_bos)
        rendered = renderer_of(tokenizer).render(PlainText("The sky"))
        assert rendered.weight_T.tolist() == [0.0] + [1.0] * (len(rendered.tokens_T) - 1)
        assert tokenizer.decode(rendered.tokens_T).endswith("The sky</s>")
        assert tokenizer.decode(rendered.tokens_T[:1]).startswith(unlearned)


def test_a_prompt_and_its_completion_go_through_the_template_where_there_is_one() -> None:
    tokenizer = byte_level(CHATML)
    row = Completion("q", "a")
    as_chat = renderer_of(tokenizer).render(chat("q", "a")).tokens_T.tolist()
    assert renderer_of(tokenizer).render(row).tokens_T.tolist() == as_chat
    assert renderer_of(tokenizer, render="chat").render(row).tokens_T.tolist() == as_chat
    assert tokenizer.decode(renderer_of(tokenizer, render="plain").render(row).tokens_T) == "qa</s>"
    assert tokenizer.decode(renderer_of(byte_level(None)).render(row).tokens_T) == "qa</s>"


def test_plain_text_without_an_end_token_is_refused() -> None:
    with pytest.raises(RecipeError, match="never stop"):
        renderer_of(byte_level(None, eos=None)).render(PlainText("hello"))


def test_the_prompt_of_a_record_is_what_comes_before_its_first_learned_answer() -> None:
    tokenizer = byte_level(CHATML)
    row = chat("a", "b", "c", "d")
    first, last = renderer_of(tokenizer), renderer_of(tokenizer, learn="last_answer")
    assert first.record_prompt(row) == first.prompt_tokens(row.messages[:1])
    assert last.record_prompt(row) == last.prompt_tokens(row.messages[:3])
    assert first.record_prompt(Completion("a", "")) == first.prompt_tokens(row.messages[:1])
    assert first.record_prompt(PlainText("a")) is None


# ── templates and tokenizers that cannot be used ────────────────────────────────────────────────────────────────────


def test_a_template_that_refuses_a_row_says_so_with_its_place() -> None:
    two_questions = Conversation((Message("user", "a"), Message("user", "b"), Message("assistant", "c")))
    with pytest.raises(DataError, match="Roles must alternate") as refused:
        renderer_of(byte_level(LLAMA_2)).render(two_questions, Origin("rows.jsonl", 3))
    assert (refused.value.file, refused.value.line) == ("rows.jsonl", 3)


def test_a_template_that_fails_on_a_row_is_a_fault_of_the_data() -> None:
    with pytest.raises(DataError, match="cannot render this conversation"):
        renderer_of(byte_level("{{ messages[0]['content'] + 1 }}")).render(chat("a", "b"))


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="unsafe"):
        renderer_of(byte_level(escape)).render(chat("a", "b"))


def test_a_recipes_template_replaces_the_models_inline_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(LLAMA_3, encoding="utf-8")
    expected = renderer_of(byte_level(LLAMA_3)).render(chat("a", "b")).tokens_T.tolist()
    for given_template in (LLAMA_3, str(file)):
        renderer = renderer_of(byte_level(CHATML), given_template)
        assert renderer.render(chat("a", "b")).tokens_T.tolist() == expected


DATED = (
    "{% set day = strftime_now('%d %B %Y') if strftime_now is defined else 'never' %}"
    "{{ '<|im_start|>system\n' + day + ', ' + strftime_now( \"%Y\" ) + '<|im_end|>\n' }}"
)


def test_a_template_that_prints_the_date_prints_the_recipes() -> None:
    for template in (DATED + CHATML, None):
        tokenizer = byte_level(CHATML if template else DATED + CHATML)
        renderer = renderer_of(tokenizer, template, today="2031-05-09")
        text = tokenizer.decode(renderer.render(chat("a", "b")).tokens_T)
        assert text.startswith("<|im_start|>system\n09 May 2031, 2031<|im_end|>\n")
        assert tokenizer.decode(renderer.prompt_tokens((Message("user", "a"),))).startswith(text[:40])
        assert renderer.chat is not None
        assert renderer.chat.prints_date
    assert renderer_of(tokenizer).chat.day == date.today()
    undated = renderer_of(byte_level(CHATML)).chat
    assert undated is not None
    assert not undated.prints_date


def test_a_day_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="give a day such as"):
        DataSettings(train="rows.jsonl", today="2031-02-30")


def test_an_unsound_template_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ bos_token }}\n{% for m in messages %}{{ m }}", encoding="utf-8")
    with pytest.raises(RecipeError, match="not a sound Jinja") as refused:
        renderer_of(byte_level(), str(file))
    assert (refused.value.field, refused.value.line, refused.value.file) == ("data.chat_template", 2, str(file))
    with pytest.raises(RecipeError, match="model's own"):
        renderer_of(byte_level("{% nothing %}"))


def test_a_template_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="neither a Jinja template nor a file"):
        renderer_of(byte_level(), str(tmp_path / "missing.jinja"))
    (tmp_path / "empty.jinja").write_text("hello", encoding="utf-8")
    with pytest.raises(RecipeError, match="no Jinja"):
        renderer_of(byte_level(), str(tmp_path / "empty.jinja"))


def test_chats_without_a_template_are_refused() -> None:
    with pytest.raises(RecipeError, match="no chat template") as refused:
        renderer_of(byte_level(None)).render(chat("a", "b"))
    assert refused.value.field == "data.chat_template"


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(RecipeError, match="slow"):
        build_renderer(DataSettings(train="rows.jsonl"), SimpleNamespace(is_fast=False))  # type: ignore[arg-type]


# ── a real tokenizer ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trained_llama_tokenizer_keeps_prompts_and_answers_apart(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "stories260k_llama")
    plain = Renderer(tokenizer, None)
    row = Completion("Once upon a", " time, there was a dog.")
    rendered = plain.render(row)
    assert prompt_part(rendered) == tokenizer("Once upon a")["input_ids"]
    assert tokenizer.decode(rendered.tokens_T) == "<s> Once upon a time, there was a dog.</s>"
    llama_2 = Renderer(tokenizer, ChatTemplate(tokenizer, LLAMA_2))
    conversation = chat("Who was it?", "A dog.", "Why?", "It ran.")
    learned = learned_texts(llama_2.render(conversation), tokenizer)
    assert [text.strip() for text in learned] == ["A dog. </s>", "It ran. </s>"]
    assert prompt_part(llama_2.render(conversation)) == llama_2.prompt_tokens(conversation.messages[:1])
