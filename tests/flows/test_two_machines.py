"""A pipeline on a machine without a card, and a worker with the card on another: really run, with nothing shared but the remotes and the server."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from ..two_machines import Team, make_team


@pytest.fixture(scope="module")
def team(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Team:
    return make_team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def pool(team: Team) -> Iterator[str]:
    """A pool of our own, with the box's worker."""
    name = f"card-{uuid4().hex[:6]}"
    worker = team.box.start_worker(name)
    yield name
    worker.terminate()
    worker.wait(60)


def test_stages_for_the_card_run_on_the_box_and_all_others_at_the_desk(team: Team, pool: str) -> None:
    import time

    time.sleep(8)
    t = time.monotonic()
    done = team.desk.pipeline(pool)
    print(time.monotonic() - t)
    print(done.stdout, done.stderr)
    print((team.box.folder / "worker.log").read_text())

    assert done.returncode == 0, done.stdout + done.stderr
    assert team.desk.has_run() == ["prepare", "report"]
    assert team.box.has_run() == ["lora", "full"]
    assert "1 Cached, 4 Completed" in done.stdout
