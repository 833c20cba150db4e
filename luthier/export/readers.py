"""Who reads written files back: the programs that people use them in, where they are installed, else our own reading.

A reader tells the logits that the files give at the targets of examples. For models that write text those are all tokens of a
text, so that nothing but token ids needs to pass between programs.
Shapes: T tokens, N targets, V vocabulary (or C classes).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from luthier.errors import ExportMismatch, LuthierError
from luthier.export import llama_cpp_program
from luthier.export.gguf_header import check_header
from luthier.export.gguf_tokens import tokens_by_file
from luthier.export.parity import EXACT, OF_LLAMA_CPP, Limits
from luthier.models.gguf_files import read_gguf_weights
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.models.writing import weights_of
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, Said, said_of_each
from luthier.types import Example, IntArray, Origin, Part

OUR_OWN = "Luthier's own reading"
_PROGRAM = (sys.executable, "-m", llama_cpp_program.__name__)


@dataclass(frozen=True)
class Reader:
    """Who reads files back.

    is_elsewhere: whether it is a program that others use the files in. say: the logits of each example, each (N, V).
    limits: what its own way to compute costs.
    """

    name: str
    is_elsewhere: bool
    say: Callable[[Sequence[Example]], Iterator[Tensor]]
    limits: Limits = EXACT


# ── texts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def whole_text(tokens_T: IntArray, origin: Origin) -> Example:
    """A text as an example with a target at every token."""
    count = len(tokens_T)
    return Example(
        parts=(Part(tokens_T),),
        source_N=np.arange(count),
        token_N=np.roll(tokens_T, -1),
        weight_N=np.ones(count, np.float32),
        sample_N=np.zeros(count, np.int64),
        document=0,
        origin=origin,
    )


def first_stream(example: Example) -> IntArray:
    """The tokens of an example's first part and, of what goes on from it, always the first, shape (T,)."""
    tokens, at = [example.parts[0].tokens_T], 0
    for index, part in enumerate(example.parts):
        if part.parent == at and index > at:
            tokens.append(part.tokens_T)
            at = index
    return np.concatenate(tokens)


# ── readers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def every_logit(outputs: Outputs) -> Said:
    """The logits at each target, fp32, shape (N, V)."""
    return outputs.head.logits(outputs.hidden_ND).float(), outputs.targets.row_N


def of_model(model: LanguageModel, adapter: str | None, said: Callable[[Outputs], Said] = every_logit) -> Reader:
    """What a model of Luthier's own says."""

    def say(examples: Sequence[Example]) -> Iterator[Tensor]:
        with Workers(1) as workers:
            for example in examples:
                yield said_of_each(model, adapter, [example], said, Passes(workers), "compare")[0]

    return Reader(OUR_OWN, False, say)


def of_transformers(hf: PreTrainedModel, name: str) -> Reader:
    """What a model that transformers loaded says of texts, computed its way; virtual tokens before a text are left out."""

    def say(examples: Sequence[Example]) -> Iterator[Tensor]:
        for example in examples:
            tokens_1T = torch.from_numpy(first_stream(example))[None].to(hf.device)
            with torch.inference_mode():
                logits_TV: Tensor = hf(input_ids=tokens_1T, attention_mask=torch.ones_like(tokens_1T)).logits[0]
            yield logits_TV[-tokens_1T.shape[1] :].float().cpu()

    return Reader(name, True, say)


def transformers_reader(folder: Path, device: torch.device) -> Reader:
    """A folder as `AutoModelForCausalLM` loads it; whole numbers computed in fp32."""
    hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return of_transformers(hf.to(device).eval(), "transformers")


def peft_reader(base: LanguageModel, folder: Path) -> Reader | None:
    """An adapter as `peft` puts it on its base; None if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        return None
    import peft

    hf = plain(base)
    return of_transformers(peft.PeftModel.from_pretrained(hf, folder).eval(), "peft")  # type: ignore[arg-type]


def plain(model: LanguageModel) -> PreTrainedModel:
    """A model without adapters as transformers makes it: unpacked, and with none of Luthier's layers."""
    config: PreTrainedConfig = copy.deepcopy(model.hf.config)
    if "quantization_config" in config.to_dict():
        del config.quantization_config
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    weights = {name: tensor.detach().clone() for name, tensor in weights_of(model).items()}
    hf: Any = kind.from_pretrained(None, config=config, state_dict=weights, dtype=model.dtype)
    whole: PreTrainedModel = hf.to(model.device).eval()
    return whole


