"""A model is found by name, folder, file or hub id, read whole, and refused in words where that is not safe or not possible."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from tiny_gguf import write_tiny_gguf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luthier.errors import DataError, DiskFull, LuthierError, NetworkError, NotAllowed, NotFound, RecipeError
from luthier.models import fingerprints, hub
from luthier.models.settings import ModelSettings
from luthier.models.sources import ModelSource, fingerprint, locate, read_config, read_tokenizer, read_weights
from luthier.store.files import sha256_file

SILENT: Callable[[str], None] = lambda sentence: None  # noqa: E731
WORDS = ["<s>", "</s>", "a", "b", "c", "Ġ"]


def tiny_model(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(WORDS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf", [*WORDS, "ab"], ["a b"], bos=0, eos=1)


def found(name: str | Path, revision: str | None = None) -> ModelSource:
    return locate(ModelSettings(name=str(name), revision=revision), SILENT)


def error_of(action: Callable[[], Any]) -> LuthierError:
    with pytest.raises(LuthierError) as caught:
        action()
    assert caught.value.mend
    return caught.value


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_gives_back_the_model_that_was_saved_to_it(folder: Path) -> None:
    source = found(folder)
    assert (source.kind, source.folder, source.gguf_file, source.revision) == ("folder", folder, None, None)
    model = read_weights(source, read_config(source), torch.float32, attn_implementation="eager")
    for name, tensor in tiny_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.config._attn_implementation == "eager"
    assert read_tokenizer(source)("abc").input_ids == [2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_come_in_the_format_asked_for(folder: Path, dtype: torch.dtype) -> None:
    source = found(folder)
    model = read_weights(source, read_config(source), dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_a_tied_head_need_not_be_saved_and_stays_tied(tmp_path: Path) -> None:
    tiny_model(tied=True).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    source = found(tmp_path)
    model = read_weights(source, read_config(source), torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_shards_are_read_as_one_model_and_a_missing_one_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="10KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    source = found(folder)
    model = read_weights(source, read_config(source), torch.float32)
    assert torch.equal(model.state_dict()["lm_head.weight"], tiny_model().state_dict()["lm_head.weight"])
    (folder / shards[1]).unlink()
    assert shards[1] in str(error_of(lambda: found(folder)))


def test_unknown_names_are_answered_with_near_ones(folder: Path) -> None:
    assert "smollm2-135m" in error_of(lambda: found("smollm-135")).mend
    error = error_of(lambda: found(folder.parent / "deep" / "tiny"))
    assert isinstance(error, NotFound)
    assert str(folder) in error_of(lambda: found(str(folder.parent) + "/tini")).mend
    assert isinstance(error_of(lambda: found(folder.parent / "none.gguf")), NotFound)


def test_an_adapter_is_told_from_a_model(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    error = error_of(lambda: found(folder))
    assert isinstance(error, RecipeError)
    assert "owner/base" in error.mend
    assert f"from: {folder}" in error.mend


def test_a_run_given_as_a_model_is_answered_with_its_model_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.move(folder, tmp_path / "run" / "model")
    assert str(tmp_path / "run" / "model") in error_of(lambda: found(tmp_path / "run")).mend


def test_a_run_of_an_adapter_given_as_a_model_is_answered_with_how_to_go_on_from_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    assert "method: {from:" in error_of(lambda: found(tmp_path / "run")).mend


def test_what_a_folder_lacks_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in error_of(lambda: found(folder)).found
    (folder / "config.json").unlink()
    assert "config.json" in error_of(lambda: found(folder)).found


def test_pickles_are_refused_as_files_and_in_folders(folder: Path) -> None:
    weights = folder / "pytorch_model.bin"
    (folder / "model.safetensors").rename(weights)
    for name in (folder, weights):
        error = error_of(lambda name=name: found(name))  # type: ignore[misc]
        assert isinstance(error, RecipeError)
        assert "pickle" in error.found
    assert isinstance(error_of(lambda: found(folder / "none.bin")), NotFound)
    assert str(folder) in error_of(lambda: found(folder / "tokenizer.json")).found


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in error_of(lambda: found(folder)).found


def test_a_revision_of_something_that_has_none_is_refused(folder: Path) -> None:
    assert error_of(lambda: found(folder, "main")).field == "model.revision"
    assert error_of(lambda: found("smollm2-135m", "main")).field == "model.revision"


# ── the hub, without a network ──────────────────────────────────────────────────────────────────────────────────────


def response(code: int) -> Any:
    """An answer of the hub, of whichever HTTP library it is built on."""
    import importlib

    library: Any = importlib.import_module(hub._TRANSPORT_ERROR.__module__.split(".")[0])
    return library.Response(code, request=library.Request("GET", "https://huggingface.co"))


def test_a_hub_model_is_fetched_without_pickles_and_known_by_its_commit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def fetch(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    source = found("owner/model", "v1")
    assert (asked["repo"], asked["revision"]) == ("owner/model", "v1")
    assert not any("bin" in pattern or "pt" in pattern or "py" in pattern for pattern in asked["allow_patterns"])
    assert (source.kind, source.folder, source.revision) == ("hub", folder, folder.name)
    (folder / "model.safetensors").unlink()
    assert "owner/model holds no" in error_of(lambda: found("owner/model")).found


def test_without_weights_config_and_tokenizer_of_a_hub_model_are_fetched_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def fetch(repo: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    (folder / "model.safetensors").unlink()
    source = locate(ModelSettings(name="owner/model"), print, weights=False)
    assert read_config(source).model_type == "llama"
    assert "*.json" in asked[0]
    assert not any("safetensors" in pattern for pattern in asked[0])


@pytest.mark.parametrize(
    ("raised", "expected", "word"),
    [
        (lambda: GatedRepoError("gated", response=response(403)), NotAllowed, "hf auth login"),
        (lambda: RepositoryNotFoundError("none", response=response(404)), NotFound, "spelling"),
        (lambda: RevisionNotFoundError("none", response=response(404)), NotFound, "branch"),
        (lambda: LocalEntryNotFoundError("offline"), NetworkError, "network"),
        (lambda: ConnectionError("refused"), NetworkError, "network"),
        (lambda: hub._TRANSPORT_ERROR("broken pipe"), NetworkError, "network"),
        (lambda: OSError(28, "No space left on device"), DiskFull, "room"),
    ],
)
def test_every_refusal_of_the_hub_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch,
    raised: Callable[[], BaseException],
    expected: type[LuthierError],
    word: str,
) -> None:
    def fail(repo: str, **options: Any) -> str:
        raise raised()

    monkeypatch.setattr(hub, "snapshot_download", fail)
    error = error_of(lambda: found("owner/model"))
    assert type(error) is expected
    assert word in error.mend


def test_a_name_that_may_be_a_folder_is_said_to_be_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.chdir(folder.parent.parent)
    assert "holds no tinny" in error_of(lambda: found(f"{folder.parent.name}/tinny")).mend


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_config_that_needs_its_own_code_is_not_allowed(folder: Path) -> None:
    change_config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    assert isinstance(error_of(lambda: read_config(found(folder))), NotAllowed)
    change_config(folder, model_type="llama")
    assert read_config(found(folder)).model_type == "llama", "an architecture that transformers knows needs no own code"


def test_configs_that_cannot_be_used_are_refused(folder: Path) -> None:
    good = (folder / "config.json").read_text()
    for values, word in (
        ({"model_type": "llamma"}, "llamma"),
        ({"model_type": None}, "model_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"num_hidden_layers": "many"}, "cannot be read"),
    ):
        change_config(folder, **values)
        assert word in error_of(lambda: read_config(found(folder))).found
        (folder / "config.json").write_text(good)
    (folder / "config.json").write_text("{")
    assert isinstance(error_of(lambda: read_config(found(folder))), DataError)


def test_a_broken_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    error = error_of(lambda: read_tokenizer(found(folder)))
    assert isinstance(error, DataError)
    assert str(folder) in str(error)


@pytest.mark.parametrize("what", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_the_config_are_named(folder: Path, what: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    if what == "missing":
        del tensors[name]
    elif what == "unexpected":
        tensors["model.layers.1.mlp.extra.weight"] = torch.zeros(2)
        name = "model.layers.1.mlp.extra.weight"
    else:
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, path, {"format": "pt"})
    source = found(folder)
    error = error_of(lambda: read_weights(source, read_config(source), torch.float32))
    assert isinstance(error, DataError)
    assert name in error.found


@pytest.mark.parametrize("damage", ["cut", "no safetensors", "empty"])
def test_damaged_weights_are_named_with_their_file(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-100], "no safetensors": b"x" * 1000, "empty": b""}[damage])
    source = found(folder)
    error = error_of(lambda: read_weights(source, read_config(source), torch.float32))
    assert isinstance(error, DataError)
    assert error.file == str(path)


def test_a_gguf_file_gives_plain_weights(gguf_file: Path) -> None:
    source = found(gguf_file)
    assert (source.kind, source.gguf) == ("gguf", gguf_file)
    config = read_config(source)
    model = read_weights(source, config, torch.float32)
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(gguf_file).tensors}
    layer = model.get_submodule("model.layers.0")
    np.testing.assert_array_equal(layer.mlp.up_proj.weight.detach().numpy(), stored["blk.0.ffn_up.weight"])
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), stored["token_embd.weight"])
    assert read_tokenizer(source)("cab").input_ids == [4, 6]


def test_a_damaged_gguf_file_is_named(gguf_file: Path) -> None:
    data = gguf_file.read_bytes()
    for broken in (b"no gguf", data[:200], data[:-3000]):
        gguf_file.write_bytes(broken)
        source = found(gguf_file)
        error = error_of(lambda source=source: read_weights(source, read_config(source), torch.float32))  # type: ignore[misc]
        assert isinstance(error, DataError)
        assert error.file == str(gguf_file)


# ── fingerprints ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fingerprint_changes_with_weights_and_config_and_with_nothing_else(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    first = fingerprint(found(folder), root)
    (folder / "README.md").write_text("words")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert fingerprint(found(copy), root) == first
    change_config(copy, rms_norm_eps=1e-3)
    assert fingerprint(found(copy), root) != first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(0, 0))
    assert fingerprint(found(folder), root) != first


def test_a_second_fingerprint_reads_no_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return sha256_file(path)

    monkeypatch.setattr(fingerprints, "sha256_file", counted)
    source = found(folder)
    assert fingerprint(source, tmp_path) == fingerprint(source, tmp_path)
    assert len(read) == 2
    (tmp_path / fingerprints.INDEX).write_text("broken")
    fingerprint(source, tmp_path)
    assert len(read) == 4, "a broken index is made again"
