"""The program's manners: streams, exit codes, --json, and how soon it answers."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from program import luthier

from luthier.cli import main as program
from luthier.errors import DiskFull
from luthier.version import __version__

COMMANDS = (
    "quickstart",
    "new",
    "check",
    "train",
    "resume",
    "evaluate",
    "chat",
    "generate",
    "runs",
    "methods",
    "schema",
    "doctor",
    "selftest",
    "bundle",
    "replay",
    "cache",
)


def raising(error: BaseException) -> typer.Typer:
    """A program whose command only raises."""
    app = typer.Typer()

    @app.command()
    def fail(as_json: bool = typer.Option(False, "--json")) -> None:
        raise error

    return app


def test_the_version_is_data(tmp_path: Path):
    ended = luthier("--version", folder=tmp_path)
    assert (ended.code, ended.out, ended.err) == (0, __version__ + "\n", "")


def test_help_lists_every_command(tmp_path: Path):
    ended = luthier("--help", folder=tmp_path)
    assert ended.code == 0
    assert set(COMMANDS) <= set(ended.out.replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(capsys: pytest.CaptureFixture[str], command: str):
    words = [command, "list"] if command == "cache" else [command]
    assert program.main([*words, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_a_wrong_command_line_ends_with_2_and_says_why(tmp_path: Path):
    ended = luthier("trian", folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "train" in ended.err


def test_with_json_a_wrong_command_line_is_a_document_too(tmp_path: Path):
    ended = luthier("train", "--json", folder=tmp_path)
    assert ended.code == 2
    assert ended.document["error"]["kind"] == "UsageError"


def test_an_error_is_told_on_standard_error_with_its_mend_on_a_line_of_its_own(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("model: m\n")
    ended = luthier("train", "recipes.yaml", "--plain-allocator", folder=tmp_path)
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.splitlines() == ["error: recipes.yaml: There is no such recipe.", "  Did you mean recipe.yaml?"]


def test_with_json_an_error_is_one_document_on_standard_out(tmp_path: Path):
    ended = luthier("train", "recipe.yaml", "--json", folder=tmp_path)
    error = ended.document["error"]
    assert (ended.code, error["exit_code"], error["kind"], error["file"]) == (4, 4, "NotFound", "recipe.yaml")
    assert error["mend"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (DiskFull("full", "free some"), 6),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 6),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 6),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), 4),
        (MemoryError(), 6),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), 6),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_command_raises_becomes_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, as_json: bool
):
    monkeypatch.setattr(program, "app", raising(error))
    assert program.main(["--json"] if as_json else []) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert bool(out) == as_json
    if as_json:
        assert json.loads(out)["error"]["exit_code"] == code


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a process that a shell put into the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("in_import", [False, True])
def test_a_signal_ends_a_command_with_a_word_and_its_own_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
    as_json: bool,
    in_import: bool,
):
    app = typer.Typer()

    @app.command()
    def wait(as_json: bool = typer.Option(False, "--json")) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as interrupt:
            if in_import:
                raise ModuleNotFoundError("what a library makes of it while it is imported") from interrupt
            raise

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(program, "app", app)
    assert program.main(["--json"] if as_json else []) == code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    out, err = capsys.readouterr()
    if as_json:
        error = json.loads(out)["error"]
        assert (error["kind"], error["exit_code"]) == ("Interrupted", code)
    else:
        assert (out, err.strip()) == ("", "Interrupted.")


def test_a_terminal_that_lacks_a_sign_gets_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    rows = [json.dumps({"prompt": "Wo?", "completion": "Hier drüben."}, ensure_ascii=False)] * 3
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    ended = luthier("new", "rows.jsonl", "--out", "é.yaml", folder=tmp_path)
    assert (ended.code, ended.out) == (0, "\\xe9.yaml\n"), ended.err


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(program, "app", raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        program.main([])


@pytest.mark.parametrize(("words", "expected"), [("luthier tr", "train"), ("luthier train --dr", "--dry-run")])
def test_the_shell_completes_commands_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, expected: str
):
    monkeypatch.setenv("_LUTHIER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert expected in luthier(folder=tmp_path).out
