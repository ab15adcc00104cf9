"""Who is the champion: promotions, rollbacks, and what the history says of them; also of two at once, and of one that was cut off."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from mgm_lora.errors import BusyRegistryError, RegistryError
from mgm_lora.registry.champion import champion_of, promote, roll_back
from mgm_lora.registry.history import (
    Entry,
    RuleFigures,
    append_entry,
    champions_in_line,
    make_entry,
    read_history,
    took_effect,
)
from mgm_lora.registry.lock import hold_lock, who
from mgm_lora.registry.store import Store, open_store
from mgm_lora.settings import RegistrySettings

ROOT = Path(__file__).parents[3]
KEPT = RuleFigures(rule="size", asked="at most 10 MiB", found="3.00 MiB", passed=True)
BROKEN = RuleFigures(rule="retention", asked="at least 90 %", found="80 %", passed=False)
_PROMOTE = """
import sys
from mgm_lora.errors import MgmLoraError
from mgm_lora.registry.champion import promote
from mgm_lora.registry.store import open_store
from mgm_lora.settings import RegistrySettings
store = open_store(RegistrySettings(tracking_uri=sys.argv[1], experiment="mgm-lora", model_name="demo"))
print("ready", flush=True)
sys.stdin.readline()
try:
    promote(store, model_name="demo", version=int(sys.argv[2]), judged_against=1, reason="", rules=())
except MgmLoraError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def store(project: Path, registry: RegistrySettings) -> Store:
    """With four versions of `demo` that hold nothing."""
    return with_versions(open_store(registry))


def with_versions(store: Store) -> Store:
    store.client.create_registered_model("demo")
    model = mlflow.initialize_logged_model(name="nothing", experiment_id=store.experiment_id)
    for _ in range(4):
        store.client.create_model_version("demo", source=f"models:/{model.model_id}", model_id=model.model_id)
    return store


def make_champion(store: Store, version: int, *, reason: str = "", rules: tuple[RuleFigures, ...] = (KEPT,)) -> Entry:
    now = champion_of(store, model_name="demo")
    return promote(store, model_name="demo", version=version, judged_against=now, reason=reason, rules=rules)


def back(store: Store, reason: str = "") -> Entry:
    return roll_back(store, model_name="demo", reason=reason)


def aliases(store: Store) -> dict[str, int]:
    return {name: int(version) for name, version in store.client.get_registered_model("demo").aliases.items()}


def history(store: Store) -> list[Entry]:
    return read_history(store, model_name="demo")


def test_promotions_move_the_aliases_and_keep_the_one_before(store: Store) -> None:
    make_champion(store, 1)
    assert aliases(store) == {"champion": 1}
    make_champion(store, 3)
    assert aliases(store) == {"champion": 3, "previous-champion": 1}


def test_history_says_who_when_what_why_and_by_which_figures(store: Store) -> None:
    make_champion(store, 1)
    make_champion(store, 2, reason="the shapes are worth it", rules=(KEPT, BROKEN))
    back(store, "answers were wrong on Monday")
    entries = history(store)
    assert [(entry.action, entry.version, entry.replaced) for entry in entries] == [
        ("promote", 1, None),
        ("promote", 2, 1),
        ("rollback", 1, 2),
    ]
    assert {entry.who for entry in entries} == {who()}
    assert all(entry.when.endswith("+00:00") for entry in entries)
    assert [entry.reason for entry in entries] == ["", "the shapes are worth it", "answers were wrong on Monday"]
    assert entries[1].rules == (KEPT, BROKEN)
    assert [entry.overruled for entry in entries] == [(), ("retention",), ()]


def test_rollbacks_go_back_one_by_one_and_never_forth(store: Store) -> None:
    for version in (1, 2, 3):
        make_champion(store, version)
    assert back(store).version == 2
    assert aliases(store) == {"champion": 2, "previous-champion": 1}
    assert back(store).version == 1
    assert aliases(store) == {"champion": 1}
    with pytest.raises(RegistryError, match="before version 1 nobody was the champion"):
        back(store)


def test_promotion_after_a_rollback_goes_on_from_there(store: Store) -> None:
    for version in (1, 2):
        make_champion(store, version)
    back(store)
    make_champion(store, 4)
    assert aliases(store) == {"champion": 4, "previous-champion": 1}
    assert back(store).version == 1


