"""A version served as people serve it, by `mlflow models serve` and by `mgm-lora serve`: what it answers, and what it refuses how."""

import base64
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgm_lora.registry.versions import RegisteredVersion

from ..pipelines import QUESTIONS
from .serving_process import (
    PictureHost,
    Server,
    environment,
    free_port,
    mlflow_command,
    own_command,
    picture_host,
    running,
)

CHALLENGER = "models:/demo@challenger"
QUESTION = QUESTIONS[0]
LIMITS = {
    "max_requests": 2,
    "max_rows": 8,
    "max_pixels": 20_000_000,
    "max_picture_bytes": 4_000_000,
    "max_new_tokens": 9,
    "fetch_seconds": 30,
    "pictures": "data/pictures",
}
MAX_BODY_BYTES = 16_000_000


@pytest.fixture(scope="module")
def served_project(registered_project: tuple[Path, RegisteredVersion]) -> Path:
    """With two links in the folder of pictures, one inside, one out."""
    root = registered_project[0]
    pictures = root / "data/pictures"
    if not (pictures / "inside.png").exists():
        (pictures / "inside.png").symlink_to("0.png")
        (pictures / "outside.png").symlink_to(root / "params.yaml")
    return root


@pytest.fixture(scope="module")
def host(served_project: Path) -> Iterator[PictureHost]:
    with picture_host(served_project / "data/pictures") as host:
        yield host


@pytest.fixture(scope="module")
def large_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a phone's camera makes it: 4000 x 3000, stored on its side."""
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    gradient = np.add.outer(np.arange(3000), np.arange(4000))
    picture = Image.fromarray(
        np.stack([gradient % 256, gradient // 31 % 256, gradient // 7 % 256], axis=-1).astype("uint8")
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, quality=80, exif=exif)
    return path


@pytest.fixture(scope="module", params=["mlflow", "own"])
def server(
    request: pytest.FixtureRequest, served_project: Path, host: PictureHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One of each kind."""
    port = free_port()
    command = (
        mlflow_command(CHALLENGER, port=port) if request.param == "mlflow" else own_command("challenger", port=port)
    )
    limits = {**LIMITS, "hosts": host.name, "private_addresses": 1, "max_body_bytes": MAX_BODY_BYTES}
    log = tmp_path_factory.mktemp(request.param) / "log"
    with running(command, port=port, root=served_project, log=log, **limits) as server:
        yield server


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_pictures_of_every_kind_are_answered_as_scored(
    server: Server, served_project: Path, host: PictureHost, adapter_answers: list[str]
) -> None:
    files = [served_project / f"data/pictures/{number}.png" for number in range(3)]
    ways: list[list[str]] = [
        [encoded(file) for file in files],
        [f"data:image/png;base64,{encoded(file)}" for file in files],
        [f"{host.address}/{file.name}" for file in files],
        [file.name for file in files],
        [encoded(files[0]), str(files[1].resolve()), f"{host.address}/to?/{files[2].name}"],
    ]
    for pictures in ways:
        rows = [{"picture": p, "question": q} for p, q in zip(pictures, QUESTIONS, strict=True)]
        answer = server.ask(*rows)
        assert (answer.status, answer.body) == (200, {"predictions": adapter_answers})
    assert server.ask({"picture": "inside.png", "question": QUESTION}).body == {"predictions": adapter_answers[:1]}


def test_large_picture_is_answered_as_ask_does(server: Server, served_project: Path, large_picture: Path) -> None:
    command = [sys.executable, "-m", "mgm_lora", "ask", str(large_picture), QUESTION]
    asked = subprocess.run(
        [*command, "--adapter", CHALLENGER, "--max-new-tokens", "7"],
        cwd=served_project,
        env=environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    answer = server.ask({"picture": encoded(large_picture), "question": QUESTION}, max_new_tokens=7)
    assert answer.body == {"predictions": [asked.stdout.removesuffix("\n")]}


def test_question_without_a_picture_is_answered(server: Server) -> None:
    alone = server.ask({"question": QUESTION})
    mixed = server.ask({"picture": None, "question": QUESTION}, {"picture": "0.png", "question": QUESTION})
    assert alone.status == mixed.status == 200
    assert mixed.body["predictions"][0] == alone.body["predictions"][0]


def test_answers_are_no_longer_than_asked(server: Server) -> None:
    [short] = server.ask({"picture": "0.png", "question": QUESTION}, max_new_tokens=1).body["predictions"]
    [long] = server.ask({"picture": "0.png", "question": QUESTION}, max_new_tokens=9).body["predictions"]
    assert len(short) == 1 < len(long) <= 9  # a letter a token


def _png(width: int, height: int) -> str:
    """Says that it is so large, and holds nearly nothing."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    head = b"IHDR" + struct.pack(">II", width, height) + buffer.getvalue()[24:29]
    content = buffer.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + buffer.getvalue()[33:]
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    "picture, status, words",
    [
        ("outside.png", 403, "leads out of the folder of pictures"),
        ("../../params.yaml", 403, "leads out of the folder of pictures"),
        ("http://pictures.example.org/1.png", 403, "fetches nothing from 'pictures.example.org:80'"),
        ("HOST/to?http://localhost:1/0.png", 403, "only from 127.0.0.1"),
        ("HOST/none.png", 422, "its host answered 404"),
        ("none.png", 422, "neither base64, a data URL, nor a http(s) URL, nor a picture's path"),
        ("data:image/png;base64,%%%", 422, "does not hold base64"),
        (base64.b64encode(b"%PDF-1.7 and so on").decode(), 415, "found b'%PDF-1.7"),
        (_png(5000, 5000), 413, "5000 x 5000 pixels, allowed are 20000000 (MGM_LORA_SERVE_MAX_PIXELS)"),
        (_png(30000, 30000), 413, "too large"),
        (_png(64, 64), 422, "can't be decoded"),
        ("A" * 6_000_000, 413, "larger than 4000000 bytes (MGM_LORA_SERVE_MAX_PICTURE_BYTES)"),
        (17, 422, "found int"),
    ],
)
def test_picture_that_cannot_be_had_is_refused_with_its_row(
    server: Server, host: PictureHost, picture: Any, status: int, words: str
) -> None:
    picture = picture.replace("HOST", host.address) if isinstance(picture, str) else picture
    good = {"picture": "0.png", "question": QUESTION}
    told, message = server.ask(good, {"picture": picture, "question": QUESTION}).refusal
    assert told == status, message
    assert message.startswith("row 1: ")
    assert words in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "row, words",
    [
        ({"picture": "0.png", "question": "   "}, "the question is empty"),
        ({"question": "<image>?"}, "for 0 pictures"),
        ({"picture": "0.png", "question": "a" * 200}, "max_length"),
    ],
)
def test_question_that_cannot_be_asked_is_refused_with_its_row(server: Server, row: dict[str, str], words: str) -> None:
    status, message = server.ask(row).refusal
    assert status == 422
    assert message.startswith("row 0: ")
    assert words in message


def test_too_many_tokens_or_rows_are_refused(server: Server) -> None:
    row = {"picture": "0.png", "question": QUESTION}
    for number in (0, 10):
        status, message = server.ask(row, max_new_tokens=number).refusal
        assert (status, message) == (
            422,
            f"max_new_tokens must be from 1 to 9 (MGM_LORA_SERVE_MAX_NEW_TOKENS), found {number}",
        )
    status, message = server.ask(*[row] * 9).refusal
    assert (status, message[:27]) == (413, "9 rows, allowed are 8 in a ")


def test_missing_question_is_a_bad_request(server: Server) -> None:
    answer = server.ask({"picture": "0.png"})
    assert answer.status == 400
    assert "question" in answer.body["message"]  # MLflow's own words, and entries


@pytest.mark.parametrize("content_type", ["text/plain", "application/json; charset=latin-1"])
def test_other_kinds_of_requests_are_refused(server: Server, content_type: str) -> None:
    assert server.post(b"{}", content_type).status == 415


def test_requests_beyond_the_limit_are_told_to_come_again(
    server: Server, host: PictureHost, adapter_answers: list[str]
) -> None:
    held = {"picture": f"{host.address}/held/0.png", "question": QUESTION}
    host.hold()
    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(server.ask, held) for _ in range(2)]
        try:
            for _ in inside:
                assert host.arrived.acquire(timeout=60)
            refused = server.ask({"picture": "0.png", "question": QUESTION})
        finally:
            host.let_go()
        answers = [answer.result() for answer in inside]
    status, message = refused.refusal
    assert (status, message[:35]) == (429, "2 requests are being answered alrea")
    assert [answer.body for answer in answers] == [{"predictions": adapter_answers[:1]}] * 2
    assert server.ask({"picture": "0.png", "question": QUESTION}).status == 200  # places are free again


