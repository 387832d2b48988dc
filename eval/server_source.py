"""A server's model as something to be asked: its name, and what the probe found."""

from __future__ import annotations

import hashlib
from typing import Any

from configs.evals import ServerConfig
from eval.client import Client, Refused
from eval.probe import probe, question
from eval.server_backend import ServerBackend, read_reply
from gemma4_jax.errors import UserError


class ServerSource:
    """One model of a server.

    Its fingerprint is its name alone: what weights stand behind that cannot be seen from outside.
    """

    def __init__(self, server: ServerConfig, *, top_k: bool = True) -> None:
        """top_k: whether it is going to be asked for."""
        self._server, self._top_k = server, top_k
        self.where = server.url
        self._model = server.model or self._only_model()
        self.name = self._model.rstrip("/").rpartition("/")[2]
        self.fingerprint = hashlib.sha256(f"server {self._model}".encode()).hexdigest()[:16]
        self._notes: list[str] = []

    def _client(self) -> Client:
        return Client(self._server.url, self._server.timeout, self._server.patience)

    def _only_model(self) -> str:
        client = self._client()
        try:
            names = [str(model["id"]) for model in client.get("/models")["data"]]
        except (Refused, KeyError, TypeError):
            raise UserError(
                f"{self.where} does not say which models it has; give --server.model"
            ) from None
        if len(names) != 1:
            raise UserError(
                f"{self.where} has {len(names)} models ({', '.join(names[:8])}); say which with --server.model"
            )
        return names[0]

    def open(self) -> ServerBackend:
        """Ask the probe's questions, then be ready for the others."""
        client = self._client()

        def write(seed: int, top_k: int) -> str:
            answer: Any = client.post("/chat/completions", question(self._model, seed, top_k))
            return read_reply(answer, False, 0.0).text

        try:
            self._notes = probe(write, top_k=self._top_k)
        except Refused as error:
            raise UserError(f"{self.where} does not take our requests: {error}") from None
        return ServerBackend(client, self._model, self._server.in_flight)

    def notes(self) -> list[str]:
        """What the probe found."""
        return self._notes
