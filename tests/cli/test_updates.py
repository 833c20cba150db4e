"""`luthier inspect`, `luthier shrink`, `luthier merge` and `luthier export` through the program."""

from __future__ import annotations

from pathlib import Path

from program import within


def test_inspect_tells_the_rank_to_keep_and_draws_a_picture(trained: Path) -> None:
    told = within("inspect", "latest", folder=trained)
    assert told.code == 0, told.err
    assert "would keep 99 %" in told.out
    document = within("inspect", "runs/recipe-1", "--json", folder=trained).document
    assert (trained / document["plot"]).read_bytes().startswith(b"\x89PNG")
    assert document["rank_for_99_percent"] >= 1
    assert all(layer["effective_rank"] >= 1 for layer in document["layers"])


def test_shrink_writes_the_smaller_adapter_and_says_what_it_keeps(trained: Path, tmp_path: Path) -> None:
    ended = within("shrink", "latest", "--rank", "1", "--out", str(tmp_path / "small"), "--json", folder=trained)
    assert ended.code == 0, ended.err
    document = ended.document
    assert set(document["ranks"].values()) == {1}
    assert 0 < document["kept_energy"] <= 1
    assert (tmp_path / "small" / "adapter_config.json").is_file()
    again = within("shrink", "latest", "--rank", "1", "--out", str(tmp_path / "small"), folder=trained)
    assert again.code != 0
    assert "--out" in again.err


def test_combine_of_a_run_with_itself_at_half_weights_is_the_run(trained: Path, tmp_path: Path) -> None:
    words = ("merge", "latest", "latest", "--weight", "0.5", "--weight", "0.5", "--out", str(tmp_path / "mean"))
    ended = within(*words, "--json", folder=trained)
    assert ended.code == 0, ended.err
    assert ended.document["relative_error"] < 1e-5
    assert within("merge", "latest", "latest", "--weight", "1", "--out", "x", folder=trained).code != 0


def test_inspect_of_a_text_names_the_heads_whose_look_moved(trained: Path) -> None:
    told = within("inspect", "latest", "--text", "Where is parcel 3?", folder=trained)
    assert told.code == 0, told.err
    assert "of its look moved" in told.out
    document = within("inspect", "latest", "--text", "Where is parcel 3?", "--json", folder=trained).document
    assert "".join(document["tokens"]) == "Where is parcel 3?"
    assert (trained / document["plot"]).is_file()


def test_export_writes_a_model_and_says_what_quantizing_lost(trained: Path, tmp_path: Path) -> None:
    ended = within("export", "latest", "--quantize", "nf4", "--out", str(tmp_path / "model"), folder=trained)
    assert ended.code == 0, ended.err
    assert "Quantizing moved them by" in ended.out
    assert ended.out.rstrip().endswith(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").is_file()
    again = within("export", "latest", "--out", str(tmp_path / "model"), "--json", folder=trained)
    assert again.document["error"]["mend"] == "Choose another folder with --out."
