"""A Modelfile for Ollama: the GGUF file, the chat template in Go's language, and where an answer ends.

Ollama does not run Jinja templates. Most chat templates put a fixed text before and after each message, by its role; what
these texts are is read off renderings of the model's own template, written down in Go's language, and accepted only if
they then give what the template gives, letter by letter, for conversations of several shapes.
https://docs.ollama.com/modelfile
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from luthier.errors import RecipeError

_ASKED, _ANSWERED, _TOLD = "\x02asked\x03", "\x02answered\x03", "\x02told\x03"
_WORDS = ("Where is it?", "On its way.", "And now?", "Here.")


@dataclass(frozen=True)
class Frame:
    """What stands before and after each message.

    start: before all. system: None where the template has no place for one. default: the system message that the template
    itself puts first where there is none. ask: what asks for the answer.
    """

    start: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str] | None
    default: str | None
    ask: str

    def rendered(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation that awaits an answer, as Ollama renders the frame."""
        if self.default is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default}, *messages]
        around = {"user": self.user, "assistant": self.assistant, "system": self.system or ("", "")}
        parts = [message["content"].join(around[message["role"]]) for message in messages]
        return self.start + "".join(parts) + self.ask

    def template(self) -> str:
        """It in Go's language."""
        roles = [("system", self.system), ("user", self.user), ("assistant", self.assistant)]
        told = [(role, around) for role, around in roles if around is not None]
        branches = "".join(
            f'{{{{ {"if" if index == 0 else "else if"} eq .Role "{role}" }}}}{around[0]}{{{{ .Content }}}}{around[1]}'
            for index, (role, around) in enumerate(told)
        )
        return f"{self.start}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{self.ask}"


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame | None:
    """The frame of a model's chat template; None if it has no template.

    Raises RecipeError for a template that puts more than fixed texts around messages.
    """
    if tokenizer.chat_template is None:
        return None
    bos = tokenizer.bos_token if isinstance(tokenizer.bos_token, str) else ""
    adds_bos = bos and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]

    def render(*messages: tuple[str, str], ask: bool = True) -> str:
        told = [{"role": role, "content": content} for role, content in messages]
        text = str(tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=ask))
        return text.removeprefix(bos) if adds_bos else text  # llama.cpp puts it there by itself

    try:
        frame = _read_off(render)
        is_right = all(
            frame.rendered([{"role": role, "content": content} for role, content in talk]) == render(*talk)
            for talk in _talks(frame.system is not None)
        )
    except (TemplateError, ValueError) as error:
        raise _beyond(f"it does not render plain conversations ({error})") from error
    if "{{" in frame.start + "".join("".join(each or ()) for each in (frame.user, frame.assistant, frame.system)):
        raise _beyond("it holds {{, which begins a command there")
    if not is_right:
        raise _beyond("it puts more than fixed texts around the messages")
    return frame


def _read_off(render: Any) -> Frame:
    """The fixed texts, found between and around marked messages. Raises ValueError where marks are missing."""
    bare, asking = render(("user", _ASKED), ask=False), render(("user", _ASKED))
    before, after_user = bare.split(_ASKED)
    try:
        between = render(("user", _ASKED), ("user", _ASKED)).split(_ASKED)[1]
    except TemplateError:  # it wants questions and answers by turns
        between = None
    if not asking.startswith(bare) and between is not None:  # it ends what awaits no answer in a way of its own
        after_user = between.removesuffix(before)
    own = None if between is None else between.removeprefix(after_user)
    ask = asking.split(_ASKED)[1].removeprefix(after_user)
    middle = render(("user", _ASKED), ("assistant", _ANSWERED), ("user", _ASKED)).split(_ASKED)[1]
    assistant_before, assistant_rest = middle.removeprefix(after_user).split(_ANSWERED)
    try:
        system_before, system_rest = render(("system", _TOLD), ("user", _ASKED)).split(_ASKED)[0].split(_TOLD)
        system = (system_before, system_rest)
    except (TemplateError, ValueError):
        system = None
    if own is None:
        own = _common_end(before, assistant_rest)
        own = own if system is None else _common_end(own, system[1])
    return _parted(before, (own, after_user), (assistant_before, assistant_rest), system, ask)


def _parted(
    before: str, user: tuple[str, str], answered: tuple[str, str], system: tuple[str, str] | None, ask: str
) -> Frame:
    """The frame, from what stands before the first question, between an answer and a question, and around a system message."""
    user_before, (assistant_before, assistant_rest) = user[0], answered
    assistant = (assistant_before, assistant_rest.removesuffix(user_before))
    first = before.removesuffix(user_before)
    if system is None:
        return Frame(first, user, assistant, None, None, ask)
    around = (system[0], system[1].removesuffix(user_before))
    is_default = first.startswith(around[0]) and first.endswith(around[1]) and len(first) > sum(map(len, around))
    if is_default:
        return Frame("", user, assistant, around, first[len(around[0]) : len(first) - len(around[1])], ask)
    start = first if around[0].startswith(first) else ""
    return Frame(start, user, assistant, (around[0].removeprefix(start), around[1]), None, ask)


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size :]


def _talks(has_system: bool) -> list[list[tuple[str, str]]]:
    """Conversations of several shapes."""
    roles = ("user", "assistant")
    whole = [(roles[index % 2], word) for index, word in enumerate((*_WORDS, "Thanks."))]
    talks = [whole[:1], whole[:3], whole]
    return talks + ([[("system", "Be brief."), *talk] for talk in talks] if has_system else [])


def modelfile(
    gguf_name: str, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], *, is_plain: bool = False
) -> str:
    """The Modelfile of a GGUF file beside it. Raises as `frame_of`.

    ends: the tokens that end an answer. is_plain: whether the model was trained on texts as they are, without a template.
    """
    frame = None if is_plain else frame_of(tokenizer)
    template = "{{ .Prompt }}" if frame is None else frame.template()
    lines = [f"FROM ./{gguf_name}", f"TEMPLATE {_quoted(template)}"]
    if frame is not None and frame.default is not None:
        lines.append(f"SYSTEM {_quoted(frame.default)}")
    stops = dict.fromkeys(str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(ends))
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text as a Modelfile takes it. Raises RecipeError for one with its quotes in it."""
    if '"""' in text:
        raise _beyond('it holds """, which ends a text in a Modelfile')
    return f'"""{text}"""'


def _beyond(reason: str) -> RecipeError:
    return RecipeError(
        f"The model's chat template cannot be said in Ollama's language: {reason}.",
        "Use --to gguf, and write a Modelfile by hand (https://docs.ollama.com/modelfile).",
        field="model",
    )
