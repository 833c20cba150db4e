"""Pages as a browser reads them, and texts that would do harm if a page obeyed them."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = (
    '</dd></dl><script src="https://evil.example/x.js">alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "<a href='javascript:alert(1)'>here</a> {{ 7 * 7 }} {% raw %}",
    "<style>@import url(https://evil.example/x.css)</style><!--",
)


class Page(HTMLParser):
    """What a browser makes of a page: its elements, everything that they could load, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)
