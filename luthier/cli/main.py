"""The program `luthier`: its commands, and what becomes of their errors.

Each command sits in its own file and imports what is heavy only when it runs, so that `--help` and completion are quick.
"""

from __future__ import annotations

import errno
import io
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer

from luthier.cli.bundle import bundle, replay
from luthier.cli.cache import cache
from luthier.cli.chat import chat
from luthier.cli.check import check
from luthier.cli.compare import compare
from luthier.cli.compare_methods import compare_methods
from luthier.cli.doctor import doctor
from luthier.cli.evaluate import evaluate
from luthier.cli.export import export
from luthier.cli.generate import generate
from luthier.cli.import_recipe import import_recipe
from luthier.cli.inspect import inspect, shrink
from luthier.cli.judge import judge
from luthier.cli.merge import merge
from luthier.cli.methods import methods
from luthier.cli.new import new
from luthier.cli.output import print_error, say
from luthier.cli.plan import plan
from luthier.cli.process import Signals, quiet_libraries
from luthier.cli.quickstart import quickstart
from luthier.cli.resume import resume
from luthier.cli.rlhf import rlhf
from luthier.cli.runs import runs
from luthier.cli.schema import schema
from luthier.cli.selftest import selftest
from luthier.cli.tokenizer import tokenizer
from luthier.cli.tournament import tournament
from luthier.cli.train import train
from luthier.errors import DiskFull, Interrupted, LuthierError, NotFound, ResourceError, UsageError
from luthier.ops.shortage import is_shortage
from luthier.version import __version__

# The parser's own error, of whichever click typer brings: typer itself exports only this subclass.
_UsageFault = cast("type[Exception]", typer.BadParameter.__base__)

app = typer.Typer(
    name="luthier",
    help="Fine-tune language models that you own. Begin with: luthier quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_BEGIN, _TUNE, _USE, _LOOK = "Begin", "Tune", "Use", "Look around"

app.command(rich_help_panel=_BEGIN)(quickstart)
app.command(rich_help_panel=_BEGIN)(new)
app.command("import", rich_help_panel=_BEGIN)(import_recipe)
app.command(rich_help_panel=_BEGIN)(check)
app.command(rich_help_panel=_BEGIN)(plan)
app.command(rich_help_panel=_BEGIN)(tokenizer)
app.command(rich_help_panel=_TUNE)(train)
app.command(rich_help_panel=_TUNE)(resume)
app.command(rich_help_panel=_TUNE)(evaluate)
app.command(rich_help_panel=_TUNE)(compare)
app.command("compare-methods", rich_help_panel=_TUNE)(compare_methods)
app.command(rich_help_panel=_TUNE)(judge)
app.command(rich_help_panel=_TUNE)(tournament)
app.command(rich_help_panel=_TUNE)(rlhf)
app.command(rich_help_panel=_USE)(chat)
app.command(rich_help_panel=_USE)(generate)
app.command(rich_help_panel=_USE)(merge)
app.command(rich_help_panel=_USE)(shrink)
app.command(rich_help_panel=_USE)(export)
app.command(rich_help_panel=_USE)(bundle)
app.command(rich_help_panel=_USE)(replay)
app.command(rich_help_panel=_LOOK)(inspect)
app.command(rich_help_panel=_LOOK)(runs)
app.command(rich_help_panel=_LOOK)(methods)
app.command(rich_help_panel=_LOOK)(schema)
app.command(rich_help_panel=_LOOK)(doctor)
app.command(rich_help_panel=_LOOK)(selftest)
app.add_typer(cache, name="cache", rich_help_panel=_LOOK)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Fine-tune language models that you own. Begin with: luthier quickstart"""
    quiet_libraries()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Errors are printed as their mend, or with `--json` as a document."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a sign gets its number, not a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    as_json = "--json" in words
    signals = Signals()
    try:
        with signals:
            code = app(words, prog_name="luthier", standalone_mode=False, obj=tuple(words))
        if code == 128 + signal.SIGINT:  # what some versions of typer make of a KeyboardInterrupt
            raise KeyboardInterrupt
    except _UsageFault as raised:
        fault = cast("typer.BadParameter", raised)
        if not as_json:
            fault.show()
            return fault.exit_code
        error: LuthierError = UsageError(fault.format_message(), "See luthier --help.")
    except LuthierError as raised:
        error = raised
    except (KeyboardInterrupt, typer.Abort, ImportError) as raised:
        if isinstance(raised, ImportError) and signals.came is None:
            raise
        error = Interrupted("Interrupted.", exit_code=128 + (signals.came or signal.SIGINT))
        if not as_json:
            say(error.found)
            return error.exit_code
    except OSError as raised:
        if raised.errno == errno.EPIPE:  # whoever read our output has left
            sys.stdout = None  # nothing is left to flush at exit
            return 1
        error = _of_system(raised)
    except (MemoryError, RuntimeError) as raised:
        if not is_shortage(raised):
            raise
        error = ResourceError("There is not enough memory.", "Close other programs, or use a smaller model or input.")
    else:
        return code if isinstance(code, int) else 0
    print_error(error, as_json)
    return error.exit_code


def _of_system(error: OSError) -> LuthierError:
    """What the operating system refused, as an error with a mend."""
    file = None if error.filename is None else str(error.filename)
    found = f"{error.strerror or error}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(found, "Free some space, or choose another place with --out.", file=file)
    if error.errno == errno.ENOMEM:
        return ResourceError(found, "Lower training.tokens_per_micro_batch, or close other programs.", file=file)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return NotFound(found, "Check the path.", file=file)
    return LuthierError(found, "Check the path and its permissions.", file=file)
