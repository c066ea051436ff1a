"""Pages of the report as tests read them."""

from __future__ import annotations

import html.parser
import pathlib
import re

from calrec_jax.report import page


def checked(path: pathlib.Path) -> str:
    """A page's source, once it is sure to be well formed, to ask for nothing from outside and to
    run no script but ours."""
    source = path.read_text("utf-8")
    parser = Balanced()
    parser.feed(source)
    assert not parser.open and parser.scripts == [page._SCRIPT]
    assert not re.search(r"https?:|<link|<img|<iframe|url\(|@import", source)
    return source


class Balanced(html.parser.HTMLParser):
    """Checks that elements are closed in the order in which they were opened; collects scripts."""

    EMPTY = ("meta", "br", "wbr", "input")

    def __init__(self):
        super().__init__()
        self.open = []
        self.scripts = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def shown(source: str) -> str:
    """The text that a reader sees if the page's script does not run."""
    text = re.sub(r"<(style|script).*?</\1>", "", source, flags=re.DOTALL)
    text = re.sub(r"</?(span|wbr|code|small)[^>]*>", "", text)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def headings(source: str) -> list[str]:
    return [shown(text) for text in re.findall(r"<h2>(.*?)</h2>", source)]
