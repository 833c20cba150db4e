"""The terminal at which a person judges: a pair on standard error, and the choice read from a line of standard in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from luthier.evaluation.judged.blind import prompt_text
from luthier.evaluation.judged.session import Said, Shown

KEYS: dict[str, Said] = {
    "1": Said("first", 1),
    "2": Said("second", 1),
    "1+": Said("first", 2),
    "2+": Said("second", 2),
    "t": Said("tie"),
    "b": Said("both bad"),
    "s": Said("skip"),
    "u": Said("undo"),
    "q": Said("quit"),
}
_HELP = "1 or 2 the better one (1+ or 2+: much better), t as good, b both bad, s skip, u take back the last, q quit"
_AT_END = "All are judged. Enter ends; u takes the last choice back."


class Screen:
    """Asks as `luthier.evaluation.judged.session.Ask` does."""

    def __init__(self, console: Console | None = None, read: Callable[[], str] | None = None) -> None:
        self._console = Console(stderr=True, highlight=False) if console is None else console
        self._read = _reader(sys.stdin) if read is None else read

    def __call__(self, shown: Shown | None) -> Said:
        """Show a pair, and read until a line says something; the end of standard in quits."""
        if shown is None:
            self._print(_AT_END)
        else:
            self._show(shown)
        while True:
            self._console.print("> ", end="")
            line = self._read()
            word = line.strip().lower()
            if not line:
                self._print("")
                return KEYS["q"]
            if shown is None:
                return KEYS["u" if word == "u" else "q"]
            if word in KEYS:
                return KEYS[word]
            self._print(_HELP)

    def _show(self, shown: Shown) -> None:
        self._console.print()
        self._console.print(Rule(f"{shown.number} of {shown.total}", style="bold"))
        if shown.guideline:
            self._print(shown.guideline, "italic")
        self._print(prompt_text(shown.prompt))
        for number, text in enumerate((shown.first, shown.second), start=1):
            self._console.print(Rule(Text(str(number)), align="left"))
            self._print(text or "(an empty answer)")
        self._console.print(Rule())
        self._print(_HELP, "dim")

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(visible(text), style=style), soft_wrap=True)


def _reader(stream: TextIO) -> Callable[[], str]:
    from luthier.cli.output import reading_standard_in

    def read() -> str:
        with reading_standard_in():
            return stream.readline()

    return read


def visible(text: str) -> str:
    """The text with signs that steer a terminal written out: an answer must not repaint the screen that it is judged on."""
    return "".join(
        sign if sign in "\n\t" or not ("\x00" <= sign < " " or "\x7f" <= sign < "\xa0") else repr(sign)[1:-1]
        for sign in text
    )
