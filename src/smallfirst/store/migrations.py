"""The schema, as numbered steps. Every statement runs on SQLite and on PostgreSQL alike.

SQLite takes PostgreSQL's type names: BIGINT is an integer there, DOUBLE PRECISION a real, and BYTEA keeps bytes as
they are. A released step is never changed; a new one is appended. A step that SQL cannot say is a function.
"""

from __future__ import annotations

from collections.abc import Callable

from smallfirst.errors import ConfigError
from smallfirst.store import rollups
from smallfirst.store.database import Connection

_RECORDS = """
CREATE TABLE records (
    id TEXT PRIMARY KEY,
    created_at DOUBLE PRECISION NOT NULL,
    task TEXT NOT NULL,
    mode TEXT NOT NULL,
    decision TEXT NOT NULL,
    reason TEXT NOT NULL,
    status BIGINT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    config_hash TEXT NOT NULL,
    served BIGINT,
    wire TEXT NOT NULL,
    requested_model TEXT NOT NULL,
    served_model TEXT NOT NULL,
    key_id TEXT NOT NULL,
    user_hash TEXT,
    episode_hash TEXT,
    payload BYTEA
)"""

_ATTEMPTS = """
CREATE TABLE attempts (
    record_id TEXT NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    n BIGINT NOT NULL,
    stage TEXT NOT NULL,
    backend TEXT NOT NULL,
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    decision TEXT NOT NULL,
    reason TEXT NOT NULL,
    small BIGINT NOT NULL,
    answered BIGINT NOT NULL,
    violations TEXT NOT NULL,
    confidence DOUBLE PRECISION,
    cost_usd DOUBLE PRECISION,
    cost_usd_local_free DOUBLE PRECISION,
    seconds DOUBLE PRECISION NOT NULL,
    first_token_s DOUBLE PRECISION,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cached_input_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    busy_seconds DOUBLE PRECISION,
    features TEXT NOT NULL,
    payload BYTEA,
    PRIMARY KEY (record_id, n)
)"""

_FEEDBACK = """
CREATE TABLE feedback (
    id TEXT PRIMARY KEY,
    record_id TEXT NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    created_at DOUBLE PRECISION NOT NULL,
    kind TEXT NOT NULL,
    source TEXT NOT NULL,
    number DOUBLE PRECISION,
    payload BYTEA
)"""

_KEYS = """
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    secret_hash BYTEA NOT NULL,
    limits TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    revoked_at DOUBLE PRECISION
)"""

_SPEND = """
CREATE TABLE spend (
    key_id TEXT NOT NULL,
    period_start DOUBLE PRECISION NOT NULL,
    nano_usd BIGINT NOT NULL,
    PRIMARY KEY (key_id, period_start)
)"""

_RESERVATIONS = """
CREATE TABLE reservations (
    id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL,
    period_start DOUBLE PRECISION NOT NULL,
    nano_usd BIGINT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL
)"""

_RESPONSES = """
CREATE TABLE responses (
    key_hash TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    payload BYTEA NOT NULL
)"""

_TASKS = """
CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    settled BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    created_at DOUBLE PRECISION NOT NULL
)"""

_CALIBRATIONS = """
CREATE TABLE calibrations (
    id TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    stage TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    payload TEXT NOT NULL
)"""

_MONITORS = """
CREATE TABLE monitors (
    task TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    state TEXT NOT NULL
)"""

_VERSIONS = """
CREATE TABLE versions (
    id TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    payload BYTEA NOT NULL
)"""

_RELEASES = """
CREATE TABLE releases (
    task TEXT PRIMARY KEY,
    changes BIGINT NOT NULL,
    live TEXT NOT NULL,
    previous TEXT NOT NULL,
    candidate TEXT NOT NULL,
    rollout TEXT NOT NULL,
    evidence TEXT NOT NULL,
    changed_at DOUBLE PRECISION NOT NULL,
    changed_by TEXT NOT NULL
)"""

_MOVES = """
CREATE TABLE moves (
    id TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    moved_by TEXT NOT NULL,
    version TEXT NOT NULL,
    step TEXT NOT NULL,
    share DOUBLE PRECISION NOT NULL,
    reason TEXT NOT NULL
)"""

_JOBS = """
CREATE TABLE jobs (
    task TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    beat DOUBLE PRECISION NOT NULL,
    state TEXT NOT NULL
)"""

MIGRATIONS: tuple[tuple[str | Callable[[Connection], None], ...], ...] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, payload BYTEA NOT NULL)",
        _RECORDS,
        "CREATE INDEX records_by_time ON records (created_at, id)",
        "CREATE INDEX records_by_episode ON records (episode_hash) WHERE episode_hash IS NOT NULL",
        _ATTEMPTS,
        "CREATE TABLE contents (hash BYTEA PRIMARY KEY, last_hour BIGINT NOT NULL, payload BYTEA NOT NULL)",
        "CREATE INDEX contents_by_hour ON contents (last_hour)",
        _FEEDBACK,
        "CREATE INDEX feedback_by_record ON feedback (record_id, created_at)",
        _KEYS,
        _SPEND,
        _RESERVATIONS,
        "CREATE INDEX reservations_by_key ON reservations (key_id, period_start)",
        _RESPONSES,
    ),
    ("CREATE INDEX records_by_task ON records (task, created_at, id)",),
    (_TASKS,),
    ("ALTER TABLE attempts ADD COLUMN probability DOUBLE PRECISION",),
    (
        _CALIBRATIONS,
        "CREATE UNIQUE INDEX calibrations_by_task ON calibrations (task, stage, created_at, id)",
        _MONITORS,
    ),
    (
        _VERSIONS,
        _RELEASES,
        _MOVES,
        "CREATE INDEX moves_by_time ON moves (task, at, id)",
        "ALTER TABLE records ADD COLUMN rollout TEXT",
        "ALTER TABLE records ADD COLUMN arm TEXT",
        "ALTER TABLE records ADD COLUMN share DOUBLE PRECISION",
        "ALTER TABLE records ADD COLUMN pending BIGINT",
        "CREATE INDEX records_pending ON records (rollout, created_at, id) WHERE pending = 1",
    ),
    (_JOBS,),
    rollups.SCHEMA,
    (
        *rollups.DAYS,
        "DROP INDEX records_by_time",
        "CREATE INDEX records_by_time ON records (created_at, id, decision, reason, served_model, key_id, status)",
        rollups.rebuild,
    ),
    (rollups.put_buckets_in_numbers,),
    (
        # Ids sort by time themselves and are only needed where two records share a time.
        "DROP INDEX records_by_time",
        "CREATE INDEX records_by_time ON records (created_at, decision, reason, served_model, key_id, status)",
        "DROP INDEX records_by_task",
        "CREATE INDEX records_by_task ON records (task, created_at)",
    ),
)


def migrate(connection: Connection) -> None:
    """Bring the schema to the newest version. Any number of processes may do so at once.

    Raises ConfigError when the database was written by a newer smallfirst, StoreError when it cannot be written.
    """
    with connection.transaction():
        connection.lock_schema()
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        [(version,)] = connection.query("SELECT coalesce(max(version), 0) FROM schema_version")
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"The database has schema version {version}; this smallfirst knows versions up to {len(MIGRATIONS)}.",
                hint="Upgrade smallfirst, or name another database.",
            )
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements:
                if isinstance(statement, str):
                    connection.execute(statement)
                else:
                    statement(connection)
            connection.execute("INSERT INTO schema_version (version) VALUES (?)", (number,))
