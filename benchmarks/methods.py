"""The table of LoRA methods and invariants, on a small MGM with random weights: `invariants.py` measures, the tests hold the same at a tinier size.

Every method adapts all five points, learns for ten steps at a large rate, and is then saved, loaded, merged and set beside another of its kind.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.findings import Findings, Goal, Table
from benchmarks.invariants import (
    EXCEPTIONS,
    INVARIANTS,
    LEARNING_RATE,
    METHODS,
    NUM_STEPS,
    Method,
    bound,
    difference,
    figures,
    try_method,
)
from benchmarks.sizes import random_batch, random_model, samples, small_size
from mgm_lora.model.checkpoint import save_model
from mgm_lora.model.config import MGMConfig

SEED = 17
NUM_ROWS, LENGTH = 2, 192


def measure() -> Findings:
    """Every invariant of every method."""
    config = small_size()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(random_model(config, dtype=torch.float32, device="cpu", seed=SEED), folder=folder / "base")
        found = {method.name: _measured(method, config=config, folder=folder) for method in METHODS.values()}
    beyond = [(name, what) for name, own in found.items() for what in INVARIANTS if own[what] > bound(name, what)]
    return Findings(
        title="Methods and invariants",
        goals=(Goal("figures beyond their bound", len(beyond), 0, f"of {len(found) * len(INVARIANTS)}"),),
        tables=(_about(), _table(found)),
        notes=(
            f"A small MGM ({', '.join(_size(config))}) with random weights in float32, all five points at rank 4, {NUM_STEPS} steps at a rate of"
            f" {LEARNING_RATE:g}; 4 bit is NF4 on a CPU.",
            "Counts are whole numbers; all else is the largest difference over the largest logit (unmerged: over the largest weight).",
            *(f"{method}, {what}: bound {size:g}: {why}." for (method, what), (size, why) in EXCEPTIONS.items()),
            "`learned` is how far the answers moved from the base's: what the other figures are to be compared with.",
        ),
    )


def _measured(method: Method, *, config: MGMConfig, folder: Path) -> dict[str, float]:
    first, second = (
        try_method(
            method, base=folder / "base", batch=_batch(config, seed=seed), folder=folder / method.name / str(seed)
        )
        for seed in (1, 2)
    )
    print(f"  {method.name}", flush=True)
    return {"learned": difference(first.logits, first.of_base), **figures(first, second=second.folder)}


def _batch(config: MGMConfig, *, seed: int) -> dict[str, Tensor]:
    shape = samples(NUM_ROWS, LENGTH, labels_each=32)
    return random_batch(shape, config=config, device="cpu", dtype=torch.float32, seed=seed)


def _about() -> Table:
    rows = ((f"`{name}`", each.about, f"{each.bound:g}") for name, each in INVARIANTS.items())
    return Table("What is measured:", ("", "", "bound"), tuple(rows))


def _table(found: dict[str, dict[str, float]]) -> Table:
    columns = ("learned", *INVARIANTS)
    rows = ((name, *(_cell(name, what, own[what]) for what in columns)) for name, own in found.items())
    return Table("What was found:", ("", *columns), tuple(rows))


def _cell(method: str, what: str, figure: float) -> str:
    text = f"{figure:.0f}" if figure == int(figure) else f"{figure:.1e}"
    return f"**{text}**" if what in INVARIANTS and figure > bound(method, what) else text


def _size(config: MGMConfig) -> tuple[str, ...]:
    text = config.text_config
    return f"Gemma of {text.num_hidden_layers} layers, width {text.hidden_size}", f"vocabulary {text.vocab_size}"
