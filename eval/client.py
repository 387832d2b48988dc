"""JSON over HTTP, from many threads, against a server that may be down or busy for a while.

A request that fails for a reason that may pass (no connection, 429, 5xx) is tried again with growing pauses,
for `patience` seconds. Connections are kept. Standard library only. Not here: what is asked
(`server_backend.py`).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from eval.progress import say
from gemma4_jax.errors import UserError

KEY = "OPENAI_API_KEY"
# Seconds: the first pause and the longest.
_FIRST, _LONGEST = 0.5, 30.0
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class Refused(Exception):
    """The server has read a request and will not do it; `str(error)`: why, in its words."""


class Failed(Refused):
    """The server answers others, and fails at this request whenever it is tried."""


class _Unreached(OSError):
    """No connection; a request was not even sent."""


class Stopped(Exception):
    """Nobody waits for the answer any more."""


class Client:
    """One server. url: its base. timeout: seconds that an answer may take."""

    def __init__(self, url: str, timeout: float, patience: float) -> None:
        parts = urlsplit(url)
        if not parts.hostname:
            raise UserError(f"server.url is {url!r}; it must be like http://localhost:8000/v1")
        self.url = url.rstrip("/")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._base = parts.path.rstrip("/")
        self._timeout, self._patience = timeout, patience
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            self._headers["Authorization"] = f"Bearer {key}"
        self._local = threading.local()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._answered = 0.0  # when anything was, last
        self._told = float("-inf")  # when it was said last that the server fails

    def get(self, path: str) -> Any:
        """What the server has at a path below its base; errors as of `post`."""
        return self._insist("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The server's JSON answer.

        Raises Refused for a request that it will not do, UserError if it cannot be used or was not there for
        `patience` seconds, Stopped after `stop`.
        """
        return self._insist("POST", path, json.dumps(body).encode())

    def takes(self, path: str, body: Mapping[str, Any]) -> bool:
        """Whether the server answers this now; what is wrong otherwise is not said, and nothing tried again."""
        try:
            status, _, _ = self._once("POST", path, json.dumps(body).encode())
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def stop(self) -> None:
        """End what is under way, in all threads."""
        self._stopping.set()
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    # Wakes a thread that waits for the answer, which closing alone does not.
                    try:
                        connection.sock.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        continue

    def _insist(self, method: str, path: str, body: bytes | None) -> Any:
        since, pause = None, _FIRST
        while True:
            asked: float | None = None
            reached = True
            try:
                status, headers, content = self._once(method, path, body)
                if status not in _PASSING:
                    return self._read(path, status, content)
                why, asked = f"status {status}: {_message(content)}", _seconds(headers)
            except (OSError, http.client.HTTPException) as error:
                why, reached = _reason(error, self._timeout), not isinstance(error, _Unreached)
            if self._stopping.is_set():
                raise Stopped
            now = time.monotonic()
            since = now if since is None else since
            if now - since >= self._patience:
                self._give_up(since, why, reached)
            self._tell(why)
            wait = pause * random.uniform(0.5, 1.5) if asked is None else asked
            # The last try is at the end of its patience, not before.
            if self._stopping.wait(min(wait, since + self._patience - now)):
                raise Stopped
            pause = min(2 * pause, _LONGEST)

    def _once(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request on this thread's connection; on a new one if the kept one was closed by the server."""
        for _ in range(2):
            connection, kept = self._connection()
            try:
                connection.request(method, self._base + path, body, self._headers)
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                closed = isinstance(error, ConnectionError | http.client.RemoteDisconnected)
                if kept and closed and not self._stopping.is_set():
                    continue
                raise
            if response.will_close:
                self._drop(connection)
            return response.status, dict(response.getheaders()), content
        raise ConnectionError("closed twice")

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it was used before."""
        if self._stopping.is_set():
            raise Stopped
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            return connection, True
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.connect()
        except OSError as error:
            raise _Unreached(error.errno, _reason(error, self._timeout)) from None
        # A server that vanished without a word is noticed in minutes, not at the end of a long answer's
        # timeout.
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with self._lock:
            self._open.add(connection)
        self._local.connection = connection
        # Either `stop` finds it in the set, or what `stop` has set before is seen here.
        if self._stopping.is_set():
            raise Stopped
        return connection, False

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()
        self._local.connection = None

    def _read(self, path: str, status: int, content: bytes) -> Any:
        if status in (401, 403):
            has = "the key in" if KEY in os.environ else "no key: set"
            raise UserError(f"{self.url} wants another key ({status}); it got {has} ${KEY}")
        if status == 404:
            raise UserError(
                f"{self.url}{path} is not there (404: {_message(content)}); server.url must end where "
                "/chat/completions begins, and server.model must be a model it has"
            )
        if status in (400, 413, 422):
            raise Refused(f"the server says ({status}): {_message(content)}")
        if status != 200:
            raise UserError(f"{self.url}{path} answered with status {status}: {_message(content)}")
        self._answered = time.monotonic()
        try:
            return json.loads(content)
        except ValueError:
            raise UserError(
                f"{self.url}{path} did not answer with JSON: {content[:80]!r}"
            ) from None

    def _give_up(self, since: float, why: str, reached: bool) -> None:
        # A server that is shutting down answers what it has, and takes nothing new: that is no one's fault.
        if reached and self._answered > since:
            # Others are answered: it is this request that the server fails at.
            raise Failed(f"the server failed at it for {self._patience:g} s: {why}")
        what = "did not answer" if reached else "could not be reached"
        raise UserError(
            f"{self.url} {what} for {self._patience:g} s ({why}); what was generated is kept, the same command "
            "goes on"
        )

    def _tell(self, why: str) -> None:
        now = time.monotonic()
        with self._lock:
            new = now - self._told > _LONGEST
            self._told = now if new else self._told
        if new:
            say(f"{self.url}: {why}; trying again for up to {self._patience:g} s")


def _message(content: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        found = json.loads(content)
        error = found.get("error", found) if isinstance(found, dict) else found
        text = error.get("message", error) if isinstance(error, dict) else error
        text = str(text)
    except ValueError:
        text = content.decode(errors="replace")
    return " ".join(text.split())[:300] or "no message"


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait."""
    try:
        return max(0.0, float({k.lower(): v for k, v in headers.items()}["retry-after"]))
    except (KeyError, ValueError):
        return None


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return (
            f"no answer within {timeout:g} s, --server.timeout; where few are answered at once, the rest of "
            "--server.in-flight waits"
        )
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
