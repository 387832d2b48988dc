"""A server's model as something to be asked: its name, and what the probe found."""

from __future__ import annotations

import hashlib
from typing import Any

from configs.evals import ServerConfig
from eval.backend import Reply
from eval.client import Client, Refused
from eval.probe import ALL_TOKENS, probe, question
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

        def asked(**how: Any) -> Reply:
            answer = client.post("/chat/completions", question(self._model, **how))
            return read_reply(answer, False, 0.0)

        # With the first where none is taken: what is wrong is said below, or passes.
        off = next((value for value in ALL_TOKENS if self._takes(client, value)), ALL_TOKENS[0])
        try:
            self._notes = probe(
                lambda seed, top_k: asked(seed=seed, top_k=top_k).text,
                lambda thinking: (
                    asked(seed=0, top_k=off, tokens=1, thinking=thinking).prompt_tokens
                ),
                off,
                top_k=self._top_k,
            )
        except Refused as error:
            raise UserError(f"{self.where} does not take our requests: {error}") from None
        return ServerBackend(client, self._model, self._server.in_flight, off)

    def _takes(self, client: Client, top_k: int) -> bool:
        return client.takes("/chat/completions", question(self._model, 0, top_k, tokens=1))

    def notes(self) -> list[str]:
        """What the probe found."""
        return self._notes
