"""The hub: what is whole in the cache costs no call; what can't be had is told once, with the command."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mgm_lora.errors import CheckpointError
from mgm_lora.model.hub import download_command, find_in_hub, looks_like_id


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, object]]:
    """A hub on this machine that refuses; says how it shall, and counts its calls."""
    told: dict[str, object] = {"code": "GatedRepo", "status": 403, "calls": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told["calls"] = int(str(told["calls"])) + 1
            self.send_response(int(str(told["status"])))
            self.send_header("X-Error-Code", str(told["code"]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    yield told
    server.shutdown()
    server.server_close()


def _find(name: str) -> Path:
    return find_in_hub(name, revision=None, patterns=[["*"]], is_whole=lambda folder: (folder / "here").is_file())


def test_gated_model_is_told_with_all_that_is_to_be_done(answers: dict[str, object]) -> None:
    with pytest.raises(CheckpointError) as error:
        _find("owner/gated")
    assert answers["calls"]
    assert "'owner/gated' is gated: accept its licence" in str(error.value)
    assert "`hf auth login`, then `hf download owner/gated " in str(error.value)


def test_unknown_model_is_told_with_the_command(answers: dict[str, object]) -> None:
    answers |= {"code": "RepoNotFound", "status": 404}
    with pytest.raises(CheckpointError, match="`hf download owner/nothing "):
        _find("owner/nothing")


def test_whole_model_in_the_cache_costs_no_call(answers: dict[str, object], tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("2" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("2" * 40, encoding="utf-8")
    with pytest.raises(CheckpointError):
        _find("owner/model")  # not whole, so that the hub is asked
    assert answers["calls"]
    answers["calls"] = 0
    (snapshot / "here").touch()
    assert _find("owner/model") == snapshot
    assert answers["calls"] == 0


@pytest.mark.parametrize(
    "name, is_id",
    [("owner/name", True), ("data/base", True), ("name", False), ("a/b/c", False), ("./a", False), ("../a", False)],
)
def test_form_of_a_hub_id(name: str, is_id: bool) -> None:
    assert looks_like_id(name) == is_id


def test_command_names_the_revision_and_leaves_other_frameworks_out() -> None:
    assert download_command("a/b", "1f2e") == '`hf download a/b --revision 1f2e --exclude "*.h5" --exclude "*.msgpack"`'
