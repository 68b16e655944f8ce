"""Between domain values and rows: what of a record is a column, what is payload, what is shared content.

Messages and tools lists repeat from call to call, so each is kept once, under its hash. What is left of the body and
every completion are payloads of their own rows. Numbers, names and codes are columns and stay readable without a key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from smallfirst.errors import StoreError
from smallfirst.recurring import derived
from smallfirst.store import facts, rollups
from smallfirst.store.crypto import Hasher, Sealer
from smallfirst.store.database import Connection, Row, insert
from smallfirst.types import Attempt, Completion, Feedback, Json, Record, Request, Trial, Usage, Verdict, Violation

RECORD_COLUMNS = (
    f"{facts.RECORD}, mode, reason, config_hash, wire, requested_model, served_model, user_hash, episode_hash, "
    "payload, rollout, arm, share, pending"
)
ATTEMPT_COLUMNS = (
    f"{facts.ATTEMPT}, n, stage, backend, model, confidence, seconds, first_token_s, cached_input_tokens, "
    "cache_write_tokens, reasoning_tokens, busy_seconds, features, payload"
)
FEEDBACK_COLUMNS = "id, record_id, created_at, kind, source, number, payload"

_SPLIT_BY_ITEM = frozenset({"messages", "input"})
_KEPT_WHOLE = frozenset({"tools", "system", "instructions"})
_HOUR_S = 3600
# Where a body names users and episodes (in OpenAI's and Anthropic's words, and ours): field to kind of origin.
_NAMED_IN_BODY = {"user": "user", "safety_identifier": "user"}
_NAMING = frozenset({*_NAMED_IN_BODY, "metadata"})
_NAMED_IN_METADATA = {"user_id": "user", "smallfirst_user": "user", "smallfirst_episode": "episode"}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot be stored")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_decode = msgspec.json.Decoder().decode


def encode(value: object) -> bytes:
    """`value` as JSON. Raises StoreError for what JSON cannot hold."""
    try:
        return _encoder.encode(value)
    except (TypeError, UnicodeEncodeError, msgspec.MsgspecError) as error:
        raise StoreError(f"The record holds a value that JSON cannot: {error}.") from error


def decode(data: bytes) -> Any:
    """What `encode` was given, as plain JSON values."""
    return _decode(data)


class Payload(msgspec.Struct, omit_defaults=True):
    """A request body in pieces: the contents of `split` are lists of hashes, of `whole` one hash each.

    `messages` is set when the chat messages are not those of the body, that is, on wires other than chat.
    """

    rest: dict[str, Any]
    split: dict[str, list[bytes]] = {}
    whole: dict[str, bytes] = {}
    messages: list[bytes] | None = None

    def hashes(self) -> list[bytes]:
        """Every content that this payload is made of."""
        return [h for hs in self.split.values() for h in hs] + [*self.whole.values(), *(self.messages or ())]


_ATTEMPT = ATTEMPT_COLUMNS.split(", ")
_N, _DECISION, _COST = map(_ATTEMPT.index, ("n", "decision", "cost_usd"))
_AS_THEY_ARE = [name for name in Attempt.__struct_fields__ if name in _ATTEMPT and name not in ("small", "features")]
_decode_payload = msgspec.json.Decoder(Payload).decode
# Log-probabilities are many numbers, some of them infinite: MessagePack holds them and is quick.
_encode_attempt = msgspec.msgpack.Encoder().encode
_decode_attempt = msgspec.msgpack.Decoder(tuple[Completion | None, tuple[Violation, ...], str | None]).decode


class RecordRows(msgspec.Struct, frozen=True):
    """A record ready for the database. `contents` maps a hash to its row; `hour` is the record's own, `fact` what the
    record adds to the sums."""

    record: Row
    attempts: Sequence[Row]
    contents: Mapping[bytes, Row]
    hour: int
    fact: Row


def hour_of(created_at: float) -> int:
    """The hour since the epoch, in which contents remember their last use."""
    return int(created_at // _HOUR_S)


class Codec:
    """Encodes and decodes under one keyring and one store's secret.

    `known` remembers, for contents that are durable already, the last hour they were written with; a content that is
    known for the record's hour is not written again.
    """

    _KNOWN_MAX = 10_000

    def __init__(self, sealer: Sealer, hasher: Hasher) -> None:
        self.sealer = sealer
        self.hasher = hasher
        self._known: dict[bytes, int] = {}

    def record(self, record: Record, *, capture: bool) -> RecordRows:
        """The rows of `record`; without `capture` there are no payloads and no contents."""
        request, origin = record.request, record.request.origin
        hour = hour_of(record.created_at)
        contents: dict[bytes, Row] = {}
        payload = None
        if capture:
            pieces = self._pieces(request, hour, contents)
            payload = self.sealer.seal(encode(pieces), f"record:{record.id}")
        served_model = "" if record.served is None else record.attempts[record.served].model
        row = (
            record.id,
            record.created_at,
            clean(record.task),
            record.decision,
            record.status,
            record.seconds,
            record.served,
            origin.key,
            record.mode,
            clean(record.reason),
            record.config_hash,
            request.wire,
            clean(request.model),
            clean(served_model),
            self.hasher.origin("user", origin.user),
            self.hasher.origin("episode", origin.episode),
            payload,
            *_trial(record.trial),
        )
        attempts = [self.attempt(record.id, n, a, capture=capture) for n, a in enumerate(record.attempts)]
        return RecordRows(row, attempts, contents, hour, facts.fact(row, attempts))

    def attempt(self, record_id: str, n: int, attempt: Attempt, *, capture: bool) -> Row:
        """The row of one attempt. Upstream's own answer (`native`) is not kept: the completion says the same."""
        completion, violations = attempt.completion, attempt.verdict.violations
        usage = completion.usage if completion else Usage()
        payload = None
        if capture:
            if completion is not None and completion.native is not None:
                completion = Completion(completion.choices, completion.usage, completion.model)
            data = _encode_attempt((completion, violations, attempt.error))
            payload = self.sealer.seal(data, f"attempt:{record_id}:{n}")
        return (
            record_id,
            attempt.kind,
            attempt.decision,
            clean(attempt.reason),
            int(attempt.small),
            int(completion is not None),
            " ".join(v.code for v in violations),
            attempt.probability,
            attempt.cost_usd,
            attempt.cost_usd_local_free,
            usage.input_tokens,
            usage.output_tokens,
            n,
            attempt.stage,
            attempt.backend,
            clean(attempt.model),
            attempt.confidence,
            attempt.seconds,
            attempt.first_token_s,
            usage.cached_input_tokens,
            usage.cache_write_tokens,
            usage.reasoning_tokens,
            usage.busy_seconds,
            encode(attempt.features).decode(),
            payload,
        )

    def learn(self, rows: RecordRows) -> None:
        """Remember that the contents of `rows` are durable."""
        if len(self._known) > self._KNOWN_MAX:
            self._known.clear()
        for content in rows.contents:
            self._known[content] = rows.hour

    def forget(self) -> None:
        """Remember nothing, because contents were removed."""
        self._known.clear()

    def _pieces(self, request: Request, hour: int, contents: dict[bytes, Row]) -> Payload:
        pieces = Payload(rest={})
        for name, value in self._pseudonymous(request.body).items():
            if name in _SPLIT_BY_ITEM and isinstance(value, list):
                pieces.split[name] = [self._content(item, hour, contents) for item in value]
            elif name in _KEPT_WHOLE:
                pieces.whole[name] = self._content(value, hour, contents)
            else:
                pieces.rest[name] = value
        if list(request.messages) != request.body.get("messages"):
            pieces.messages = [self._content(message, hour, contents) for message in request.messages]
        return pieces

    def _pseudonymous(self, body: Json) -> Json:
        """`body` with the users and episodes that it names as pseudonyms."""
        if _NAMING.isdisjoint(body):
            return body
        body, metadata = self._hashed(body, _NAMED_IN_BODY), body.get("metadata")
        return {**body, "metadata": self._hashed(metadata, _NAMED_IN_METADATA)} if isinstance(metadata, dict) else body

    def _hashed(self, fields: Json, kinds: Mapping[str, str]) -> Json:
        named = {name: kind for name, kind in kinds.items() if isinstance(fields.get(name), str)}
        return {**fields, **{name: self.hasher.origin(kind, fields[name]) for name, kind in named.items()}}

    def _content(self, value: object, hour: int, contents: dict[bytes, Row]) -> bytes:
        digest = derived(value, self._digest)
        if self._known.get(digest, -1) < hour and digest not in contents:
            contents[digest] = (digest, hour, self.sealer.seal(encode(value), content_row(digest)))
        return digest

    def _digest(self, value: object) -> bytes:
        return self.hasher.content(encode(value))

    def open_payload(self, record_id: str, envelope: bytes) -> Payload:
        return _decode_payload(self.sealer.open(envelope, f"record:{record_id}"))

    def open_content(self, digest: bytes, envelope: bytes) -> Any:
        return decode(self.sealer.open(envelope, content_row(digest)))

    def open_attempt(self, row: Row) -> Attempt:
        """The attempt of a row of ATTEMPT_COLUMNS."""
        kept = dict(zip(_ATTEMPT, row, strict=True))
        usage = Usage(**{name: kept[name] for name in Usage.__struct_fields__})
        completion = Completion((), usage, kept["model"]) if kept["answered"] else None
        violations = tuple(Violation(code, "") for code in kept["violations"].split())
        error = None
        if (payload := kept["payload"]) is not None:
            place = f"attempt:{kept['record_id']}:{kept['n']}"
            completion, violations, error = _decode_attempt(self.sealer.open(payload, place))
        return Attempt(
            **{name: kept[name] for name in _AS_THEY_ARE},
            completion=completion,
            small=bool(kept["small"]),
            verdict=Verdict(violations),
            features=features_of(kept["features"]),
            error=error,
        )

    def feedback(self, feedback: Feedback) -> Row:
        """The row of `feedback`: a label or score is a number, which reports read; words are sealed."""
        number = float(feedback.value) if feedback.kind in ("correct", "score") else None
        payload = None
        if number is None:
            payload = self.sealer.seal(encode(feedback.value), f"feedback:{feedback.id}")
        source = clean(feedback.source)
        return (feedback.id, feedback.record_id, feedback.created_at, feedback.kind, source, number, payload)

    def open_feedback(self, row: Row) -> Feedback:
        """The feedback of a row of FEEDBACK_COLUMNS."""
        feedback_id, record_id, created_at, kind, source, number, payload = row
        value = bool(number) if kind == "correct" else number
        if payload is not None:
            value = decode(self.sealer.open(payload, f"feedback:{feedback_id}"))
        return Feedback(feedback_id, record_id, created_at, kind, value, source)


