"""A project for sweeps in which training takes no time: real git, DVC and params.yaml, and a trainer whose loss follows from the learning rate.

What is tested in it: which trials are run, in which order, what is left of them, and what happens when one fails or is killed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from .small_project import ROOT, run_in

_PIPELINE = """
stages:
  plan:
    matrix: {arm: "${comparison.arms}"}
    cmd: python trainer.py plan ${item.arm}
    deps: [data, trainer.py]
    params: ["arms.${item.arm}", training]
    outs: ["artifacts/plans/${item.arm}"]
  train:
    matrix: {arm: "${comparison.arms}", seed: "${comparison.seeds}"}
    cmd: python trainer.py train ${item.arm} ${item.seed}
    deps: [data, trainer.py, "artifacts/plans/${item.arm}"]
    params: ["arms.${item.arm}", training]
    outs: ["artifacts/trained/${item.arm}-${item.seed}"]
    metrics:
      - "metrics/train/${item.arm}-${item.seed}.json": {cache: false}
  evaluate:
    matrix: {arm: "${comparison.arms}", seed: "${comparison.seeds}"}
    cmd: python trainer.py evaluate ${item.arm} ${item.seed}
    deps: [trainer.py, "artifacts/trained/${item.arm}-${item.seed}"]
    outs: ["artifacts/scores/${item.arm}-${item.seed}"]
    metrics:
      - "metrics/scores/${item.arm}-${item.seed}.json": {cache: false}
"""
# The loss is least at a rate of 0.01. `faults` lies in the project itself, where tests put files: what a trial meets.
_TRAINER = """
import json, math, os, pathlib, sys, time
from ruamel.yaml import YAML
from mgm_lora.stages.process import die_with_parent
die_with_parent()
stage, arm, *seed = sys.argv[1:]
name = '-'.join([arm, *seed])
home = pathlib.Path(os.environ['MGM_LORA_STORE_FOLDER'])
entries = YAML(typ='safe', pure=True).load(open('params.yaml'))['arms'][arm]
rate = entries['learning_rate']
def write(path, content):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
if stage == 'plan':
    write(f'artifacts/plans/{arm}/plan.json', {})
elif stage == 'evaluate':
    asked = {'parents': {'samples': 's'}, 'base': {'digest': 'b'}, 'settings': {'evaluation': {'metric': 'exact'}}}
    write(f'artifacts/scores/{name}/manifest.json', asked)
    write(f'metrics/scores/{name}.json', {'score': 0.5, 'score_low': 0.4, 'score_high': 0.6})
else:
    print(f'training {name} at {rate}', flush=True)
    with open(home / 'trained.txt', 'a') as log:
        print(rate, file=log)
    (home / 'pid.new').write_text(str(os.getpid()))
    os.rename(home / 'pid.new', home / 'pid')
    while (home / 'hold').exists():
        time.sleep(0.02)
    if (home / 'full-disk').exists():
        print('mgm-lora: no space left')
        sys.exit(4)
    if rate >= 0.5:
        print('mgm-lora: the loss is no number at step 3')
        sys.exit(3)
    loss = round(1 + (math.log10(rate) + 2) ** 2, 6)
    rows = [{'step': 1, 'samples': 4, 'loss': loss + 1}, {'step': 2, 'samples': 8, 'loss': loss}]
    write(f'artifacts/trained/{name}/history.json', {'train': rows, 'heldout': rows})
    figures = {'train_loss': loss, 'heldout_loss': loss, 'minutes': 0.5, 'step_memory_gib': 0.25}
    figures |= {'trainable_parameters': 1000 * entries.get('rank', 50), 'trainable_share': 0.1}
    write(f'metrics/train/{name}.json', figures)
"""
RATES = """
about: three rates
arms: [lora]
search: grid
vary:
  rate: {entry: arm.learning_rate, values: [0.001, 0.01, 0.1]}
"""


def make_sweep_project(root: Path, *, store: Path) -> Path:
    """A project with everything committed, the sweep `rates`, and a store in which MLflow has its tables already."""
    root.mkdir()
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        run_in(root, command)
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    shutil.copy(store, root / "mlflow.db")
    (root / "dvc.yaml").write_text(_PIPELINE)
    (root / "trainer.py").write_text(_TRAINER)
    (root / "data").mkdir()
    (root / "data" / "pictures.txt").write_text("red, green")
    run_in(root, ["dvc", "add", "-q", "data"])
    kept_out = ["mlflow.db", "mlartifacts", "build", "trained.txt", "pid*", "hold", "full-disk", "*.out"]
    with (root / ".gitignore").open("a") as ignored:
        ignored.write("".join(f"/{name}\n" for name in kept_out))
    add_sweep(root, "rates", RATES)
    commit(root)
    return root


def add_sweep(root: Path, name: str, text: str) -> None:
    """Writes a definition; it needs no commit."""
    (root / "sweeps").mkdir(exist_ok=True)
    (root / "sweeps" / f"{name}.yaml").write_text(text)


def commit(root: Path) -> str:
    """Commits everything, and returns the commit."""
    run_in(root, ["git", "add", "-A"])
    run_in(root, ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "all"])
    return run_in(root, ["git", "rev-parse", "HEAD"]).strip()


def trained_rates(root: Path) -> list[float]:
    """The learning rates of all trainings that were begun, in order."""
    log = root / "trained.txt"
    return [float(line) for line in log.read_text().split()] if log.is_file() else []


def experiments(root: Path) -> list[str]:
    """Names of the experiments that DVC lists in the project."""
    told = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "list", "--all-commits", "--name-only"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(told.stdout.split())