def test_own_server_refuses_bodies_before_mlflow_reads_them(
    served_project: Path, tmp_path: Path, adapter_answers: list[str]
) -> None:
    port = free_port()
    command = own_command("1", port=port)
    limits = {"max_body_bytes": 1000, "max_requests": 1, "body_seconds": 1}
    with running(command, port=port, root=served_project, log=tmp_path / "log", **limits) as server:
        status, message = server.ask({"question": "x" * 1000}).refusal
        assert (status, message[:39]) == (413, "the request is larger than 1000 bytes (")
        assert server.post(b"{").refusal[0] == 400
        assert server.post(b"[1]").refusal[0] == 400
        assert "found the entries rows" in server.post(b'{"rows": []}').refusal[1]
        assert server.post(b"{}", "text/csv").refusal[0] == 415
        assert server.ask({"question": QUESTION}).status == 200
        status, message = server.ask({"picture": "0.png", "question": QUESTION}).refusal
        assert (status, "this server reads none" in message) == (403, True)
        status, message = server.ask({"picture": "http://127.0.0.1/0.png", "question": QUESTION}).refusal
        assert (status, "this server fetches no URLs" in message) == (403, True)


@pytest.mark.parametrize("kind", ["mlflow", "own"])
def test_wrong_setting_ends_the_server_with_its_name(kind: str, served_project: Path) -> None:
    port = free_port()
    command = mlflow_command(CHALLENGER, port=port) if kind == "mlflow" else own_command("challenger", port=port)
    done = subprocess.run(
        command, cwd=served_project, env=environment({"max_row": 3}), capture_output=True, text=True, check=False
    )
    assert done.returncode not in (0, None)
    assert "MGM_LORA_SERVE_MAX_ROW is no setting of mgm-lora (misspelt?)" in done.stderr
