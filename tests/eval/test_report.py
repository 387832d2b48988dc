"""Pages of runs: whole, escaped, without anything from elsewhere, and with every sample inside."""

import base64
import dataclasses
import gzip
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest

from eval import compare
from eval.browser import browser
from eval.charts import Row, curves, percent, whiskers
from eval.outputs import write_results
from eval.report import main, points, report, steps, table
from eval.stats import Interval
from eval.summarize import summarize, summarize_all
from gemma4_jax.errors import UserError
from tests.eval.made_runs import answers, judged, source, write_run

ROWS = [["0", "0", "0", "0"], ["2", "3", "3", "2"], ["5", None, None, "5"]]
EVIL = "</script><script>alert(1)</script><!-- <b>&amp; \u2028 \ud800 ${x} `"
VOID = {"meta", "img", "br", "input", "line", "circle", "polyline", "option"}


class Page(HTMLParser):
    """Fails on a tag that is closed out of order; notes scripts, and what would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        else:
            self.text += data

    def rows(self) -> dict:
        """What the script unpacks."""
        return json.loads(gzip.decompress(base64.b64decode(self.scripts[0])))


def _page(samples, results=None, run=None) -> Page:
    results = results or [summarize(source(), samples)]
    return Page(
        report("a run", results, run or {"models": {"f1": {"name": "gemma-4-E2B-it"}}}, samples)
    )


def test_a_report_says_what_there_is_and_loads_nothing():
    page = _page(answers(ROWS))
    assert page.sources == [] and len(page.scripts) == 2
    assert "http" not in "".join(page.scripts[1:])
    for words in (
        "gemma-4-E2B-it", "avg@4", "50.0%", "37.5", "89.2", "pass@2", "maj@4", "even (2)", "abab",
        "thought did not end", "are not published",
    ):  # fmt: skip
        assert words in page.text, words
    # Beside the score stands the published one of this model alone.
    row = page.text.split("cut off")[1].split("published")[0]
    assert "e2b 37.5" in row and "31b" not in row


def test_a_terminal_gets_the_same_scores():
    got = table(
        [summarize(source(), answers(ROWS))], {"models": {"f1": {"name": "gemma-4-E2B-it"}}}
    )
    assert re.search(
        r"Sums +gemma-4-E2B-it +thinking T=1 +3 x 4 +50\.0% \[.*\] +e2b 37\.5 +16\.7%", got
    )


def test_every_sample_is_in_the_page():
    rows = _page(answers(ROWS)).rows()
    assert len(rows["rows"]) == 12 and len(rows["prompts"]) == 3
    one = next(row for row in rows["rows"] if row["id"] == "q2" and row["sample"] == 1)
    assert one["extracted"] is None and one["truncated"] and one["unfinished"]
    assert (one["thought"], one["note"], one["category"]) == ("hm 1", "expected 4", "even")
    assert rows["prompts"][one["prompt"]] == "2 + 2?"


def test_no_text_can_break_out():
    samples = [
        dataclasses.replace(
            judged(0, 0, EVIL, thought=EVIL, messages=[{"role": "user", "content": EVIL}]),
            note=EVIL,
            category=EVIL,
        )
    ]
    results = [dataclasses.replace(summarize(source(1), samples), title=EVIL, notes=[EVIL])]
    page = _page(samples, results, {"models": {"f1": {"name": EVIL}}})
    assert len(page.scripts) == 2  # no third, and the two are whole
    row = page.rows()["rows"][0]
    assert (row["answer"], row["thought"], row["note"]) == (EVIL, EVIL, EVIL)
    # In the browser texts become text: the script has no way to make markup.
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page.scripts[1]
    )


def test_long_texts_are_cut_in_the_page_and_it_says_so():
    row = Page(
        "".join(browser({"": [judged(0, 0, "0", thought="a" * 16_000 + "b" * 50_000)]}))
    ).rows()["rows"][0]
    assert row["thought"].startswith("a" * 16_000 + "\n[... 42000 characters are left out")
    assert len(row["thought"]) < 25_000


def test_thousands_of_samples_make_a_page_in_seconds():
    samples = [
        judged(i, s, "0", thought=f"step {i} {s} " * 400) for i in range(500) for s in range(10)
    ]
    begin = time.process_time()
    text = "".join(browser({"": samples}))
    assert time.process_time() - begin < 20
    assert len(text) < 8e6


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_parses(tmp_path):
    file = tmp_path / "page.js"
    file.write_text(_page(answers(ROWS)).scripts[1])
    subprocess.run(["node", "--check", file], check=True)


def test_checkpoints_are_drawn_against_their_steps():
    first = answers([["1"], ["2"], ["3"]])
    second = answers([["0"], ["2"], ["4"]], "f2")
    results = summarize_all({"sums": source()}, second + first)
    run = {"models": {"f1": {"name": "runs/a/100"}, "f2": {"name": "step-200"}}}
    page = Page("".join(steps(results, run, first + second)))
    assert re.search(
        r"100\s*33\.3%.*200\s*100\.0%.*\+66\.7 \[", page.text.split("p\n")[-1], re.DOTALL
    )
    assert (
        steps(results, {"models": {"f1": {"name": "gemma-4"}, "f2": {"name": "a/200"}}}, first)
        == []
    )


def test_charts_stay_inside_and_escape():
    rows = [
        Row(name="<a>", score=Interval(0.0, 0.0, 0.1), mark=0.5),
        Row(name="b", score=Interval(1.0, 0.9, 1.0)),
    ]
    drawn = whiskers(rows, "published")
    assert "&lt;a&gt;" in drawn and "<a>" not in drawn
    lines = curves(
        {"x": [(1, Interval(0.5, 0.5, 0.5))], "y": [(1, Interval(0.5, 0.5, 0.5))]}, "step"
    )
    for svg in (drawn, lines):
        Page(svg)
        assert all(0 <= float(x) <= 760 for x in re.findall(r' c?x[12]?="([-\d.]+)"', svg))
    assert percent(Interval(0.425, 0.31, 0.551)) == "42.5% [31.0, 55.1]"
    assert points(Interval(0.03, -0.01, 0.07)) == "+3.0 [-1.0, +7.0]"


def test_the_command_writes_the_page_again(tmp_path, capsys):
    write_run(tmp_path, answers(ROWS))
    write_results(tmp_path, {"sums": source()})
    before = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    main([str(tmp_path)])
    assert (tmp_path / "report.html").read_text() == before
    assert capsys.readouterr().out.strip().endswith("report.html")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none")])


def _scored(folder, samples, models=None):
    write_run(folder, samples, models)
    write_results(folder, {"sums": source()})
    return str(folder)


def test_two_runs_side_by_side(tmp_path, capsys):
    a = _scored(tmp_path / "a", answers([["1", "0"], ["2", "2"], ["5", "5"]]))
    b = _scored(tmp_path / "b", answers([["0", "0"], ["2", "2"]]))
    out = tmp_path / "compare.html"
    compare.main([a, b, "--out", str(out)])
    said = capsys.readouterr().out
    # Over q0 and q1 alone: 0.75 and 1; q0 is better, by a half.
    assert re.search(r"Sums\s+2\s+75\.0% \[.*\]\s+100\.0% \[.*\]\s+\+25\.0 \[", said)
    assert re.search(r"0, 1\s+1\b", said)  # better on one, p = 1
    assert "1 questions have samples on one side alone" in said
    page = Page(out.read_text())
    assert {row["run"] for row in page.rows()["rows"]} == {"a", "b"}
    assert "where they differ (1 questions)" in page.text


def test_single_answers_are_compared_by_mcnemar(tmp_path):
    a = compare.open_side(_scored(tmp_path / "a", answers([["0"], ["3"], ["5"]])))
    b = compare.open_side(_scored(tmp_path / "b", answers([["0"], ["2"], ["4"]])))
    (duel,) = compare.duels(a, b)
    assert duel.comparison == compare.compare([1, 0, 0], [1, 1, 1])
    assert duel.notes == []


def test_a_folder_of_two_models_needs_a_name(tmp_path):
    models = {"f1": {"name": "small"}, "f2": {"name": "large"}}
    both = _scored(tmp_path / "both", answers([["0"]]) + answers([["1"]], "f2"), models)
    with pytest.raises(UserError, match="#MODEL"):
        compare.open_side(both)
    with pytest.raises(UserError, match="known: large, small"):
        compare.open_side(both + "#huge")
    side = compare.open_side(both + "#large")
    assert (side.name, [j.generation.model for j in side.judged["sums"]]) == ("large", ["f2"])
