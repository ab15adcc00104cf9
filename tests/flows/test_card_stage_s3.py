"""The same by a DVC remote on S3: moto's server on loopback stands for it. Takes the packages dvc-s3 and moto."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.card_stage import card_stage
from mgm_lora.errors import RemoteError
from tasks.child import pull, push
from tasks.dag import is_unchanged
from tasks.delivery import accept_, find_delivery
from tasks.order import make_order

from ..two_machines import Team, make_team, wait_for

pytest.importorskip("dvc_s3", reason="takes dvc-s3 (pip install dvc-s3)")
pytest.importorskip("moto", reason="takes moto (pip install 'moto[s3]')")
Store = Callable[[], "subprocess.Popen[bytes]"]
STAGE = "train@lora"


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def start_store(port: int) -> Iterator[Store]:
    """Each time with an empty bucket."""
    boto3 = pytest.importorskip("boto3")
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        with socket.socket() as probe:
            wait_for(lambda: probe.connect_ex(("127.0.0.1", port)) == 0)
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="team")
        return started[-1]

    yield start
    for store in started:
        store.kill()
        store.wait()


@pytest.fixture(scope="module")
def team(port: int, tmp_path_factory: pytest.TempPathFactory, start_store: Store) -> Iterator[Team]:
    access = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**access, "AWS_MAX_ATTEMPTS": "1"}.items():
            patch.setenv(name, value)
        folder, endpoint = tmp_path_factory.mktemp("team"), f"http://127.0.0.1:{port}"
        team = make_team(folder, url="s3://team/store", endpoint=endpoint, **access)
        assert team.desk.run("dvc", "repro", "--quiet", "prepare").returncode == 0
        yield team


def test_stage_comes_and_goes_by_s3_and_a_lost_store_costs_no_second_run(
    team: Team, start_store: Store, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = team.desk.clone
    monkeypatch.setenv("HOME", str(team.box.home))
    monkeypatch.chdir(team.box.clone)
    order = make_order(STAGE, root=desk, force=False)
    store = start_store()
    push(order.needs, root=desk, on_line=print)
    (team.box.home / "loses").write_text(str(store.pid))

    lost = card_stage(order, return_state=True)
    assert lost.is_failed()
    assert "has been run, and lies in the cache of this worker" in str(lost.message)
    with pytest.raises(RemoteError, match=r"can't read s3://team/store/mgm-lora/stages"):
        find_delivery(order.key, root=desk)

    start_store()
    push(order.needs, root=desk, on_line=print)
    assert card_stage(order, return_state=True).name == "Cached"
    assert team.box.has_run() == ["lora"]
    delivery = find_delivery(order.key, root=desk)
    assert delivery
    accept_(delivery, root=desk)
    pull([STAGE], root=desk, on_line=print)
    assert is_unchanged(STAGE, root=desk)


def test_document_that_is_not_there_is_none(team: Team, start_store: Store) -> None:
    assert find_delivery("ab" * 32, root=Path(team.desk.clone)) is None
