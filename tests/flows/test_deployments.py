"""What prefect.yaml deploys, so that Prefect's own form can be filled in without reading code."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from ruamel.yaml import YAML

FILE = Path(__file__).parents[2] / "prefect.yaml"
DEPLOYMENTS: list[dict[str, Any]] = YAML(typ="safe").load(FILE.read_text(encoding="utf-8"))["deployments"]


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    path, name = deployment["entrypoint"].split(":")
    found = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(found, Flow)
    return found


def test_every_flow_is_deployed_once() -> None:
    assert sorted(flow_of(each).name for each in DEPLOYMENTS) == [
        "evaluation",
        "pipeline",
        "promotion",
        "registration",
        "sweep",
        "training",
        "validation",
    ]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: str(each["entrypoint"].partition(":")[2]))
def test_form_says_what_each_parameter_is(deployment: dict[str, Any]) -> None:
    assert deployment["description"].endswith(".")
    assert "mgm-lora" in deployment["tags"]
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    for name, asked in flow_of(deployment).parameters.properties.items():
        assert asked.get("description", "").endswith("."), name
        types = {choice.get("type") for choice in [asked, *asked.get("anyOf", [])]} - {None}
        assert types <= {"string", "boolean", "array", "null"}, name
        assert types, name
        assert asked["type"] != "array" or asked["items"] == {"type": "string"} if "type" in asked else True
