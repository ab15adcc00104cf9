"""What tests of several parts share: the goldens, a tiny random checkpoint with its tokenizer, pictures."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, set_seed

from mgm_lora.model.checkpoint import save_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.families import published_config
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.training.card_lock import FOLDER_VARIABLE

from .small_project import make_project, run_in

GOLDENS = Path(__file__).parent / "goldens"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _locks_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests don't wait for what else trains on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell that starts the tests in the background lets them ignore SIGINT, and so all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def golden_config() -> Callable[[str], tuple[MGMConfig, dict[str, Any]]]:
    """Our configuration of a golden fixture, and the recorded one."""

    def build(name: str) -> tuple[MGMConfig, dict[str, Any]]:
        recorded = json.loads((GOLDENS / name / "config.json").read_text(encoding="utf-8"))
        config = MGMConfig(
            text_config={"model_type": "gemma", **recorded["gemma"]},
            vision_config=recorded["clip_vision"],
            aux_config={"depths": recorded["convnext"]["depths"], "dims": recorded["convnext"]["dims"]},
            image_size_aux=recorded["image_size_aux"],
            image_grid=recorded["image_grid"],
            image_global=recorded["image_global"],
            max_length=recorded["tokenizer_model_max_length"],
        )
        return config, recorded

    return build


@pytest.fixture(scope="session")
def tiny_config() -> MGMConfig:
    """A few ten thousand parameters; 16 picture tokens; a byte-like vocabulary."""
    return MGMConfig(
        text_config={
            "model_type": "gemma",
            "vocab_size": len(_VOCABULARY),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "projection_dim": 16,
        },
        aux_config={"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8], "layer_scale_init_value": 0.5},
        image_size_aux=32,
        max_length=128,
    )


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_config: MGMConfig) -> Path:
    """A folder with a tiny random MGM checkpoint and a letter-by-letter tokenizer. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("tiny") / "base"
    set_seed(1)
    model = MGMForConditionalGeneration(tiny_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # so that answers differ and no bias is zero
    save_model(model, folder=folder)
    MGMProcessor(letter_tokenizer(), config=tiny_config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whole_project(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A small project after `dvc repro`. Leave it as it was."""
    project = make_project(tmp_path_factory.mktemp("project"), base=tiny_base)
    run_in(project, ["dvc", "repro"])
    return project


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and no experiment of ours: making them takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mgm_2b() -> MGMForConditionalGeneration:
    """MGM-2B at its real size on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        model = MGMForConditionalGeneration(published_config("MGM-2B"))
    model.tie_weights()
    return model


@pytest.fixture
def make_picture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small picture whose colour and square depend on a number."""

    def make(number: int = 0, *, folder: Path = tmp_path, size: tuple[int, int] = (32, 32)) -> Path:
        colour = ((37 * number) % 256, (91 * number + 40) % 256, (151 * number + 80) % 256)
        picture = Image.new("RGB", size, colour)
        picture.paste((255 - colour[0], 30, 200), (2, 2 + number % 8, 14, 20))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number}.png"
        picture.save(path)
        return path

    return make


_LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789?!.,'-<> \n")
_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
_VOCABULARY = [*_SPECIAL, *_LETTERS]


def letter_tokenizer() -> PreTrainedTokenizerFast:
    ids = {token: number for number, token in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
