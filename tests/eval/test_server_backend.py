"""A server on this machine that does as it is told, or not: what it is sent, and what is made of its
answers."""

import hashlib
import json
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from configs.evals import EvalConfig, GenerationConfig, ServerConfig
from eval.asks import Cell, in_order
from eval.evaluate import evaluate
from eval.server_backend import read_reply
from eval.server_source import ServerSource
from eval.store import read
from gemma4_jax.errors import UserError

from .small_tasks import TASKS, write_items


class Fake:
    """What the server says, and what it was sent. Change its attributes while it runs."""

    def __init__(self):
        self.bodies, self.keys, self.most, self.now = [], [], 0, 0
        self.delay = 0.0
        self.fail = lambda number: None  # number of a request -> (status, headers, body), or "drop"
        self.text = self.obedient
        self.message = lambda text: {"role": "assistant", "content": text}
        self.finish = "stop"
        self.prompt_tokens = lambda thinking: 9 if thinking else 5
        self.models = ["tiny/model"]
        self.lock = threading.Lock()

    @staticmethod
    def obedient(body):
        seed = "likeliest" if body["top_k"] == 1 or body["temperature"] == 0 else body["seed"]
        text = json.dumps([body["messages"], seed]).encode()
        return hashlib.sha256(text).hexdigest()

    def answer(self, body):
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(self.delay)
            if failure := self.fail(number):
                return failure
            said = self.message(self.text(body))
            thinking = body["chat_template_kwargs"]["enable_thinking"]
            return 200, {}, self.completion(said, self.prompt_tokens(thinking))
        finally:
            with self.lock:
                self.now -= 1

    def completion(self, message, prompt_tokens=5):
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 10}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return {"choices": [choice], "usage": usage}

    @property
    def asked(self):
        """Bodies that were not the probe's."""
        return [body for body in self.bodies if body["temperature"] != 2.0]


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture
def url(fake):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def send(self, status, headers, body):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            self.send(200, {}, {"data": [{"id": name} for name in fake.models]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.keys.append(self.headers.get("Authorization"))
            if self.path != "/v1/chat/completions":
                self.send(404, {}, {"error": {"message": "no such path"}})
                return
            found = fake.answer(body)
            if found == "drop":
                self.close_connection = True
                return
            self.send(*found)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that went away
    fake.close = server.socket.close
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def config(url, tmp_path):
    return EvalConfig(
        server=ServerConfig(url=url, in_flight=8, patience=1.0, timeout=20.0),
        tasks=(write_items(tmp_path / "data", 5)[0],),
        workdir=str(tmp_path / "run"),
        generation=GenerationConfig(samples=4),
    )


def go(config):
    return evaluate([config], [ServerSource(config.server)], TASKS)


def stored(config):
    return list(read(Path(config.workdir) / "generations.jsonl"))


def test_what_a_server_is_sent(config, fake):
    assert go(config) == 0
    assert len(fake.asked) == len(stored(config)) == 20
    assert len({body["seed"] for body in fake.asked}) == 20
    body = fake.asked[0]
    del body["seed"], body["messages"]
    assert body == {
        "model": "tiny/model", "max_tokens": 16, "temperature": 1.0, "top_p": 0.95, "top_k": 40,
        "chat_template_kwargs": {"enable_thinking": True}, "skip_special_tokens": False,
        "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "repetition_penalty": 1.0, "repeat_penalty": 1.0,
    }  # fmt: skip
    assert set(fake.keys) == {None}
    one = stored(config)[0]
    assert (one.prompt_tokens, one.thought_tokens, one.answer_tokens) == (9, 0, 10)
    run = json.loads((Path(config.workdir) / "run.json").read_text())
    assert [m["name"] for m in run["models"].values()] == ["model"]


def test_filters_that_are_off_are_said_to_be_off_and_stops_are_sent(config, fake):
    off = replace(config, generation=GenerationConfig(samples=1, top_k=0, top_p=1, thinking=False))
    task = TASKS["has_a"]
    settings = {"thinking": replace(task.settings["thinking"], stop=("\n\n",))}
    evaluate([off], [ServerSource(off.server)], {"has_a": replace(task, settings=settings)})
    body = fake.asked[0]
    assert (body["top_k"], body["top_p"], body["stop"]) == (-1, 1.0, ["\n\n"])
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


class LlamaCppPython(Fake):
    """What `python -m llama_cpp.server` 0.3.36 was seen to do: -1 is no top_k and an error of the server, the
    template's arguments are those of its start, and one answers at a time."""

    def __init__(self):
        super().__init__()
        self.fail = lambda number: (
            (500, {}, {"error": {"message": "1 validation error:\n greater_than_equal"}})
            if self.bodies[number]["top_k"] < 0
            else None
        )
        self.prompt_tokens = lambda thinking: 51
        self.one = threading.Lock()

    def answer(self, body):
        with self.one:
            return super().answer(body)


@pytest.mark.parametrize("fake", [LlamaCppPython()])
def test_a_server_of_llama_cpp_python(config, fake, capsys):
    off = replace(config, generation=GenerationConfig(samples=2, top_k=0))
    assert go(off) == 0
    assert len(stored(off)) == 10
    assert {body["top_k"] for body in fake.asked} == {0}
    error = capsys.readouterr().err
    assert "trying again" not in error
    (warning,) = {line for line in error.splitlines() if line.startswith("warning")}
    assert "the server ignores chat_template_kwargs" in warning


def test_many_requests_are_in_flight(config, fake):
    deadline = time.monotonic() + 20

    def wait_for_others(body):
        while body["temperature"] != 2.0 and fake.most < 8 and time.monotonic() < deadline:
            time.sleep(0.002)
        return Fake.obedient(body)

    fake.text = wait_for_others
    go(config)
    assert fake.most == 8


def test_the_key_comes_from_the_environment(config, fake, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    go(config)
    assert set(fake.keys) == {"Bearer secret"}
    for file in Path(config.workdir).rglob("*"):
        assert file.is_dir() or b"secret" not in file.read_bytes()


def test_failures_that_pass_are_tried_again(config, fake, capsys):
    failed = Counter()

    def fail(number):
        body = fake.bodies[number]
        failed[body["seed"]] += body["temperature"] != 2.0
        if failed[body["seed"]] == 1:
            return [(503, {"Retry-After": "0"}, {"error": "busy"}), "drop"][number % 2]
        return None

    fake.fail = fail
    assert go(config) == 0
    assert len(stored(config)) == 20 and len(fake.asked) == 40
    assert capsys.readouterr().err.count("trying again for up to 1 s") == 1


def test_a_server_that_is_gone_ends_the_run_which_goes_on_later(config, fake):
    fake.fail = lambda number: "drop" if number > 15 else None
    start = time.monotonic()
    with pytest.raises(UserError, match=r"did not answer for 1 s .*the same command goes on"):
        go(config)
    assert 1.0 <= time.monotonic() - start < 6
    before = stored(config)
    assert 0 < len(before) < 20
    fake.fail = lambda number: None
    del fake.bodies[:]
    assert go(config) == 0
    assert stored(config)[: len(before)] == before
    assert len(fake.asked) == 20 - len(before)


def test_a_server_that_is_shutting_down_is_not_said_to_fail_at_items(config, fake):
    """It answers on the connections it has, for longer than the patience of those that need a new one."""

    def fail(number):
        if number < 30:
            return None
        fake.close()
        if number < 34:
            return 200, {"Connection": "close"}, fake.completion({"content": "last"})
        return None

    fake.fail, fake.delay = fail, 0.05
    some = replace(
        config,
        server=replace(config.server, patience=0.4),
        generation=GenerationConfig(samples=60),
    )
    with pytest.raises(UserError, match=r"could not be reached for 0.4 s .Connection refused."):
        go(some)
    assert len(stored(some)) > 30


def test_nobody_at_the_other_end(config):
    nobody = replace(config.server, url="http://127.0.0.1:9/v1", model="m", patience=0.3)
    with pytest.raises(
        UserError, match=r"127.0.0.1:9/v1 could not be reached for 0.3 s \(Connection refused\)"
    ):
        go(replace(config, server=nobody))


def test_one_request_that_the_server_fails_at_is_left_out(config, fake, capsys):
    fake.delay = 0.1
    bad = "has_a 2 apples?"
    server = replace(config.server, in_flight=6, patience=0.4)
    fake.fail = lambda number: (
        (500, {}, {"error": {"message": "out of luck"}})
        if bad in str(fake.bodies[number]["messages"])
        else None
    )
    assert go(replace(config, server=server)) == 1
    assert len(stored(config)) == 16
    assert "4 of 20 could not be asked" in capsys.readouterr().err


def too_long(fake, limit):
    """Refuse prompts of more than so many letters, max_tokens counted as letters too."""

    def fail(number):
        body = fake.bodies[number]
        wanted = len(body["messages"][0]["content"]) + body["max_tokens"]
        error = {"message": f"context of {limit} exceeded", "type": "invalid_request_error"}
        return (400, {}, {"error": error}) if wanted > limit else None

    return fail


def test_prompts_that_are_too_long_are_left_out_however_many_come_first(config, fake, capsys):
    file = Path(config.tasks[0].partition("=")[2])
    lengths = [60] * 20 + [1] * 4
    rows = [{"id": str(i), "kind": "", "question": "?" * n} for i, n in enumerate(lengths)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake.fail = too_long(fake, 60)
    assert go(config) == 1
    assert len(stored(config)) == 4 * 4
    assert len(fake.asked) == 24 * 4 + 1  # once: is a prompt of a word too long as well?
    error = capsys.readouterr().err
    assert "80 of 96 could not be asked, the first: has_a item" in error
    assert "the server says (400): context of 60 exceeded" in error


def test_what_no_prompt_is_answered_with_is_found_out_once(config, fake, capsys):
    """More max_tokens than the server has context: the other benchmark, with fewer, is answered."""
    tasks = write_items(Path(config.workdir).parent / "data", 40)[:2]
    most = replace(TASKS["has_e"].settings["thinking"], max_tokens=5000)
    known = {"has_a": TASKS["has_a"], "has_e": replace(TASKS["has_e"], settings={"thinking": most})}
    fake.fail = too_long(fake, 4000)
    both = replace(config, tasks=tuple(tasks), generation=GenerationConfig(samples=1))
    assert evaluate([both], [ServerSource(both.server)], known) == 1
    assert {one.task for one in stored(both)} == {"has_a"} and len(stored(both)) == 40
    # What was in flight when it was found out, and the question whether it is so.
    assert sum(body["max_tokens"] == 5000 for body in fake.asked) <= both.server.in_flight + 1
    error = capsys.readouterr().err
    assert "warning: has_e cannot be asked with these settings at all: the server says" in error
    assert "40 of 80 could not be asked" in error


def test_a_stopped_run_does_not_wait_for_answers(config, fake):
    source = ServerSource(config.server)
    backend = source.open()
    fake.delay = 15.0
    task = TASKS["has_a"]
    items = task.load(Path(config.tasks[0].partition("=")[2]))
    cell = Cell(
        task=task,
        items=items,
        model="m",
        protocol="thinking",
        settings=task.settings["thinking"],
        seed=0,
    )
    answers = backend.answers(in_order([cell], 0))
    assert next(answers) is None
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lambda body: Fake.obedient({**body, "top_k": 40}), "ignores top_k"),
        (lambda body: "copy " * 60, "the same for every seed"),
        (lambda body: str(time.time_ns()) if body["top_k"] != 1 else "x", "ignores seed"),
    ],
)
def test_a_server_that_does_not_do_as_told_is_found_out(config, fake, text, words, capsys):
    fake.text = text
    go(config)
    assert words in capsys.readouterr().err
    results = json.loads((Path(config.workdir) / "results.json").read_text())
    assert any(words in note for note in results["run"]["notes"])


def test_an_obedient_server_is_not_suspected(config, capsys):
    go(config)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": "no"}}, r"wants another key \(401\).*OPENAI_API_KEY"),
        (404, {"error": {"message": "no model x"}}, "is not there .404: no model x"),
        (400, {"message": "top_k is\nunknown"}, "does not take our requests: .*top_k is unknown"),
        (302, b"", "answered with status 302"),
        (200, b"<html>", "did not answer with JSON"),
        (200, {"result": 1}, "is no chat completion"),
        (200, {"choices": []}, "is no chat completion"),
    ],
)
def test_other_answers_end_the_run_in_one_line(config, fake, status, body, words):
    fake.fail = lambda number: (status, {}, body)
    with pytest.raises(UserError, match=words) as error:
        go(config)
    assert "\n" not in str(error.value)


