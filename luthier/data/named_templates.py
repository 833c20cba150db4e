"""Chat templates that have a name, for models that come without one of their own.

    alpaca   instructions as Stanford Alpaca wrote them, https://github.com/tatsu-lab/stanford_alpaca
    guanaco  "### Human: …### Assistant: …" of openassistant-guanaco (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)
    chatml   <|im_start|>role, a line break, the text, <|im_end|>: OpenAI's, and the most used of open models

Each ends every answer with a token of its own, so that the model learns to stop there: alpaca and guanaco with the
tokenizer's end of text (the published text of guanaco has it after the last answer alone), chatml with <|im_end|>.
"""

from __future__ import annotations

from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from luthier.errors import RecipeError

TemplateName = Literal["alpaca", "guanaco", "chatml"]
TEMPLATE_NAMES: tuple[TemplateName, ...] = get_args(TemplateName)

# The sentence before the first instruction; a system message stands in its place.
_ALONE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_OTHER_ROLES = (
    "{% else %}{{ raise_exception('it writes messages of the system, the user and the assistant, and this one is of the '"
    " + message['role']) }}{% endif %}{% endfor %}"
)

# Rows of Alpaca's form bring the input beside the text that it ends; in a chat it stands under a line "### Input:".
_ALPACA = (
    "{% for message in messages %}{% set text = message['content'] %}{% set input = message['input'] %}"
    "{% if message['role'] == 'system' %}{{ text }}"
    "{% elif message['role'] == 'user' %}"
    r"{% if input and text.endswith('\n\n' + input) %}"
    r"{% set text = text[:text | length - input | length - 2] + '\n\n### Input:\n' + input %}{% endif %}"
    r"{% if loop.first %}{% if '\n\n### Input:\n' in text %}{{ '" + _WITH_INPUT + "' }}{% else %}{{ '" + _ALONE + "' }}"
    r"{% endif %}{% endif %}{{ '\n\n### Instruction:\n' + text }}"
    r"{% elif message['role'] == 'assistant' %}{{ '\n\n### Response:' + text + eos_token }}"
    + _OTHER_ROLES
    + r"{% if add_generation_prompt %}{{ '\n\n### Response:' }}{% endif %}"
)
# An answer's own blanks go, since a model writes the one before its answer itself, and says it again in the next turn.
_GUANACO = (
    "{% for message in messages %}"
    r"{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Human: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Assistant: ' + message['content'] | trim + eos_token }}"
    + _OTHER_ROLES
    + "{% if add_generation_prompt %}{{ '### Assistant:' }}{% endif %}"
)
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}"
    r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SOURCES: dict[TemplateName, str] = {"alpaca": _ALPACA, "guanaco": _GUANACO, "chatml": _CHATML}


def is_name(given: str) -> bool:
    """Whether a template is given by its name."""
    return given in TEMPLATE_NAMES


def named_template(name: str, tokenizer: PreTrainedTokenizerBase, field: str) -> str:
    """The template of that name in Jinja; it begins with BOS where the tokenizer puts one before any text.

    Raises: RecipeError, at the field, if the tokenizer lacks a token that it writes.
    """
    known = next(each for each in TEMPLATE_NAMES if each == name)
    if known == "chatml":
        added = tokenizer.get_added_vocab()
        missing = [token for token in _CHATML_TOKENS if token not in added]
        if missing:
            raise RecipeError(
                f"The template chatml writes {' and '.join(missing)}, which the tokenizer knows as no token, so that the "
                "model would never learn to stop.",
                f"Set data.chat_template to guanaco or alpaca, which need no tokens of their own; or add them: "
                f'model.add_tokens: ["{_CHATML_TOKENS[0]}", "{_CHATML_TOKENS[1]}"].',
                field=field,
            )
    elif tokenizer.eos_token is None:
        raise RecipeError(
            f"The template {name} ends answers with the tokenizer's end-of-text token, and it has none.",
            "Set eos_token in the model's tokenizer_config.json, or give a template that ends answers otherwise.",
            field=field,
        )
    begins = tokenizer("a", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + _SOURCES[known]
