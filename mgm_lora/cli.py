"""The command line: `mgm-lora` = `python -m mgm_lora`. A command per stage of `dvc.yaml`, `import`, `ask`, `convert`, and `summary`.

Exit codes: 0 done; 2 bad input (settings, data, arguments); 3 a proof or gate that did not hold; 4 the machine (disk,
permissions); 5 its memory. It wires words to stages and imports a stage only when it runs, so that `--help` is quick.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from mgm_lora.errors import MgmLoraError
from mgm_lora.settings import Settings, read_settings

app = typer.Typer(
    name="mgm-lora",
    help="Teaches MGM-2B your pictures and questions with LoRA, beside a full fine-tune to compare with.\n\n"
    "`dvc repro` runs all stages in order and only those whose inputs changed. Each command below is one of them and can be run by hand, from the"
    " project's root, once the ones before it have run: validate, plan --arm lora, plan --arm full, train --arm lora, train --arm full, merge,"
    " evaluate --model base (lora, merged, full), compare, register.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Params = Annotated[
    Path, typer.Option("--params", help="The settings file; mgm_lora/settings.py says what each entry is.")
]
DEFAULT_PARAMS = Path("params.yaml")


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
    settings = _begin(params)
    from mgm_lora.stages import validate as stage

    stage.run(settings)


@app.command()
def plan(
    arm: Annotated[str, typer.Option(help="lora or full: whose step is planned.")] = "lora",
    budget_gib: Annotated[
        float | None,
        typer.Option(
            help="What if the card had this much? Shows that plan and writes nothing; none: memory.budget_gib."
        ),
    ] = None,
    all_ways: Annotated[
        bool,
        typer.Option(
            "--all", help="Both arms, every way to run them, micro batch by micro batch; writes reports/plan.png."
        ),
    ] = False,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Chooses how an arm's training step is run so that it fits the card, and says what it holds. Reads no weight.

    Example: mgm-lora plan --arm lora --budget-gib 12
    """
    _one_of(arm, ("lora", "full"), "--arm")
    settings = _begin(params)
    from mgm_lora.stages import plan as stage

    if all_ways:
        stage.show_all(settings, budget_gib=budget_gib)
    elif budget_gib is None:
        stage.run(settings, arm=arm)
    else:
        stage.what_if(settings, arm=arm, budget_gib=budget_gib)