def test_version_that_was_deleted_is_passed_over(store: Store) -> None:
    for version in (1, 2, 3):
        make_champion(store, version)
    store.client.delete_model_version("demo", "2")
    assert back(store).version == 1
    assert aliases(store) == {"champion": 1}


def test_without_champion_there_is_nothing_to_go_back_from(store: Store) -> None:
    with pytest.raises(RegistryError, match=r"nobody is the champion\. Run `mgm-lora promote`"):
        back(store)


def test_aliases_that_were_moved_by_hand_are_taken_as_they_are(store: Store) -> None:
    make_champion(store, 1)
    store.client.set_registered_model_alias("demo", "champion", "3")
    store.client.set_registered_model_alias("demo", "previous-champion", "2")
    assert took_effect(history(store), champion=3) == [False]
    assert back(store).version == 2
    store.client.set_registered_model_alias("demo", "champion", "4")
    make_champion(store, 1)
    assert back(store).version == 4


def test_whoever_was_judged_against_another_champion_is_told_who_won(store: Store) -> None:
    make_champion(store, 1)
    make_champion(store, 2)
    with pytest.raises(BusyRegistryError, match="which was version 1, and is version 2 meanwhile") as told:
        promote(store, model_name="demo", version=3, judged_against=1, reason="", rules=())
    assert who() in str(told.value)
    assert told.value.exit_code == 4
    assert aliases(store)["champion"] == 2
    assert len(history(store)) == 2


@pytest.mark.parametrize("kind", ["registry", "served"], ids=["SQLite", "server"])
def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(
    kind: str, request: pytest.FixtureRequest, project: Path
) -> None:
    settings: RegistrySettings = request.getfixturevalue(kind)
    store = with_versions(open_store(settings))
    make_champion(store, 1)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROMOTE, settings.tracking_uri, str(version)],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for version in (2, 3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    ends = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=120)
        ends.append((process.returncode, said))
    assert sorted(code for code, _ in ends) == [0, 1]
    winner, loser = (2, 3) if ends[0][0] == 0 else (3, 2)
    assert aliases(store) == {"champion": winner, "previous-champion": 1}
    said = next(said for code, said in ends if code)
    assert f"BusyRegistryError: version {loser} was judged against the champion" in said
    assert f"is version {winner} meanwhile" in said
    assert [entry.version for entry in history(store)] == [1, winner]


def test_promotion_that_was_cut_off_did_not_take_effect_and_can_be_done_again(store: Store) -> None:
    make_champion(store, 1)
    with hold_lock(store, model_name="demo") as lock:  # as a process that is killed before it moves the aliases
        append_entry(make_entry("promote", version=2, replaced=1, reason=""), lock=lock, model_name="demo")
    assert took_effect(history(store), champion=champion_of(store, model_name="demo")) == [True, False]
    assert champions_in_line(history(store), champion=1) == []
    make_champion(store, 2)
    assert took_effect(history(store), champion=2) == [True, False, True]
    assert back(store).version == 1


def test_reason_that_is_too_long_is_told_before_anything_is_changed(store: Store) -> None:
    with pytest.raises(RegistryError, match="a reason of 1001 letters, kept are 1000"):
        make_champion(store, 1, reason="x" * 1001)
    assert history(store) == []
    assert make_champion(store, 1, reason="x" * 1000).reason == "x" * 1000


def test_entry_that_nobody_can_read_is_told_by_its_tag(store: Store) -> None:
    store.client.set_registered_model_tag("demo", "mgm_lora.history.000001", "{}")
    with pytest.raises(RegistryError, match=r"'mgm_lora\.history\.000001' of the registered model 'demo' is no entry"):
        history(store)


def test_history_is_the_same_wherever_it_is_read(
    store: Store, registry: RegistrySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_champion(store, 1, reason="first")
    (tmp_path / "project" / "mlflow.db").rename(tmp_path / "mlflow.db")
    (tmp_path / "project" / "mlartifacts").rename(tmp_path / "mlartifacts")
    monkeypatch.chdir(tmp_path)
    assert history(open_store(registry)) != []
