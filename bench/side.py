"""How a contestant's process begins: its arguments, and the allocator before anything heavy is imported."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from luthier.cli.process import keep_freed_memory


def begin(description: str, *, own_allocator: bool) -> argparse.Namespace:
    """The arguments: `work` (a folder), `result` (a file to write) and `overrides` of the recipe (Luthier only).

    own_allocator: whether freed memory is kept unless `--plain-allocator` is given, or only if `--keep-freed-memory` is.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", type=Path)
    parser.add_argument("result", type=Path)
    if own_allocator:
        parser.add_argument("--plain-allocator", dest="keep_freed_memory", action="store_false")
        parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    else:
        parser.add_argument("--keep-freed-memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.keep_freed_memory and not keep_freed_memory(say):
        say("The allocator's settings did not take effect: this C library is not glibc.")
    return arguments


def say(line: str) -> None:
    """Write a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)
