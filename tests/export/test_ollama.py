"""Chat templates said in Ollama's language give what they gave, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from luthier.errors import RecipeError
from luthier.export.ollama import frame_of, modelfile

LLAMA_3 = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>\n\n' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('by turns') }}{% endif %}"
    "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|system|>Help.<|end|>{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize("template", [None, LLAMA_3, GEMMA, MISTRAL, PHI_3, DEFAULT], ids=range(6))
def test_a_frame_renders_long_conversations_as_the_template_does(
    template: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    if template is not None:
        tokenizer.chat_template = template
    frame = frame_of(tokenizer)
    assert frame is not None
    talk = [{"role": ("user", "assistant")[turn % 2], "content": f"Word {turn}"} for turn in range(7)]
    expected = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert frame.rendered(talk) == expected


def test_the_modelfile_says_the_template_the_end_and_a_system_message_of_the_templates_own(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = DEFAULT
    text = modelfile("model.gguf", tokenizer, [tokenizer.eos_token_id])
    assert text == (
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|system|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "user" }}<|user|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|end|>{{ end }}{{ end }}<|assistant|>"""\n'
        'SYSTEM """Help."""\n'
        'PARAMETER stop """<|im_end|>"""\n'
    )


def test_a_template_without_a_place_for_a_system_message_gets_none(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = GEMMA
    assert "system" not in modelfile("model.gguf", tokenizer, [])


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_model_of_plain_texts_is_given_the_prompt_as_it_is(
    tokenizer: PreTrainedTokenizerBase, is_plain: bool
) -> None:
    if not is_plain:
        tokenizer.chat_template = None
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile("model.gguf", tokenizer, [], is_plain=is_plain)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}{{ loop.index ~ m.role ~ m.content }}{% endfor %}", "more than fixed texts"),
        ("{{ messages[0].content | upper }}", "does not render plain"),
        (MISTRAL.replace("[INST]", "{{ '{{' }}"), "begins a command"),
        (MISTRAL.replace("[INST]", '"""'), "ends a text"),
    ],
)
def test_what_ollama_could_not_say_is_refused(template: str, fault: str, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = template
    with pytest.raises(RecipeError, match=fault):
        modelfile("model.gguf", tokenizer, [])