@app.command()
def train(
    arm: Annotated[
        str, typer.Option(help="lora: an adapter at the points of the settings; full: the fine-tune to compare with.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option(help="A folder with the plan to obey; none: artifacts/plans/ARM, as the stage plan left it."),
    ] = None,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Trains one arm. Killed, it goes on from its newest checkpoint when run again with the same settings."""
    _one_of(arm, ("lora", "full"), "--arm")
    settings = _begin(params)
    from mgm_lora.stages import train as stage

    stage.run(settings, arm=arm, plan_folder=plan)


@app.command()
def merge(params: Params = DEFAULT_PARAMS) -> None:
    """Folds the adapter into the base and proves that the merged model answers as the adapter does."""
    settings = _begin(params)
    from mgm_lora.stages import merge as stage

    stage.run(settings)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="base, lora, merged or full.")],
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Asks one model the held-out questions and those on what the base knew; scores with intervals."""
    _one_of(model, ("base", "lora", "merged", "full"), "--model")
    settings = _begin(params)
    from mgm_lora.stages import evaluate as stage

    stage.run(settings, arm=model)


@app.command()
def compare(params: Params = DEFAULT_PARAMS) -> None:
    """Sets the arms side by side: retention, forgetting, cost; writes reports/comparison.html."""
    settings = _begin(params)
    from mgm_lora.stages import compare as stage

    stage.run(settings)


@app.command()
def register(params: Params = DEFAULT_PARAMS) -> None:
    """Logs the runs to MLflow and registers the adapter as a version with the alias `challenger`."""
    settings = _begin(params)
    from mgm_lora.stages import register as stage

    stage.run(settings)


@app.command()
def summary(params: Params = DEFAULT_PARAMS) -> None:
    """Prints the table of arms and where to look."""
    settings = _begin(params)
    from mgm_lora.stages import summary as stage

    stage.run(settings)


@app.command()
def ask(
    picture: Annotated[Path, typer.Argument(help="A picture file; - for none.")],
    question: Annotated[
        str | None,
        typer.Argument(
            help="What to ask about it; <image> in it says where a picture is meant, without any they come first. None: every line typed is a"
            " question of one conversation, up to an empty line."
        ),
    ] = None,
    more: Annotated[list[Path] | None, typer.Option("--and", help="One more picture; may be repeated.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="A folder (artifacts/trained/lora) or a registered version (models:/NAME@challenger); none: the base answers."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Answers a question about a picture, or several, or none; the answer appears as it comes.

    Example: mgm-lora ask data/pictures/easy_vqa/heldout/1.png "what color is the shape?" --adapter artifacts/trained/lora

    Example: mgm-lora ask 1.png "what differs?" --and 2.png
    """
    settings = _begin(params)
    from mgm_lora.stages import ask as stage

    first = [] if picture == Path("-") else [picture]
    stage.run(
        settings,
        pictures=[*first, *(more or [])],
        question=question,
        adapter=adapter,
        max_new_tokens=max_new_tokens,
        show=lambda text: print(text, end="", flush=True),
    )


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="A checkpoint, in our layout or the published one: a folder or a hub id.")
    ],
    destination: Annotated[Path, typer.Argument(help="A folder that doesn't exist yet.")],
    to: Annotated[Literal["ours", "published"], typer.Option(help="The layout that is written.")],
    towers: Annotated[
        Literal["inside", "apart"],
        typer.Option(help="Published layout: the towers inside the checkpoint's files, or in folders of their own."),
    ] = "inside",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision that is written; none: as the weights are."),
    ] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="Where the source's CLIP tower lies; none: where its config.json says.")
    ] = None,
    vision_tower_aux: Annotated[
        str | None, typer.Option(help="Where the source's OpenCLIP ConvNeXt lies; none: where its config.json says.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The hub's commit of the source.")] = None,
) -> None:
    """Writes a checkpoint in the other layout, a file at a time, bit for bit. Reads no settings.

    Example: mgm-lora convert YanweiLi/MGM-2B models/mgm-2b --to ours
    """
    from mgm_lora.model.published_towers import TowerPlaces
    from mgm_lora.stages import convert as stage

    stage.run(
        source,
        destination=destination,
        layout=to,
        towers=towers,
        dtype=dtype,
        places=TowerPlaces(vision_tower=vision_tower, vision_tower_aux=vision_tower_aux),
        revision=revision,
    )


@app.command("import")
def import_data(
    source: Annotated[
        Path,
        typer.Argument(
            help="LLaVA's JSON, lines of JSON, CSV, Parquet, a picture folder with captions or labels, or a folder that datasets.save_to_disk wrote."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What the data set is called in data/; none: as the source.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="The folder that picture names are relative to; none: the source's own.")
    ] = None,
    picture_column: Annotated[
        list[str] | None, typer.Option(help="Where the pictures are; given several times: several pictures a sample.")
    ] = None,
    question_column: Annotated[str | None, typer.Option(help="Where the questions are.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Where the answers, captions or labels are.")] = None,
    type_column: Annotated[str | None, typer.Option(help="Where the types of questions are.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Where the source's ids are.")] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="There are no pictures.")] = False,
    question: Annotated[
        str | None, typer.Option(help="What every picture is asked where there are only captions or labels.")
    ] = None,
    heldout_share: Annotated[
        float, typer.Option(help="Of the samples: scored, not learned from; no picture is on both sides.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Which samples are held out.")] = 17,
    link: Annotated[
        bool, typer.Option("--link/--copy", help="Hard links to the pictures, which take no space, or copies.")
    ] = False,
    encoding: Annotated[str, typer.Option(help="Of the source's text.")] = "utf-8",
    force: Annotated[bool, typer.Option("--force", help="Replace an import of the same name.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Import even what the checks would stop the pipeline for.")
    ] = False,
    write_params: Annotated[
        bool, typer.Option("--write-params", help="Write what follows into the settings file, comments kept.")
    ] = False,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Brings your own pictures and questions into data/, checks them, and says what to do next.

    Example: mgm-lora import cats.csv --pictures photos --answer-column breed --question "Which breed is it?"
    """
    if not 0.0 < heldout_share < 1.0:
        raise typer.BadParameter(f"{heldout_share} is not between 0 and 1", param_hint="--heldout-share")
    settings = _begin(params)
    from mgm_lora.data.importing.column_names import GivenColumns
    from mgm_lora.data.importing.importer import ImportRequest
    from mgm_lora.stages import import_data as stage

    name = stage.name_of(source) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise typer.BadParameter(f"{name!r} holds other letters than A-Z, a-z, 0-9, _, - and .", param_hint="--name")
    given = GivenColumns(
        pictures=tuple(picture_column or ()),
        question=question_column,
        answer=answer_column,
        type=type_column,
        id=id_column,
        text_only=text_only,
    )
    request = ImportRequest(
        source,
        name=name,
        pictures=pictures,
        columns=given,
        question=question,
        heldout_share=heldout_share,
        seed=seed,
        link=link,
        encoding=encoding,
        force=force,
        anyway=anyway,
    )
    stage.run(settings, request=request, params=params, write_params=write_params)


def _begin(params: Path) -> Settings:
    """Every stage's first act: end with the parent, and know the settings."""
    from mgm_lora.stages.process import die_with_parent

    die_with_parent()
    return read_settings(params)


def _quieten_libraries() -> None:
    """What libraries say to their own developers, and their reports to their makers, are kept from people's terminals."""
    defaults = {"TOKENIZERS_PARALLELISM": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for variable, value in defaults.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a missing optional kernel for 4 bit on the CPU
    for module in ("peft", "torch", "transformers"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)


def _one_of(value: str, allowed: Sequence[str], option: str) -> None:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(allowed)}", param_hint=option)
