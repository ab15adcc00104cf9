"""What a version's folder holds, and what it doesn't."""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import mlflow
import pytest

import mgm_lora
from mgm_lora.registry.packing import REQUIREMENTS
from mgm_lora.registry.versions import RegisteredVersion

PACKAGE = Path(mgm_lora.__file__).parent
LOADED = (
    *PACKAGE.glob("*.py"),
    *(path for name in ("model", "lora", "serving") for path in PACKAGE.glob(f"{name}/*.py")),
)
DOORWAYS = ("__main__", "cli", "invocation", "registry_tools", "service_tools", "sweep_tools", "tools")
LOADED = tuple(path for path in LOADED if path.stem not in DOORWAYS)


@pytest.fixture
def packed(registered: RegisteredVersion) -> Path:
    return Path(mlflow.artifacts.download_artifacts(registered.uri))


def test_version_holds_the_adapter_and_no_other_weights(packed: Path) -> None:
    assert {path.relative_to(packed).as_posix() for path in packed.rglob("*.safetensors")} == {
        "artifacts/lora-5/adapter_model.safetensors",
        "artifacts/lora-5/language_model/adapter_model.safetensors",
    }
    assert (packed / "artifacts/lora-5/manifest.json").is_file()
    assert (packed / "code/mgm_lora/model/mgm.py").is_file()
    assert not list(packed.rglob("__pycache__"))


def test_requirements_are_exact_and_from_no_place_of_their_own(packed: Path) -> None:
    lines = (packed / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in lines] == list(REQUIREMENTS)
    assert not [line for line in lines if "+" in line or "/" in line]


def test_requirements_cover_what_the_packed_code_imports() -> None:
    distributions = packages_distributions()
    imported = {name for path in LOADED for name in _imports(path)}
    assert {name for name in imported if not set(distributions[name]) & set(REQUIREMENTS)} == set()


def test_signature_asks_for_picture_and_question(packed: Path) -> None:
    signature = mlflow.models.get_model_info(str(packed)).signature
    assert signature.inputs.input_names() == ["picture", "question"]
    assert [parameter.name for parameter in signature.params] == ["max_new_tokens"]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in (name.partition(".")[0] for name in names):
            if name not in sys.stdlib_module_names and name != "mgm_lora":
                yield name