def test_which_model(config, fake):
    fake.models = ["a", "b"]
    with pytest.raises(UserError, match=r"has 2 models \(a, b\); say which with --server.model"):
        go(config)
    named = ServerSource(replace(config.server, model="b"))
    assert (named.name, len(named.fingerprint)) == ("b", 16)


def completion(message, finish="stop", **usage):
    used = {"prompt_tokens": 7, "completion_tokens": 100, **usage}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": used}


THOUGHT = "<|channel>thought\nhm 13\n<channel|>42"


@pytest.mark.parametrize(
    ("message", "finish", "thought", "answer", "is_open"),
    [
        ({"content": "42", "reasoning_content": "hm"}, "stop", "hm", "42", False),
        ({"content": "42", "reasoning": "hm"}, "stop", "hm", "42", False),
        ({"content": None, "reasoning_content": "hm"}, "length", "hm", "", True),
        ({"content": "", "reasoning_content": "hm"}, "stop", "hm", "", True),
        ({"content": THOUGHT}, "stop", "hm 13", "42", False),
        ({"content": THOUGHT + "<turn|>"}, "stop", "hm 13", "42", False),
        ({"content": "<|channel>thought\nso 13"}, "length", "so 13", "", True),
        ({"content": "thought\nso 13"}, "length", None, "", True),  # control tokens were left out
        ({"content": "just 42"}, "stop", None, "just 42", False),
        ({"content": None}, "stop", None, "", False),
    ],
)
def test_thoughts_are_taken_apart_however_they_come(message, finish, thought, answer, is_open):
    found = read_reply(completion(message, finish), True, 1.0)
    if thought is not None:
        assert found.thought == thought
    assert (found.answer, found.unfinished_thought) == (answer, is_open)
    assert found.finish_reason == finish
    assert found.thought_tokens + found.answer_tokens == 100


def test_lengths_of_thoughts():
    message = {"content": "1234", "reasoning_content": "1" * 36}
    assert read_reply(completion(message), True, 1.0).thought_tokens == 90
    told = completion(message, completion_tokens_details={"reasoning_tokens": 77})
    assert read_reply(told, True, 1.0).thought_tokens == 77
    del told["usage"]
    assert read_reply(told, True, 1.0).answer_tokens == 0
