"""Commands beside the pipeline: what is done before it (preset, import, convert) and after it (ask, benchmark).

As with the stages, what a command needs is imported only when it runs. It doesn't know the command line's program.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from mgm_lora.invocation import DEFAULT_PARAMS, Params, begin

BenchmarkName = Literal["textvqa", "gqa", "pope", "scienceqa", "mme", "mmbench", "vqav2"]


def preset(
    name: Annotated[str | None, typer.Argument(help="Which; none: lists what there is.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference and write nothing.")] = False,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Writes settings that fit a card into the settings file, comments and your own paths kept, and shows the difference.

    Example: mgm-lora preset mgm-2b-24gb --dry-run
    """
    from mgm_lora.stages import preset as stage

    stage.run(name, params=params, dry_run=dry_run)


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
    settings = begin(params)
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
            help="A folder (artifacts/trained/lora-17) or a registered version (models:/NAME@challenger); none: the base answers."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Answers a question about a picture, or several, or none; the answer appears as it comes.

    Example: mgm-lora ask data/pictures/easy_vqa/heldout/1.png "what color is the shape?" --adapter artifacts/trained/lora-17

    Example: mgm-lora ask 1.png "what differs?" --and 2.png
    """
    settings = begin(params)
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


def benchmark(
    name: Annotated[BenchmarkName, typer.Argument(help="Which; docs/benchmarks.md says what each asks and scores.")],
    questions: Annotated[
        list[Path], typer.Option(help="The official question file (MME: its folder); for POPE once per category.")
    ],
    annotations: Annotated[Path | None, typer.Option(help="VQAv2: the official annotations; none: no score.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="The folder of the official pictures.")] = None,
    split: Annotated[str | None, typer.Option(help="ScienceQA: which split; none: test.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A question file of LLaVA's: its prompts are asked, its ids are known.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="base, merged, or an arm of params.yaml; none: base, or --adapter.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which of the arm's trainings; none: the first.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A folder, or a registered version (models:/NAME@challenger).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first so many only, for a try.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions answered at once; none: evaluation.batch_size.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    predictions: Annotated[
        list[Path] | None, typer.Option(help="Score these answers, made elsewhere, and ask no model.")
    ] = None,
    called: Annotated[
        str | None, typer.Option("--name", help="What the model of --predictions is called; none: as the file.")
    ] = None,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Asks a model a public benchmark's questions and scores the answers; killed, it goes on where it was when run again.

    Example: mgm-lora benchmark textvqa --questions TextVQA_0.5.1_val.json --pictures train_images --model lora

    Example: mgm-lora benchmark gqa --questions testdev_balanced_questions.json --predictions llava-v1.5-7b.jsonl
    """
    settings = begin(params)
    from mgm_lora.stages import benchmark as stage

    request = stage.BenchmarkRequest(
        name,
        questions=tuple(questions),
        annotations=annotations,
        pictures=pictures,
        split=split,
        prompts=prompts,
        limit=limit,
    )
    if predictions:
        if model or adapter or seed is not None:
            raise typer.BadParameter(
                "asks no model: leave --model, --seed and --adapter away", param_hint="--predictions"
            )
        stage.score_answers(settings, request=request, predictions=predictions, name=called)
        return
    if called:
        raise typer.BadParameter("is of --predictions: a model that is asked has its name", param_hint="--name")
    choice = stage.ModelChoice(model, seed=seed, adapter=adapter, batch_size=batch_size, max_new_tokens=max_new_tokens)
    stage.ask_model(settings, request=request, model=choice)
