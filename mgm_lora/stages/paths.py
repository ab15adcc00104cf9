"""Where the stages put things, relative to the project's root. `dvc.yaml` names the same paths."""

from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
DATA = Path("data")
REPORTS = Path("reports")
SAMPLES = Path("artifacts/samples")
PLANS = Path("artifacts/plans")
TRAINED = Path("artifacts/trained")
MERGED = Path("artifacts/merged")
SCORES = Path("artifacts/scores")
REGISTERED = Path("artifacts/registered")
METRICS = Path("metrics")
PLOTS = Path("reports/plots")
DATA_DOCS = Path("reports/validation")
REPORT = Path("reports/comparison.html")
PLAN_PICTURE = Path("reports/plan.png")
CHECKPOINTS = Path("build/checkpoints")  # outside every stage's outs: DVC removes those before a stage runs
TRAIN_METRICS = Path("metrics/train")
SCORE_METRICS = Path("metrics/scores")
REPRODUCED = Path("build/reproduced")
SWEEPS = Path("sweeps")
SWEEP_RESULTS = Path("sweeps/results")  # of sweeps that have come to their end; in git, and read by `compare`
SWEEP_REPORTS = Path("reports/sweeps")
SWEEP_COPIES = Path("build/sweeps")  # where trials run; can be deleted between two sweeps
RANKS = Path("build/ranks")  # what the processes of a training on several cards are given

UNTRAINED = ("base", "merged")
"""Models that no training of their own made."""


def model_folder(name: str) -> Path:
    """Where the merged model, or that of a training (`lora-17`), lies."""
    return MERGED if name == "merged" else TRAINED / name


def run_name(arm: str, seed: int) -> str:
    """What one training of an arm is called, as `dvc repro train@...` takes it: `lora-17`."""
    return f"{arm}-{seed}"
