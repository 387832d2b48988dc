"""HTML without dependencies: escaped, whole, with pictures inside."""

import base64
from html.parser import HTMLParser
from pathlib import Path

from gemma4_jax import pages

VOID = {"meta", "img", "br"}


class Nesting(HTMLParser):
    """Fails on a tag that is closed out of order; notes what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_escaped_and_self_contained(tmp_path: Path) -> None:
    png = tmp_path / "plot.png"
    png.write_bytes(b"\x89PNG bytes")
    page = pages.page(
        "A <title>",
        [
            pages.heading("a < b"),
            pages.paragraph("x & y"),
            pages.table(("<th>", "n"), [("<script>", 3)], "caption"),
            pages.said("user", "<|turn>", "5 < 6", right=True),
            pages.said("model", "no", right=False),
            pages.verbatim("<|channel>thought"),
            pages.picture(png, 'a "plot"'),
        ],
    )
    nesting = Nesting()
    nesting.feed(page)
    nesting.close()
    assert nesting.open == []
    assert [source[:22] for source in nesting.sources] == ["data:image/png;base64,"]
    assert base64.b64encode(b"\x89PNG bytes").decode() in page
    for raw in ("<script>", "<|turn>", "<|channel>", "5 < 6", "A <title>"):
        assert raw not in page
    assert 'class="said right"' in page and 'class="said wrong"' in page


def test_a_text_table_lines_its_columns_up() -> None:
    lines = pages.text_table(("name", "n"), [("a long one", 1), ("b", 22)]).splitlines()
    assert lines == ["  name        n", "  a long one  1", "  b           22"]
