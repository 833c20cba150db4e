"""A run's model written for other tools: what they load computes what the run does, quantizing it again says what it loses,
and what is not so is not written.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any, get_args

import bitsandbytes as bnb
import pytest
import torch
from gguf import GGUFReader
from models.rows import batch_of
from near import assert_near
from safetensors.torch import load_file
from tiny_model import write_tiny_model
from tiny_runs import begin, nothing, one_thread, recipe_values, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import luthier
from luthier.errors import DiskFull, ExportMismatch, RecipeError, ResourceError, RunMismatch, UsageError
from luthier.export.gguf_model import write_gguf
from luthier.generation.settings import Sampling
from luthier.methods import ADAPTER
from luthier.models.anatomy import weight_of
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.quantization.formats import quantize
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe.loading import recipe_of_run
from luthier.store import disk
from luthier.studies import exporting
from luthier.studies.exporting import Exported, To, export_run
from luthier.tuned import load_merged, load_run


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 12)


def tuned(model: Path, rows: Path, folder: Path, **parts: Any) -> Path:
    """A finished run that held its own rows out."""
    with one_thread():
        begin(recipe_values(model, rows, **{"data": {"validation": str(rows)}, **parts}), folder)
    return folder


def exported(run: Path, out: Path, **settings: Any) -> Exported:
    with one_thread():
        return export_run(run, recipe_of_run(run), out, nothing, **settings)


def logits_of_run(run: Path) -> torch.Tensor:
    model = load_run(run, nothing)
    batch = batch_of([9], model.layout)
    return model.hf.get_submodule("lm_head")(model.hidden(batch, ADAPTER)).detach()


def logits_of_file(out: Path) -> torch.Tensor:
    hf = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    return hf(batch_of([9], "packed").tokens_BT).logits.detach()


@pytest.mark.parametrize("quantization", [None, {"kind": "nf4"}, {"kind": "int8"}], ids=str)
def test_the_merged_model_is_that_of_the_run_over_the_very_base_it_was_trained_on(
    quantization: dict[str, Any] | None, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    parts = {} if quantization is None else {"quantization": quantization}
    run = tuned(tiny_model, rows, tmp_path / "run", **parts)
    result = exported(run, tmp_path / "merged")
    assert_near(logits_of_file(tmp_path / "merged"), logits_of_run(run))
    assert result.losses is not None
    assert result.losses["written"] == pytest.approx(result.losses["run"], abs=1e-5)
    assert result.lost is None
    assert result.num_bytes == (tmp_path / "merged" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_quantized_again_it_is_what_bitsandbytes_loads_and_what_was_lost_is_told(
    kind: Any, rows: Path, tmp_path: Path
) -> None:
    wide = write_tiny_model(
        tmp_path / "wide", hidden_size=64, intermediate_size=128
    )  # rows of whole blocks: see the page
    run = tuned(wide, rows, tmp_path / "run")
    settings = QuantizationSettings(kind=kind)
    whole = exported(run, tmp_path / "whole")
    result = exported(run, tmp_path / "packed", quantization=settings)
    merged = load_merged(run, recipe_of_run(run), nothing)
    off = energy = 0.0
    with torch.no_grad():
        for name in merged.anatomy.linears:
            weight_OI = weight_of(merged.hf.get_submodule(name)).clone()
            packed_OI = quantize(name, weight_OI, settings).dense(torch.float32)
            off, energy = off + float((weight_OI - packed_OI).square().sum()), energy + float(weight_OI.square().sum())
            weight_of(merged.hf.get_submodule(name)).copy_(packed_OI)
    assert result.lost is not None
    assert result.lost.relative_error == pytest.approx((off / energy) ** 0.5, rel=1e-4)
    assert result.lost.worst_error >= result.lost.relative_error
    assert result.lost.worst in merged.anatomy.linears
    assert result.losses is not None
    assert result.losses["written"] != result.losses["run"]
    assert result.num_bytes < 0.8 * whole.num_bytes
    batch = batch_of([9], merged.layout)
    expected = merged.hf.get_submodule("lm_head")(merged.hidden(batch))
    assert_near(logits_of_file(tmp_path / "packed"), expected, 1e-5 if kind != "int8" else 1e-2)  # it rounds inputs too


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_and_in_several_files_it_is_read_by_bitsandbytes_as_what_was_written(
    kind: Any, rows: Path, tmp_path: Path
) -> None:
    """Four bits within 1e-5 of the largest logit; bitsandbytes' eight bits round what goes into a layer too."""
    wide = write_tiny_model(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    run = tuned(wide, rows, tmp_path / "run")
    out = exported(run, tmp_path / "packed", quantization=QuantizationSettings(kind=kind), shard_bytes=5_000).out
    files = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    of_layer: dict[str, set[str]] = {}
    for name, file in files.items():
        of_layer.setdefault(name.partition("_proj.")[0], set()).add(file)
    assert max(map(len, of_layer.values())) > 1, "some layer's numbers and scales are in two files"
    own = load_model(ModelSettings(name=str(out)), nothing)
    hf = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    theirs = bnb.nn.Linear4bit if kind == "nf4" else bnb.nn.Linear8bitLt
    assert {name for name, layer in hf.named_modules() if isinstance(layer, theirs)} == set(own.anatomy.linears)
    batch = batch_of([9], own.layout)
    expected = own.hf.get_submodule("lm_head")(own.hidden(batch))
    assert_near(hf(batch.tokens_BT).logits, expected, 1e-5 if kind == "nf4" else 1e-2)


def test_a_number_format_may_be_chosen(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    run = tuned(tiny_model, rows, tmp_path / "run")
    exported(run, tmp_path / "half", dtype="bf16")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in hf.parameters()} == {torch.bfloat16}


def test_a_tuned_base_is_written_too_and_without_held_out_rows_nothing_is_measured(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    with one_thread():
        begin(recipe_values(tiny_model, rows, method={"kind": "full", "rank": None}), tmp_path / "run")
    result = exported(tmp_path / "run", tmp_path / "packed", quantization=QuantizationSettings(kind="nf4"))
    assert result.losses is None
    assert result.lost is not None
    assert 0.02 < result.lost.relative_error < 0.15


def test_what_cannot_be_written_is_refused_before_anything_is(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    prompt = {"kind": "prompt-tuning", "rank": None, "num_virtual_tokens": 3}
    run = tuned(tiny_model, rows, tmp_path / "run", method=prompt)
    with pytest.raises(RecipeError, match="cannot be merged"):
        exported(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        exported(run, tmp_path / "there")


def test_layers_that_are_stored_turned_round_are_not_quantized_for_bitsandbytes(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model.iterdir():
        if not file.name.startswith(("model", "config", "generation")):
            (base / file.name).write_bytes(file.read_bytes())
    words = AutoModelForCausalLM.from_pretrained(tiny_model).config
    config = GPT2Config(
        vocab_size=words.vocab_size, n_embd=32, n_layer=1, n_head=2, n_positions=256,
        bos_token_id=words.eos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(base)
    run = tuned(base, rows, tmp_path / "run")
    with pytest.raises(RecipeError, match="turned round"):
        exported(run, tmp_path / "packed", quantization=QuantizationSettings(kind="nf4"))
    assert not (tmp_path / "packed").exists()
    assert exported(run, tmp_path / "merged").losses is not None


# ── the other forms, and the gate ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def lora(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(tiny_model, rows, tmp_path_factory.mktemp("runs") / "lora")


@pytest.fixture(scope="module")
def qlora(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(tiny_model, rows, tmp_path_factory.mktemp("runs") / "qlora", quantization={"kind": "nf4"})


FORMS: list[tuple[Any, str, set[str]]] = [
    ("peft", "peft", {"adapter_config.json", "adapter_model.safetensors", "README.md"}),
    ("vllm", "peft", {"adapter_config.json", "adapter_model.safetensors"}),
    ("gguf", "transformers' reading of GGUF", {"model.gguf"}),
    ("gguf-lora", "transformers' reading of GGUF", {"adapter.gguf"}),
    ("ollama", "transformers' reading of GGUF", {"model.gguf", "Modelfile"}),
]


@pytest.mark.parametrize(("to", "reader", "files"), FORMS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_form_says_what_the_run_says_over_the_very_base_it_was_trained_on(
    to: Any, reader: str, files: set[str], qlora: Path, tmp_path: Path
) -> None:
    result = exported(qlora, tmp_path / "out", to=to)
    assert {file.name for file in result.out.iterdir()} == files | {"manifest.json"}
    last = result.checked[-1]
    assert last.reader == reader
    assert last.is_elsewhere == (reader == "peft")
    assert last.texts == "held-out rows"
    assert last.parity.num_tokens > 200
    assert last.parity.difference < 1e-5
    assert last.parity.agreement == 1
    assert result.as_json()["checked"][-1]["kl"] == last.parity.kl


def tuned_by(method: dict[str, Any], model: Any, rows: Path, folder: Path) -> Path:
    values = recipe_values(Path("unused"), rows, data={"validation": str(rows)}, method=method)
    with one_thread():
        begin({**values, "model": model}, folder)
    return folder


@pytest.mark.parametrize("to", ["peft", "merged", "ollama"])
@pytest.mark.parametrize("kind", ["dora", "pissa"])
def test_methods_beside_lora_are_written_for_all(
    kind: str, to: Any, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    run = tuned_by({"kind": kind}, str(tiny_model), rows, tmp_path / "run")
    last = exported(run, tmp_path / "out", to=to).checked[-1]
    assert last.parity.difference < 1e-5
    assert last.parity.agreement == 1


@pytest.mark.parametrize("to", ["peft", "merged", "ollama"])
def test_new_tokens_go_with_the_model_wherever_it_goes(to: Any, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    model = {"name": str(tiny_model), "add_tokens": ["<|order|>"]}
    run, out = tuned_by({}, model, rows, tmp_path / "run"), tmp_path / "out"
    last = exported(run, out, to=to).checked[-1]
    assert last.parity.difference < 1e-5
    assert last.parity.agreement == 1
    if to == "ollama":
        field = GGUFReader(out / "model.gguf").fields["tokenizer.ggml.tokens"]
        assert "<|order|>" in field.contents()
    else:
        assert "<|order|>" in AutoTokenizer.from_pretrained(out).get_vocab()


def test_a_soft_prompt_is_read_back_by_peft(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    method = {"kind": "prompt-tuning", "num_virtual_tokens": 3, "rank": None}
    run = tuned_by(method, str(tiny_model), rows, tmp_path / "run")
    (checked,) = exported(run, tmp_path / "out", to="peft").checked
    assert checked.reader == "peft"
    assert checked.parity.difference < 1e-5


@pytest.mark.parametrize("dtype", ["fp16", "q8_0", "q4_0"])
def test_a_gguf_file_in_fewer_bits_differs_a_little_and_passes(dtype: str, lora: Path, tmp_path: Path) -> None:
    parity = exported(lora, tmp_path / "out", to="gguf", dtype=dtype).checked[-1].parity
    assert 0 < parity.kl < 1e-2


def merged_into_another_base(folder: Path, recipe: Any, announce: Any) -> Any:
    """The adapter in a base that was never quantized."""
    values = recipe.model_dump(mode="json", by_alias=True) | {"quantization": None}
    return load_merged(folder, type(recipe).model_validate(values), announce)


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_an_adapter_merged_into_an_unquantized_base_is_caught_before_anything_is_written(
    to: Any, qlora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "load_merged", merged_into_another_base)
    with pytest.raises(
        ExportMismatch, match=r"largest logit difference is [\d.e-]+ of the largest logit \(at most 0.0001"
    ):
        exported(qlora, tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_files_that_differ_from_the_model_they_were_written_from_are_caught(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: LanguageModel, path: Path, dtype: Any, name: str) -> None:
        with torch.no_grad():
            weight_of(model.hf.get_submodule(model.anatomy.linears[0])).mul_(1.5)
        write_gguf(model, path, dtype, name)

    monkeypatch.setattr(exporting, "write_gguf", wrong)
    with pytest.raises(
        ExportMismatch, match="Read back by transformers' reading of GGUF on 12 held-out rows, the GGUF file"
    ):
        exported(lora, tmp_path / "out", to="gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", get_args(To))
@pytest.mark.parametrize(
    ("operation", "number", "error", "told"),
    [
        ("open_for_write", errno.ENOSPC, DiskFull, "the disk is full"),
        ("mkdir_new", errno.EROFS, ResourceError, "Read-only"),
    ],
    ids=["full", "read-only"],
)
def test_a_full_or_read_only_disk_is_told_and_nothing_is_left(
    to: Any, operation: str, number: int, error: type[Exception], told: str,
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk, operation, refuse)
    with pytest.raises(error, match=told):
        exported(lora, tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", [*get_args(To), "merged in shards"])
def test_whichever_file_the_disk_has_no_room_for_it_is_told(to: Any, lora: Path, tmp_path: Path) -> None:
    settings = {"to": "merged", "shard_bytes": 20_000} if " " in to else {"to": to}
    whole = exported(lora, tmp_path / "whole", **settings).out
    largest = max(file.stat().st_size for file in whole.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, hard))  # a real refusal, in the middle of the file
    try:
        with pytest.raises(ResourceError, match="File too large"):
            exported(lora, tmp_path / "out", **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [whole]


def test_merged_weights_go_into_files_of_no_more_than_was_said_and_the_index_names_every_one(
    lora: Path, tmp_path: Path
) -> None:
    result = exported(lora, tmp_path / "cut", shard_bytes=40_000)
    files = sorted(file.name for file in result.out.glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((result.out / "model.safetensors.index.json").read_text())["weight_map"]
    found = {name: file for file in files for name in load_file(result.out / file)}
    assert index == found
    whole = exported(lora, tmp_path / "whole")
    assert found.keys() == load_file(whole.out / "model.safetensors").keys()
    for file in files:
        tensors = load_file(result.out / file).values()
        assert len(tensors) == 1 or sum(each.nbytes for each in tensors) <= 40_000
    assert result.checked[-1].reader == "transformers"
    assert result.num_bytes >= whole.num_bytes
    assert_near(logits_of_file(result.out), logits_of_file(whole.out), 0)


def copied(run: Path, to: Path, **changes: str) -> Path:
    """A run with lines of its resolved recipe changed, by the beginning of the line."""
    shutil.copytree(run, to)
    file = to / "recipe.resolved.yaml"
    lines = [
        next((new for old, new in changes.items() if line.strip().startswith(f"{old}:")), line)
        for line in file.read_text().splitlines()
    ]
    file.write_text("\n".join(lines))
    return to


def test_a_run_of_another_version_is_told_and_one_that_cannot_be_read_names_the_version(
    lora: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    older = copied(lora, tmp_path / "older", luthier="  luthier: 0.0.1")
    export_run(older, recipe_of_run(older), tmp_path / "out", told.append, to="peft")
    assert any("made by luthier 0.0.1" in text for text in told)
    newer = copied(lora, tmp_path / "newer", luthier="  luthier: 99.0.0", seed="seed: 7\nfuture: 1")
    with pytest.raises(RecipeError, match="future") as caught:
        recipe_of_run(newer)
    assert "luthier 99.0.0" in caught.value.mend


def test_a_base_that_changed_since_the_run_is_refused(lora: Path, tmp_path: Path) -> None:
    other = copied(lora, tmp_path / "run", model_sha256="  model_sha256: " + "e" * 64)
    with pytest.raises(RunMismatch, match="not what this run was begun with"):
        exported(other, tmp_path / "out", to="peft")
    assert not (tmp_path / "out").exists()


def test_without_its_rows_a_run_is_compared_on_texts_of_our_own(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    run = tuned(tiny_model, rows, tmp_path / "run")
    rows.write_text("no rows any more")
    (checked,) = exported(run, tmp_path / "out", to="peft").checked
    assert checked.texts == "built-in texts"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"to": "peft", "dtype": "fp16"}, "--to peft has no --dtype fp16"),
        ({"to": "merged", "dtype": "q8_0"}, "--to merged has no --dtype q8_0"),
        ({"to": "gguf", "quantization": QuantizationSettings(kind="nf4")}, "no place for"),
        ({"to": "gguf", "shard_bytes": 10**9}, "--to gguf writes none"),
        ({"to": "merged", "shard_bytes": 0}, "--shard-size is nothing"),
    ],
)
def test_what_does_not_go_with_a_form_is_refused_at_once(
    settings: dict[str, Any], fault: str, lora: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=fault):
        exported(lora, tmp_path / "out", **settings)


@pytest.mark.parametrize("to", ["peft", "vllm", "gguf-lora"])
def test_a_run_that_tuned_the_model_itself_has_no_adapter_to_write(
    to: Any, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    run = tuned(tiny_model, rows, tmp_path / "run", method={"kind": "full", "rank": None})
    with pytest.raises(RecipeError, match="A run of full has no adapter"):
        exported(run, tmp_path / "out", to=to)


def test_the_chat_template_of_the_runs_data_goes_with_the_model(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    template = AutoTokenizer.from_pretrained(tiny_model).chat_template.replace("<|im_end|>\n", "<|im_end|>\n\n")
    run = tuned(tiny_model, rows, tmp_path / "run", data={"chat_template": template, "validation": str(rows)})
    exported(run, tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == template
    exported(run, tmp_path / "ollama", to="ollama")
    assert "<|im_end|>\n\n" in (tmp_path / "ollama" / "Modelfile").read_text()
    exported(run, tmp_path / "peft", to="peft")
    assert AutoTokenizer.from_pretrained(tmp_path / "peft").chat_template == template
    served = exported(run, tmp_path / "vllm", to="vllm")
    file = tmp_path / "vllm" / "chat_template.jinja"
    assert file.read_text() == template
    assert all(f" --chat-template {file}" in note for note in served.notes if "serve" in note.lower())


NAMED_ROWS = [
    {"instruction": f"Name colour {number}.", "input": "Of the sky." if number % 2 else "", "output": "Blue."}
    for number in range(12)
]
ASKED = {"alpaca": "Below is an instruction that describes a task.", "guanaco": "### Human: ", "chatml": "<|im_start|>"}


@pytest.mark.parametrize("name", ["alpaca", "guanaco", "chatml"])
def test_a_named_template_is_the_same_in_training_in_serving_and_in_what_is_written(name: str, tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    for file in ("config.json", "generation_config.json"):  # the model's own end is that of a text
        values = json.loads((base / file).read_text())
        (base / file).write_text(json.dumps({**values, "eos_token_id": 0}))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in NAMED_ROWS))
    data = {"chat_template": name, "validation": str(rows), "max_length": 256}
    run = tuned(base, rows, tmp_path / "run", data=data, training={"tokens_per_micro_batch": 256})
    kept = recipe_of_run(run).data.chat_template
    assert kept is not None
    assert ASKED[name] in kept
    model = luthier.load(run)
    talk = [{"role": "user", "content": "Name it."}, {"role": "assistant", "content": "Red."}]
    talk += [{"role": "user", "content": "Another."}]
    asked = model.request(talk, Sampling(max_new_tokens=4))
    end = "<|im_end|>" if name == "chatml" else "<|endoftext|>"
    assert asked.stop_ids == {model.renderer.tokenizer.convert_tokens_to_ids(end)}
    assert end not in model.generate(talk, max_new_tokens=20)

    exported(run, tmp_path / "merged")
    written = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert written.chat_template == kept
    served = written.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert tuple(served) == asked.prompt
    ends = json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"]
    assert written.convert_tokens_to_ids(end) in (ends if isinstance(ends, list) else [ends])

    exported(run, tmp_path / "ollama", to="ollama")
    modelfile = (tmp_path / "ollama" / "Modelfile").read_text()
    assert ASKED[name] in modelfile
    assert f'PARAMETER stop """{end}"""' in modelfile


def test_a_run_keeps_the_text_of_a_templates_file(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    text = AutoTokenizer.from_pretrained(tiny_model).chat_template.replace("<|im_end|>\n", "<|im_end|>\n\n")
    file = tmp_path / "chat.jinja"
    file.write_text(text)
    run = tuned(tiny_model, rows, tmp_path / "run", data={"chat_template": str(file), "validation": str(rows)})
    file.unlink()
    assert recipe_of_run(run).data.chat_template == text
    assert luthier.load(run).renderer.chat is not None
