"""The command line: `mgm-lora` = `python -m mgm_lora`. A command per stage of `dvc.yaml`, `summary`, and the tools beside them.

Exit codes: 0 done; 2 bad input (settings, data, arguments); 3 a proof or gate that did not hold; 4 the machine (disk,
permissions); 5 its memory. It wires words to stages and imports a stage only when it runs, so that `--help` is quick.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mgm_lora import registry_tools, service_tools, sweep_tools, tools
from mgm_lora.errors import MgmLoraError
from mgm_lora.invocation import DEFAULT_PARAMS, Params, begin

app = typer.Typer(
    name="mgm-lora",
    help="Teaches MGM-2B your pictures and questions with LoRA, beside a full fine-tune to compare with.\n\n"
    "`dvc repro` runs all stages in order and only those whose inputs changed. Each can be run by hand, from the"
    " project's root, once the ones before it have run: validate, plan and train for each arm"
    " (--arm lora, --arm full), merge, evaluate for each model (--model base, lora, merged, full), compare, register.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_TOOLS = "Beside the pipeline"
_REGISTRY = "What is registered"
_SERVICES = "A team's services"
Seed = Annotated[int | None, typer.Option(help="One of comparison.seeds; none: the first of them.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process with its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    is_first_rank = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    logging.getLogger("mgm_lora").setLevel(logging.INFO if is_first_rank else logging.WARNING)
    _quieten_libraries()
    try:
        app(args=None if arguments is None else list(arguments), standalone_mode=True)
    except MgmLoraError as error:
        print(f"mgm-lora: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


@app.command()
def validate(params: Params = DEFAULT_PARAMS) -> None:
    """Checks the data (Great Expectations) and writes the samples, the rejects with their reasons, and the Data Docs."""
    settings = begin(params)
    from mgm_lora.stages import validate as stage

    stage.run(settings)


@app.command()
def plan(
    arm: Annotated[str, typer.Option(help="An arm of params.yaml: whose step is planned.")] = "lora",
    budget_gib: Annotated[
        float | None,
        typer.Option(
            help="What if the card had this much? Shows that plan and writes nothing; none: memory.budget_gib."
        ),
    ] = None,
    all_ways: Annotated[
        bool,
        typer.Option(
            "--all",
            help="All compared arms, every way to run them, micro batch by micro batch; writes reports/plan.png.",
        ),
    ] = False,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Chooses how an arm's training step is run so that it fits the card, and says what it holds. Reads no weight.

    Example: mgm-lora plan --arm lora --budget-gib 12
    """
    settings = begin(params)
    from mgm_lora.stages import plan as stage

    if all_ways:
        stage.show_all(settings, budget_gib=budget_gib)
    elif budget_gib is None:
        stage.run(settings, arm=arm)
    else:
        stage.what_if(settings, arm=arm, budget_gib=budget_gib)


@app.command()
def train(
    arm: Annotated[str, typer.Option(help="An arm of params.yaml: lora, full, or another that you named there.")],
    seed: Seed = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A folder with the plan to obey; none: artifacts/plans/ARM, as the stage plan left it."),
    ] = None,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Trains one arm once. Killed, it goes on from its newest checkpoint when run again with the same settings."""
    settings = begin(params)
    from mgm_lora.stages import train as stage

    stage.run(settings, arm=arm, seed=seed, plan_folder=plan)


@app.command()
def merge(params: Params = DEFAULT_PARAMS) -> None:
    """Folds the adapter into the base and proves that the merged model answers as the adapter does."""
    settings = begin(params)
    from mgm_lora.stages import merge as stage

    stage.run(settings)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="base, merged, or an arm of params.yaml.")],
    seed: Seed = None,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Asks one model the held-out questions and those on what the base knew; scores with intervals."""
    settings = begin(params)
    from mgm_lora.stages import evaluate as stage

    stage.run(settings, model_name=model, seed=seed)


@app.command()
def compare(
    allow_failed: Annotated[
        bool,
        typer.Option(
            "--allow-failed",
            help="Tell arms whose training or evaluation failed among the results, instead of stopping (base, lora and full must be there).",
        ),
    ] = False,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Sets the arms side by side: retention, forgetting, cost; writes reports/comparison.html."""
    settings = begin(params)
    from mgm_lora.stages import compare as stage

    stage.run(settings, allow_failed=allow_failed)


@app.command()
def register(params: Params = DEFAULT_PARAMS) -> None:
    """Logs the runs to MLflow and registers the adapter as a version with the alias `challenger`."""
    settings = begin(params)
    from mgm_lora.stages import register as stage

    stage.run(settings)


@app.command()
def summary(params: Params = DEFAULT_PARAMS) -> None:
    """Prints the table of arms and where to look."""
    settings = begin(params)
    from mgm_lora.stages import summary as stage

    stage.run(settings)


app.command("preset", rich_help_panel=_TOOLS)(tools.preset)
app.command("import", rich_help_panel=_TOOLS)(tools.import_data)
app.command("convert", rich_help_panel=_TOOLS)(tools.convert)
app.command("sweep", rich_help_panel=_TOOLS)(sweep_tools.sweep)
app.command("ask", rich_help_panel=_TOOLS)(tools.ask)
app.command("benchmark", rich_help_panel=_TOOLS)(tools.benchmark)
app.command("promote", rich_help_panel=_REGISTRY)(registry_tools.promote)
app.command("rollback", rich_help_panel=_REGISTRY)(registry_tools.rollback)
app.command("serve", rich_help_panel=_REGISTRY)(registry_tools.serve)
app.add_typer(registry_tools.registry, name="registry", rich_help_panel=_REGISTRY)
app.command("up", rich_help_panel=_SERVICES)(service_tools.up)
app.command("down", rich_help_panel=_SERVICES)(service_tools.down)
app.command("services", rich_help_panel=_SERVICES)(service_tools.services)
app.command("health", rich_help_panel=_SERVICES)(service_tools.health)
app.command("backup", rich_help_panel=_SERVICES)(service_tools.backup)
app.command("restore", rich_help_panel=_SERVICES)(service_tools.restore)


def _quieten_libraries() -> None:
    """What libraries say to their own developers, and their reports to their makers, are kept from people's terminals."""
    defaults = {"TOKENIZERS_PARALLELISM": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for variable, value in defaults.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a missing optional kernel for 4 bit on the CPU
    for module in ("peft", "torch", "transformers"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)