def gguf_reader(
    file: Path,
    config: PreTrainedConfig,
    adapter: Path | None = None,
    texts: Sequence[tuple[str, IntArray]] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Reader:
    """A GGUF file, and an adapter for it, as llama.cpp reads them; where no binding of it is installed, as transformers does.

    adapter: without a binding, what it says is added to `file`, which must be of fp32.
    texts: texts and the tokens that the run's tokenizer makes of them, which llama.cpp must make of them too; without a binding,
    the file's vocabulary must, after what `tokenizer`, the run's, does to a text first.
    Raises ExportMismatch where neither can read the file, or where its header does not say what the config does.
    """
    check_header(file, config)
    binding = _binding()
    if binding is not None:
        return _llama_cpp(binding, file, adapter, texts)
    if tokenizer is not None:
        read = tokens_by_file(file, tokenizer)
        _check_tokens(texts, [read(text) for text, _ in texts], "The file's vocabulary")
    if adapter is not None:
        add_adapter(file, adapter)
    try:
        hf: Any = read_gguf_weights(file, _known_there(config), torch.float32)[0]
    except LuthierError as error:
        packages = " or ".join(llama_cpp_program.BINDINGS.values())
        raise ExportMismatch(
            f"No program here can read the file back to check it: transformers does not take it ({error.found}), and no "
            "binding of llama.cpp is installed.",
            f"Install {packages} and export again, or use --to merged.",
        ) from error
    return Reader("transformers' reading of GGUF", False, of_transformers(hf.eval(), "").say)


def _known_there(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config by which transformers reads a GGUF file: of a Mistral, a Llama's, which computes the same within the window."""
    if config.model_type != "mistral":
        return config
    values = config.to_dict()
    shared = {key: values[key] for key in LlamaConfig().to_dict() if key in values and key != "model_type"}
    return LlamaConfig(**shared)


def add_adapter(file: Path, adapter: Path) -> None:
    """Add what a GGUF adapter says to the matrices of a GGUF file of fp32, in the file: W + (alpha / R) B A.

    Raises ExportMismatch for a tensor that the file has no base for.
    """
    update = gguf.GGUFReader(adapter)
    field = update.get_field("adapter.lora.alpha")
    alpha = 0.0 if field is None else float(field.contents())
    base = {tensor.name: tensor for tensor in gguf.GGUFReader(file, "r+").tensors}
    parts = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in update.tensors}
    for name in [name.removesuffix(".lora_a") for name in parts if name.endswith(".lora_a")]:
        if name not in base:
            raise ExportMismatch(f"The adapter changes {name}, which the model's file does not have.")
        a_RI, b_OR = parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]
        base[name].data[:] += (alpha / len(a_RI) * (b_OR @ a_RI)).numpy()


def _binding() -> str | None:
    """The package through which llama.cpp can be reached here, asked in a process of its own."""
    done = subprocess.run([*_PROGRAM, "--which"], capture_output=True, text=True, check=False)
    return llama_cpp_program.BINDINGS.get(done.stdout.strip()) if done.returncode == 0 else None


def _llama_cpp(name: str, file: Path, adapter: Path | None, texts: Sequence[tuple[str, IntArray]]) -> Reader:
    def say(examples: Sequence[Example]) -> Iterator[Tensor]:
        rows = [first_stream(example).tolist() for example in examples]
        asked = {
            "file": str(file), "adapter": None if adapter is None else str(adapter),
            "rows": rows, "texts": [text for text, _ in texts],
        }  # fmt: skip
        with tempfile.TemporaryFile() as told:
            program = subprocess.Popen(
                _PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told
            )  # fmt: skip
            assert program.stdin is not None
            assert program.stdout is not None
            try:
                program.stdin.write(json.dumps(asked).encode())
                program.stdin.close()
                head = program.stdout.readline()
                if not head:
                    program.wait()
                    told.seek(0)
                    raise _refused(name, told.read().decode(errors="replace"))
                answer = json.loads(head)
                _check_tokens(texts, answer["tokens"], "llama.cpp")
                for row in rows:
                    size = 4 * len(row) * answer["vocabulary"]
                    raw = program.stdout.read(size)
                    if len(raw) < size:
                        raise _refused(name, "it ended in the middle of a row")
                    yield torch.frombuffer(bytearray(raw), dtype=torch.float32).view(len(row), -1)
            finally:
                program.kill()
                program.wait()
                program.stdout.close()

    return Reader(f"llama.cpp ({name})", True, say, OF_LLAMA_CPP)


def _refused(name: str, told: str) -> ExportMismatch:
    lines = [line for line in told.splitlines() if "error" in line.lower() or "llama.cpp" in line] or told.splitlines()
    return ExportMismatch(
        f"llama.cpp ({name}) does not read the written file: {' '.join(lines[-2:]) or 'it ended without a word'}.",
        "A newer version of it may know this architecture; or use --to merged.",
    )


def _check_tokens(texts: Sequence[tuple[str, IntArray]], found: Sequence[Sequence[int]], by: str) -> None:
    """Raise ExportMismatch for a text that is cut into other tokens than the run's tokenizer makes. by: what cut it."""
    for (text, tokens_T), other in zip(texts, found, strict=True):
        if tokens_T.tolist() != list(other):
            at = next((i for i, (a, b) in enumerate(zip(tokens_T.tolist(), other, strict=False)) if a != b), len(other))
            raise ExportMismatch(
                f"{by} cuts a text into other tokens than the run's tokenizer, from token {at} on: {text[:80]!r}.",
                "Use --to merged.",
            )
