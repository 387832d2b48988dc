"""Every sample of a run, to be searched and read in a page: prompt, thought, answer, verdict.

The rows lie in the page compressed and the browser makes elements of those alone that are looked at, so that
thousands stay quick. Nothing is loaded from anywhere. Texts reach the page as text: the script never writes
markup, and base64 cannot end a script element. Not here: numbers and tables (report.py).
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

from eval.judged import Judged

# Of a text in the page, characters at its beginning and at its end; generations.jsonl has all of them.
_HEAD, _TAIL = 16_000, 8_000

_STYLE = """
#samples details { border-left: 3px solid #8b8d98; padding-left: .8rem; margin: .4rem 0; }
#samples details.right { border-color: #30a46c; } #samples details.wrong { border-color: #e5484d; }
#samples summary { cursor: pointer; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#find { display: flex; flex-wrap: wrap; gap: .5rem; position: sticky; top: 0; padding: .5rem 0;
        background: var(--paper); }
#find input { flex: 1 1 16rem; } #find input, #find select { font: inherit; max-width: 100%; }
"""

_SCRIPT = """
(async () => {
  const list = document.getElementById("samples"), told = document.getElementById("count");
  const made = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  let data;
  try {
    const packed = atob(document.getElementById("rows").textContent.trim());
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    data = JSON.parse(await new Response(stream).text());
  } catch (error) {
    told.textContent = "Unpacking the samples failed (" + error + "); generations.jsonl has them.";
    return;
  }
  const tests = {
    "right": row => row.score === 1, "wrong": row => row.score === 0,
    "in between": row => row.score > 0 && row.score < 1, "no answer": row => row.extracted === null,
    "ran out of tokens": row => row.truncated, "thought did not end": row => row.unfinished,
  };
  const chosen = {};
  const choice = (name, values) => {
    if (values.length < 2) return;
    const select = made("select");
    select.setAttribute("aria-label", name);
    for (const value of ["", ...values]) {
      const option = made("option", "", value || "any " + name);
      option.value = value;
      select.append(option);
    }
    select.addEventListener("change", () => { chosen[name] = select.value; show(); });
    document.getElementById("find").append(select);
  };
  const distinct = name => [...new Set(data.rows.map(row => row[name]))].filter(value => value).sort();
  for (const name of ["run", "task", "category"]) choice(name, distinct(name));
  choice("verdict", Object.keys(tests).filter(name => data.rows.some(tests[name])));
  const texts = row => [row.id, data.prompts[row.prompt], row.thought, row.answer, row.extracted, row.note];
  const body = row => {
    const part = (who, text) => text && [made("div", "who", who), made("pre", "", text)];
    return [
      part("prompt", data.prompts[row.prompt]), part("thought", row.thought), part("answer", row.answer),
      part("found", row.extracted), part("verdict", row.score + (row.note ? ": " + row.note : "")),
      part("lengths", row.lengths),
    ].filter(Boolean).flat();
  };
  const element = row => {
    const kind = row.score === 1 ? "right" : row.score === 0 ? "wrong" : "";
    const box = made("details", kind);
    const marks = ["no answer", "ran out of tokens", "thought did not end"].filter(name => tests[name](row));
    const line = [row.run, row.task, row.id, "sample " + row.sample, row.score, row.extracted, ...marks];
    box.append(made("summary", "", line.filter(text => text !== "" && text !== null).join(" \\u00b7 ")));
    box.addEventListener("toggle", () => {
      if (box.open && box.children.length === 1) box.append(...body(row));
    });
    return box;
  };
  let found = [], shown = 0;
  const more = made("button", "", "more");
  const add = () => {
    list.append(...found.slice(shown, shown + 50).map(element));
    shown = Math.min(found.length, shown + 50);
    more.hidden = shown === found.length;
  };
  more.addEventListener("click", add);
  list.after(more);
  const box = document.getElementById("search");
  const show = () => {
    const words = box.value.replace(/[.*+?^${}()|[\\]\\\\]/g, "\\\\$&");
    const wanted = words ? new RegExp(words, "i") : null;
    found = data.rows.filter(row =>
      ["run", "task", "category"].every(name => !chosen[name] || row[name] === chosen[name])
      && (!chosen.verdict || tests[chosen.verdict](row))
      && (!wanted || texts(row).some(text => text && wanted.test(text))));
    told.textContent = found.length + " of " + data.rows.length + " samples";
    list.replaceChildren();
    shown = 0;
    add();
  };
  let waiting;
  box.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 200); });
  show();
})();
"""


def browser(runs: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Parts of a page. runs: samples by what to call them; "" for the only one."""
    packed = gzip.compress(json.dumps(_document(runs), separators=(",", ":")).encode(), 6, mtime=0)
    return [
        f"<style>{_STYLE}</style>",
        '<div id="find"><input id="search" type="search" aria-label="search" '
        'placeholder="search prompts, thoughts, answers, verdicts"></div>',
        '<p id="count">Reading the samples needs JavaScript; all are in generations.jsonl.</p>',
        '<div id="samples"></div>',
        f'<script type="text/plain" id="rows">{base64.b64encode(packed).decode()}</script>',
        f"<script>{_SCRIPT}</script>",
    ]


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation for people; a lone user message without its role."""
    if len(messages) == 1 and messages[0].get("role") == "user":
        return _content(messages[0])
    return "\n\n".join(f"{m.get('role', '')}: {_content(m)}" for m in messages)


def _document(runs: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    prompts: dict[str, int] = {}
    rows = [_row(name, j, prompts) for name, judged in runs.items() for j in judged]
    rows.sort(key=lambda row: (row["task"], row["id"], row["run"], row["sample"]))
    return {"prompts": list(prompts), "rows": rows}


def _row(run: str, judged: Judged, prompts: dict[str, int]) -> dict[str, Any]:
    g = judged.generation
    prompt = _clipped(prompt_text(g.messages))
    return {
        "run": run,
        "task": g.task,
        "id": g.item,
        "sample": g.sample,
        "category": judged.category,
        "score": judged.score,
        "extracted": None if judged.extracted is None else _clipped(judged.extracted),
        "note": _clipped(judged.note),
        "prompt": prompts.setdefault(prompt, len(prompts)),
        "thought": _clipped(g.thought or ""),
        "answer": _clipped(g.answer),
        "truncated": g.truncated,
        "unfinished": g.unfinished_thought,
        "lengths": f"{g.prompt_tokens} tokens of prompt, {g.thought_tokens} of thought, "
        f"{g.answer_tokens} of answer, {g.seconds:.1f} s",
    }


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content", "")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _clipped(text: str) -> str:
    left_out = len(text) - _HEAD - _TAIL
    if left_out <= 0:
        return text
    note = f"\n[... {left_out} characters are left out here; generations.jsonl has them ...]\n"
    return text[:_HEAD] + note + text[-_TAIL:]
