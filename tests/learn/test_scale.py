"""Many tasks at once: the same results here, in processes and on a Ray cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from smallfirst.config import parse
from smallfirst.errors import ConfigError, DataError
from smallfirst.learn import loop, scale
from smallfirst.learn.loop import Job, Settings
from smallfirst.learn.rounds import Recipe
from smallfirst.learn.watch import Seen
from smallfirst.store import open_store


def squared(n: int) -> tuple[int, int]:
    return n * n, os.getpid()


def node(n: int) -> tuple[int, str]:
    """Where an item was worked on; long enough that one node alone would not do all."""
    import time

    import ray

    time.sleep(0.5)
    return n, ray.get_runtime_context().get_node_id()


@pytest.mark.parametrize("where", [None, 2])
def test_results_come_in_the_order_of_the_items(where: int | None) -> None:
    """In this process or in others, the results are the same and in order."""
    made = scale.run_many(squared, range(5), where)
    assert [value for value, _ in made] == [0, 1, 4, 9, 16]
    assert (os.getpid() in {pid for _, pid in made}) == (where is None)


def test_without_ray_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a cluster without the extra is told what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="ray is not installed") as caught:
        scale.run_many(squared, [1], "local")
    assert "pip install 'smallfirst[ray]'" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_of_two_nodes_shares_the_work() -> None:
    """On a local Ray cluster of two nodes both of them work, and the results come in order."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        made = scale.run_many(node, range(6), cluster.address)
    finally:
        cluster.shutdown()
    assert [n for n, _ in made] == list(range(6))
    assert len({where for _, where in made}) == 2


async def test_rounds_are_done_by_other_processes(tmp_path: Path) -> None:
    """A round that stands in the store is gone on with elsewhere, and what comes of it is reported: here, why it
    fails."""
    url = f"sqlite:///{tmp_path / 'calls.db'}"
    store = await open_store(url)
    job = Job(name="desk", stage="evaluate", folder=str(tmp_path / "desk"), seen=Seen(1, 0, 1.0))
    await store.claim_job("desk", "me:1:x", lambda _: False)
    await store.beat_job("desk", "me:1:x", loop._text(job))
    await store.leave_job("desk", "me:1:x")
    config = parse(f'[store]\nurl = "{url}"\n', {})
    rounds = scale.elsewhere(config, Settings(folder=tmp_path), Recipe(), 1)
    [report] = await rounds(["desk"])
    await store.close()
    assert (report.task, report.outcome) == ("desk", "failed")
    assert "There is no dataset" in report.why


def _fails(_: Any) -> None:
    raise DataError("No.")


def test_errors_come_through() -> None:
    """What the work raises in another process is raised here."""
    with pytest.raises(DataError, match="No"):
        scale.run_many(_fails, [1], 1)
