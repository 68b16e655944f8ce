"""Work on tasks that goes on for long: where each job stands, and who does it.

One process at a time owns a job. It shows by `beat` (seconds since the epoch) that it lives; when the beat is old, or
the owner is known to be gone, another may claim the job and go on from its state.
"""

from __future__ import annotations

from collections.abc import Callable

from smallfirst.store.database import Connection

STALE_S = 120.0
"""A beat older than that is a dead owner's."""


def claim_job(connection: Connection, task: str, owner: str, now: float, gone: Callable[[str], bool]) -> str | None:
    """The state of the task's job ("" when it has none), which is `owner`'s from now on; None while another has it."""
    lock = (
        "INSERT INTO jobs (task, owner, beat, state) VALUES (?, '', 0.0, '') "
        "ON CONFLICT (task) DO UPDATE SET beat = jobs.beat RETURNING owner, beat, state"
    )
    [(other, beat, state)] = connection.query(lock, (task,))
    if other and other != owner and now - beat < STALE_S and not gone(other):
        return None
    connection.execute("UPDATE jobs SET owner = ?, beat = ? WHERE task = ?", (owner, now, task))
    return str(state)


def beat_job(connection: Connection, task: str, owner: str, now: float, state: str | None) -> bool:
    """Show that the owner lives, with a new state if there is one; False when the job is not the owner's any more."""
    sql = "UPDATE jobs SET beat = ?, state = coalesce(?, state) WHERE task = ? AND owner = ? RETURNING task"
    return bool(connection.query(sql, (now, state, task, owner)))


def leave_job(connection: Connection, task: str, owner: str) -> None:
    """The job is nobody's."""
    connection.execute("UPDATE jobs SET owner = '' WHERE task = ? AND owner = ?", (task, owner))


def select_jobs(connection: Connection) -> dict[str, str]:
    """The states of all jobs by task."""
    return dict(connection.query("SELECT task, state FROM jobs ORDER BY task"))