def _trial(trial: Trial | None) -> Row:
    """The columns of a trial; its outcome is pending."""
    return (None, None, None, None) if trial is None else (trial.rollout, trial.arm, trial.share, 1)


def content_row(digest: bytes) -> str:
    """The identity that a content is sealed for."""
    return f"content:{digest.hex()}"


def features_of(text: str) -> dict[str, float]:
    """The features of an attempt; JSON's null stands for what is not a number."""
    return {name: math.nan if value is None else float(value) for name, value in decode(text.encode()).items()}


def clean(text: str) -> str:
    """`text` without what one of the databases refuses: NUL and lone surrogates."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode("utf-8", "replace").replace(b"\0", b"").decode()


def put_together(payload: Payload, contents: Mapping[bytes, Any]) -> tuple[Json, tuple[Json, ...]]:
    """The client's body and the chat messages from their pieces."""
    split = {name: [contents[h] for h in hashes] for name, hashes in payload.split.items()}
    whole = {name: contents[h] for name, h in payload.whole.items()}
    body = {**payload.rest, **split, **whole}
    if payload.messages is None:
        return body, tuple(split["messages"])
    return body, tuple(contents[h] for h in payload.messages)


def insert_records(connection: Connection, group: Sequence[RecordRows], *, repeated: bool = False) -> None:
    """Write a group of records. Contents go in order of their hash, so that two writers never wait for each other.

    With `repeated` records that are there already stay as they are; without it, which is quicker, one that is there
    raises Rejected.
    """
    contents: dict[bytes, Row] = {}
    for rows in group:
        for digest, row in rows.contents.items():
            if digest not in contents or contents[digest][1] < row[1]:
                contents[digest] = row
    insert(
        connection,
        "contents (hash, last_hour, payload)",
        [contents[digest] for digest in sorted(contents)],
        conflict="(hash) DO UPDATE SET last_hour = excluded.last_hour WHERE contents.last_hour < excluded.last_hour",
    )
    if repeated:
        for rows in group:
            rollups.insert_fact_once(connection, rows.record[0], rows.fact)
    else:
        rollups.insert_facts(connection, [rows.fact for rows in group])
    conflict = "DO NOTHING" if repeated else ""
    insert(connection, f"records ({RECORD_COLUMNS})", [rows.record for rows in group], conflict=conflict)
    insert_attempts(connection, [row for rows in group for row in rows.attempts])


def insert_later(
    connection: Connection, *, record_id: str, attempts: Sequence[Row] = (), feedback: Sequence[Row] = ()
) -> bool:
    """Write what came after the answer; False when the record is not there."""
    place = connection.query("SELECT created_at, task, key_id FROM records WHERE id = ?", (record_id,))
    if not place:
        return False
    decisions = [attempt[_DECISION] for attempt in attempts]
    if decisions[:1] == ["shadow"] and "audit" not in decisions:
        usd = sum(attempt[_COST] or 0.0 for attempt in attempts)
        rollups.insert_shadow(connection, place[0], usd, (record_id, attempts[0][_N]))
        insert_attempts(connection, attempts)
        return True
    with rollups.followed(connection, [record_id]):
        insert_attempts(connection, attempts)
        insert(connection, f"feedback ({FEEDBACK_COLUMNS})", feedback, conflict="DO NOTHING")
    return True


def insert_attempts(connection: Connection, rows: Sequence[Row]) -> None:
    """Write rows of ATTEMPT_COLUMNS; one that is there already stays as it is."""
    insert(connection, f"attempts ({ATTEMPT_COLUMNS})", rows, conflict="DO NOTHING")
