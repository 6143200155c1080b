"""Where deletion requests come in and answers go out: nodes hand theirs over, the operator files at the desk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedunlearn.deletion.events import Acknowledged, Filed, Refused
from fedunlearn.deletion.outbox import OutboxError, desk
from fedunlearn.deletion.plan import ServiceError, Site
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.signing import PublicKey, SigningKey, sha256
from fedunlearn.deletion.standing import Standing
from fedunlearn.deletion.statement import RequestProblem, Scope, Signed, is_id
from fedunlearn.federation import ClientId

__all__ = ["Reception"]

_OPERATOR = ""  # files at the server itself
_MOST_FILED = 100  # requests that one client may file at a time, and refusals of a client that are written down


class Reception:
    """Enters requests, once, refuses those that nobody may make, and tells whoever filed them how they stand.

    Args:
        site: where the clients are.
        register: that is written to.
        key: the server's, with which the operator signs.
    """

    def __init__(self, site: Site, register: Register, key: SigningKey) -> None:
        self._site, self._register, self._key = site, register, key
        self._desk = desk(register.folder)
        self._asking: dict[ClientId, set[str]] = {}  # what each filer has not been told the end of
        self._told: dict[str, str] = {}
        self._read: dict[str, Signed] = {}  # of the last look: what is open is brought again

    def look(self) -> None:
        """Bring answers, fetch and enter requests; once more where there is news for whoever has just filed."""
        for attempt in range(2):
            answers = self._answers()
            if attempt and not answers:
                return
            filed = dict(self._site.exchange({filer: told for filer, told in answers.items() if filer}))
            try:
                filed[_OPERATOR] = self._desk.exchange(list(answers.get(_OPERATOR, ())))
            except OutboxError as error:
                raise ServiceError(f"{error}: make room, or let this user write there, then start again") from None
            self._note_told([answer for filer in filed for answer in answers.get(filer, ())])
            self._asking = {filer: set[str]() for filer in filed}
            before, self._read = self._read, {}
            for filer, statements in filed.items():
                for content in statements[:_MOST_FILED]:
                    self._enter(filer, content, before)

    def _answers(self) -> dict[ClientId, list[dict[str, Any]]]:
        """By who filed it, what has changed of the requests that it still asks about."""
        standing, answers = self._standing, dict[ClientId, list[dict[str, Any]]]()
        for filer, asked in self._asking.items():
            for id in sorted(asked):
                if id in standing.requests:
                    entry = standing.requests[id]
                    state = "acknowledged" if entry.state == "filed" else entry.state
                    answer = {"request": id, "state": state, "why": entry.why, "receipt": entry.receipt}
                else:
                    answer = {"request": id, "state": "refused", "why": standing.turned_down[id].why, "receipt": None}
                if self._told.get(id) != answer["state"]:
                    answers.setdefault(filer, []).append(answer)
        return answers

    def _note_told(self, answers: Sequence[Mapping[str, Any]]) -> None:
        self._told |= {answer["request"]: answer["state"] for answer in answers}
        entered = [self._standing.requests.get(answer["request"]) for answer in answers]  # but for the refused
        self._register.append(
            *(
                Acknowledged(entry.request)
                for entry in entered
                if entry is not None and entry.state != "refused" and "acknowledged" not in entry.times
            )
        )

    def _enter(self, filer: ClientId, content: Any, before: Mapping[str, Signed]) -> None:
        """Enter a request, once; or refuse it."""
        standing = self._standing
        try:
            signed = self._signed(content, before)
            id = signed.statement.id
            known = standing.requests.get(id)
            if known is not None and known.key != signed.key:
                raise RequestProblem(f"request {id} is another's")
            if known is None and id not in standing.turned_down:
                client = self._about_whom(filer, signed)
                self._register.append(Filed(id, client, signed.json))
            self._asking[filer].add(id)
        except RequestProblem as problem:
            self._refuse(filer, content, str(problem))

    def _signed(self, content: Any, before: Mapping[str, Signed]) -> Signed:
        """A request, read: its signature is verified once, not at each look for as long as it is open."""
        try:
            digest = sha256(content)
        except (ValueError, TypeError, RecursionError):
            return Signed.of(content)
        self._read[digest] = before.get(digest) or Signed.of(content)
        return self._read[digest]

    def _about_whom(self, filer: ClientId, signed: Signed) -> ClientId | None:
        """Of whose data a request is; None: of a class, whoever holds it.

        Raises:
            RequestProblem: the filer may not ask this, or it was asked before.
        """
        said, clients = signed.statement, self._standing.clients
        scope = Scope.of(said.scope)
        if filer == _OPERATOR:
            if signed.key != self._key.public.text:
                raise RequestProblem("requests at the server are the operator's: sign them with the server's key")
            if scope.kind == "client" and not self._ever_enrolled(said.client):
                raise RequestProblem(f"there is no client {said.client!r} in this federation")
            if scope.kind == "class" and said.data == "deleted":
                raise RequestProblem(
                    "whether a class's samples are deleted its holders alone know: leave --deleted out"
                )
            if scope.kind == "class" and said.client is not None:
                raise RequestProblem("the operator asks for a class of everybody: leave --client out")
            client = said.client
        else:
            if clients and PublicKey.of(clients[filer]).text != signed.key:
                raise RequestProblem(f"a request that {filer} brings must be signed with {filer}'s own key")
            if said.client is not None:
                raise RequestProblem("a node files for its own samples: leave the client out")
            client = filer
        for entry in self._standing.concerning.get(client, ()):
            again = entry.scope == said.scope and scope.kind != "instances"
            if entry.state != "refused" and (again or entry.scope == "client"):
                raise RequestProblem(f"this was asked already, in request {entry.request}, whose receipt holds for it")
        return client

    def _ever_enrolled(self, client: ClientId | None) -> bool:
        """Whether the model may know of a client: of all that have ever been on the list."""
        return client in self._standing.enrolled or client in self._site.federation.clients

    def _refuse(self, filer: ClientId, content: Any, why: str) -> None:
        """Write a refusal down, once, and not without end where a node files nonsense."""
        said = content.get("statement") if isinstance(content, dict) else None
        id = said.get("id") if isinstance(said, dict) else None
        known = is_id(id) and id not in self._standing.requests
        try:
            signed = Signed.of(content).json
        except RequestProblem:
            signed = None
        refusal = Refused(str(id) if known else "", filer or None, why, signed)
        before = self._standing.refusals.get(refusal.client, ())
        if refusal not in before:
            if len(before) >= _MOST_FILED:
                return
            self._register.append(refusal)
        if known:
            self._asking[filer].add(str(id))

    @property
    def _standing(self) -> Standing:
        return self._register.standing()
