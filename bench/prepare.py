"""Makes the work, in a process of its own: rows, token ids and learned labels in the order of training, and the adapter.

All of it is Luthier's own rendering, order of rows and LoRA; the peers get the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.side import say
from bench.work import NOT_LEARNED, Linear, Shape, Work, WorkRow, write_work
from luthier.data.mixture import epoch_order
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.settings import DataSettings
from luthier.errors import DataError, LuthierError, NotFound, UsageError
from luthier.methods import ADAPTER, LoRA
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.models.sources import locate
from luthier.types import Conversation, Message, Rendered

RANK, ALPHA, PEAK_LR, CLIP_NORM, SEED, ROWS_PER_STEP = 16, 32, 2e-4, 1.0, 0, 8

Chat = list[dict[str, str]]


def chat_of(row: dict[str, Any]) -> Chat:
    """A row as chat messages: `messages` as they are, `question` and `answer`, or a conversation tree's root prompt with
    its best-ranked first reply."""
    if "messages" in row:
        return [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    if "question" in row and "answer" in row:
        prompt, answer = row["question"], row["answer"]
    else:
        prompt, answer = row["prompt"]["text"], best_reply(row["prompt"]["replies"])
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def best_reply(replies: list[dict[str, Any]]) -> str:
    """The text of the reply with the lowest rank; those without a rank come last, in their order."""
    best = min(replies, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
    text: str = best["text"]
    return text


def read_chats(path: Path) -> list[Chat]:
    """The rows of a JSONL file as chats. Raises: NotFound; DataError, with the line, for a row of another form."""
    if not path.is_file():
        raise NotFound("There is no such data file.", "Give a JSONL file with --data.", file=str(path))
    chats = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            chats.append(chat_of(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "This row has neither question and answer, nor messages, nor a tree of replies.",
                "Give a JSONL file of one of these forms with --data.",
                file=str(path),
                line=number,
            ) from error
    return chats


def chosen(
    chats: list[Chat], renderer: Renderer, most_rows: int, most_tokens: int | None
) -> list[tuple[Chat, Rendered]]:
    """The first rows of at most so many tokens each, cut to whole steps."""
    kept: list[tuple[Chat, Rendered]] = []
    for chat in chats:
        if len(kept) == most_rows:
            break
        rendered = renderer.render(Conversation(tuple(Message(m["role"], m["content"]) for m in chat)))
        if most_tokens is None or len(rendered.tokens_T) <= most_tokens:
            kept.append((chat, rendered))
    whole = len(kept) // ROWS_PER_STEP * ROWS_PER_STEP
    if whole < 2 * ROWS_PER_STEP:
        raise DataError(
            f"There are {len(kept)} usable rows, which is less than two steps of {ROWS_PER_STEP}.",
            "The first step is counted apart, so give --rows 16 or more, and a data file that holds them.",
        )
    return kept[:whole]


def work_row(rendered: Rendered) -> WorkRow:
    """The rendered row with labels as the peers take them."""
    tokens, learned = rendered.tokens_T.tolist(), (rendered.weight_T > 0).tolist()
    labels = [token if is_learned else NOT_LEARNED for token, is_learned in zip(tokens, learned, strict=True)]
    return WorkRow(tokens, labels)


def shape_of(model: LanguageModel, attachment: AdapterAttachment) -> Shape:
    """The sizes that the counting of arithmetic needs."""
    config = model.hf.config
    linears = []
    for name, layer in attachment.layers.items():
        rank_inputs, outputs_rank = (tensor.shape for tensor in layer.branch(ADAPTER).tensors.values())
        reads_embedding = model.anatomy.layer_of(name) == 0 and name.endswith(("q_proj", "k_proj", "v_proj"))
        linears.append(Linear(name, rank_inputs[1], outputs_rank[0], not reads_embedding))
    width = config.hidden_size // config.num_attention_heads if config.head_dim is None else config.head_dim
    return Shape(
        linears=tuple(linears),
        rank=RANK,
        layers=len(model.anatomy.layers),
        attention_width=config.num_attention_heads * width,
        hidden=config.hidden_size,
        vocabulary=model.vocab_size,
    )


def plain_folder(settings: ModelSettings) -> str:
    """The model's folder as `transformers` reads it. Raises: UsageError for a GGUF file, the errors of `locate`."""
    source = locate(settings, say)
    if source.gguf is not None:
        raise UsageError(
            f"{settings.name} is a GGUF file.", "Give --model a folder of safetensors, which all tools read."
        )
    return str(source.folder.absolute())


def recipe_of(model: str, data: Path, adapter: Path, longest: int, budget: int, steps: int) -> dict[str, Any]:
    """Luthier's recipe for the work; what is not named here keeps its default."""
    return {
        "model": {"name": model, "dtype": "fp32", "device": "cpu"},
        "data": {"train": str(data), "validation": "none", "max_length": longest},
        "method": {"kind": "lora", "from": str(adapter)},
        "objective": {"kind": "sft"},
        "training": {
            "steps": steps,
            "rows_per_step": ROWS_PER_STEP,
            "tokens_per_micro_batch": budget,
            "peak_lr": PEAK_LR,
            "schedule": {"kind": "linear", "warmup_steps": 0},
            "clip_norm": CLIP_NORM,
            "checkpoint_every": steps,
        },
        "seed": SEED,
    }


def prepare(arguments: argparse.Namespace) -> None:
    """Write the work into the folder. Raises: the errors of reading data and models."""
    folder: Path = arguments.work.absolute()
    chats = read_chats(arguments.data)
    settings = ModelSettings(name=arguments.model, dtype="fp32", device="cpu")
    model_folder = plain_folder(settings)
    model = load_model(settings, say)
    renderer = build_renderer(DataSettings(train=str(arguments.data)), model.tokenizer)
    rows = chosen(chats, renderer, arguments.rows, arguments.max_length)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat, _ in rows), "utf-8")
    adapter = folder / "adapter"
    adapter.mkdir()
    attachment = LoRA(rank=RANK, alpha=ALPHA).attach(model, ADAPTER, SEED)
    attachment.write(adapter, say)
    longest = max(len(rendered.tokens_T) for _, rendered in rows)
    budget = max(arguments.budget, longest)
    if budget > arguments.budget:
        say(f"The longest row has {longest} tokens, so the budget of a micro-batch is that, not {arguments.budget}.")
    steps = len(rows) // ROWS_PER_STEP
    recipe = recipe_of(model_folder, data, adapter, longest, budget, steps)
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(json.dumps(recipe, indent=1), "utf-8")  # JSON is YAML
    work = Work(
        name=arguments.name,
        model=model_folder,
        adapter=str(adapter),
        recipe=str(recipe_file),
        rows_per_step=ROWS_PER_STEP,
        peak_lr=PEAK_LR,
        clip_norm=CLIP_NORM,
        pad_id=model.pad_id,
        budget=budget,
        shape=shape_of(model, attachment),
        rows=tuple(work_row(rows[index][1]) for index in epoch_order(len(rows), SEED, 0)),
    )
    write_work(folder, work)


def work_parser(description: str) -> argparse.ArgumentParser:
    """The command line of what makes some work: where it goes, and what it is made of."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", type=Path, help="an empty folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--budget", type=int, required=True)
    return parser


def prepared(prepare: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Prepare the work; 0, or the exit code of the error that is printed."""
    try:
        prepare(arguments)
    except LuthierError as error:
        say(str(error))
        return error.exit_code
    return 0


def main() -> int:
    """Prepare the work; 0, or the exit code of the error that is printed."""
    parser = work_parser("the work that every contestant does")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--max-length", type=int)
    return prepared(prepare, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
