"""What DVC answers about a real project, and that no answer is older than the question."""

from pathlib import Path

import pytest
from dvc.repo import Repo, lock_repo

from mgm_lora.errors import UnknownStageError
from tasks.dag import is_unchanged, make_plan


def test_plan_is_what_dvc_repro_goes_through_in_its_order(project: Path) -> None:
    plan = make_plan(project)

    with Repo() as repo:
        run_by_dvc = [stage.addressing for stage in repo.reproduce()]
    assert [stage.name for stage in plan.stages if stage.name != "data.dvc"] == run_by_dvc
    assert [stage.name for stage in plan.stages] == ["data.dvc", "check", "train@lora", "train@full", "report"]
    assert plan.root == project


def test_stage_says_what_it_needs_makes_and_asks_for(project: Path) -> None:
    stages = {stage.name: stage for stage in make_plan(project).stages}

    assert stages["check"].needs == ("data.dvc",)
    assert set(stages["report"].needs) == {"train@lora", "train@full"}
    assert [stages[name].card for name in ("check", "train@lora", "report")] == ["", "gpu", "small"]
    assert stages["report"].metrics == (Path("metrics.json"),)
    assert stages["report"].plots == (Path("curve.csv"),)
    assert stages["report"].outs == (Path("report.html"),)


def test_targets_bring_what_they_need_and_nothing_else(project: Path) -> None:
    assert [stage.name for stage in make_plan(project, targets=["train@full"]).stages] == [
        "data.dvc",
        "check",
        "train@full",
    ]


def test_matrix_name_stands_for_all_of_its_stages(project: Path) -> None:
    names = [stage.name for stage in make_plan(project, targets=["train"]).stages]

    assert names == ["data.dvc", "check", "train@lora", "train@full"]


def test_unknown_target_is_named_beside_what_there_is(project: Path) -> None:
    with pytest.raises(UnknownStageError, match=r"no such stage: trian@lora.*check.*Did you mean train@lora"):
        make_plan(project, targets=["check", "trian@lora"])


def test_remote_is_known_only_where_one_is_the_default(project: Path) -> None:
    assert not make_plan(project).has_remote

    with Repo() as repo, repo.config.edit() as config:
        config["remote"]["here"] = {"url": str(project.parent / "remote")}
        config["core"]["remote"] = "here"
    assert make_plan(project).has_remote


def test_new_stage_in_dvc_yaml_is_planned(project: Path) -> None:
    with (project / "dvc.yaml").open("a") as file:
        file.write(
            "  serve:\n    cmd: python copy.py report.html served\n    deps: [report.html]\n    outs: [served]\n"
        )

    assert make_plan(project).stages[-1].name == "serve"


def test_stages_are_named_from_the_root_also_when_asked_from_a_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "data")

    assert [stage.name for stage in make_plan(project).stages][:2] == ["data.dvc", "check"]
    assert is_unchanged("data.dvc", root=project)


def test_every_kind_of_change_is_seen_at_once(project: Path) -> None:
    assert not is_unchanged("check", root=project)
    with Repo() as repo:
        repo.reproduce("check")
    assert is_unchanged("check", root=project)

    (project / "data" / "raw.txt").write_text("raw!")
    assert not is_unchanged("check", root=project)
    assert not is_unchanged("data.dvc", root=project)
    (project / "data" / "raw.txt").write_text("raw")
    assert is_unchanged("check", root=project)

    (project / "checked.txt").unlink()
    assert not is_unchanged("check", root=project)
    (project / "checked.txt").write_text("raw")
    assert is_unchanged("check", root=project)

    pipeline = project / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("data/raw.txt checked.txt", "./data/raw.txt checked.txt"))
    assert not is_unchanged("check", root=project)


def test_repository_in_use_counts_as_changed_so_that_dvc_waits_and_looks_itself(project: Path) -> None:
    with Repo() as repo:
        repo.reproduce("check")
        with lock_repo(repo):
            assert not is_unchanged("check", root=project)
    assert is_unchanged("check", root=project)
