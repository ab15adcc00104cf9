"""Makes everything embedded but the base model: `python -m recipes.embedded`.

data/instructions and data/pictures (tracked by DVC): easy-VQA to learn, easy-VQA held out, and what the base already
knows. data/base: its tokenizer. build/emoji and build/forms (not tracked): what the base is trained on. Same seed and
sources, same bytes. Needs the optional group `recipes` and npm; it doesn't know the model nor its training (`recipes.base`).
"""

import argparse
import json
import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mgm_lora.artifacts import new_artifact
from recipes.conversations import Sample, count_types, guess_by_question, guess_by_type, on_white, write_samples
from recipes.easy_vqa import EasyVqa, select_easy_vqa
from recipes.emoji import (
    HELDOUT_STYLE,
    TRAINING_STYLES,
    EmojiPicture,
    draw_fluent_pictures,
    drop_repeated,
    read_things,
    read_vendor_pictures,
    split_things,
)
from recipes.emoji_questions import ask_all, ask_some
from recipes.form_questions import PHRASINGS as FORM_PHRASINGS
from recipes.form_questions import ask_forms, ask_yes_no
from recipes.forms import Form, draw_form
from recipes.sources import FLUENT, NOTO, TWEMOJI, easy_vqa_folder, fetch_npm_package
from recipes.tokenizer import save_tokenizer, share_of_whole_words, train_tokenizer

SEED = 17
NUM_TRAIN_PICTURES = 1900
NUM_HELDOUT_PICTURES = 350
TRAIN_COUNTS = {"colour": 2400, "shape": 2350, "yes_no": 1250}
HELDOUT_COUNTS = {"colour": 300, "shape": 300, "yes_no": 200}
HELDOUT_THING_SHARE = 0.2
NEW_THING_COUNTS = {"emoji_group": 80, "emoji_colour": 60}
NEW_STYLE_COUNTS = {"emoji_name": 120, "emoji_group": 80, "emoji_colour": 60}
NUM_FORMS = 3000
KNOWN_FORM_FAMILIES = ("form_kind", "form_place")
NUM_KNOWN_FORMS = 60
NUM_PHRASINGS = 2
VOCAB_SIZE = 1500
MAX_TEXT_TOKENS = 2048

logger = logging.getLogger(__name__)


def main() -> None:
    """Makes it all, and prints what came out as JSON."""
    parser = argparse.ArgumentParser(prog="python -m recipes.embedded", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of what DVC tracks")
    parser.add_argument("--build", type=Path, default=Path("build"), help="folder of what is fetched and thrown away")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(make_embedded(arguments.data, build=arguments.build), indent=1))


def make_embedded(data: Path, *, build: Path) -> dict[str, object]:
    """Writes below `data` what is tracked, below `build` what the base is trained on; returns counts and baselines."""
    easy_vqa = _draw_easy_vqa()
    train_pictures, known_pictures, known, emoji_counts = _split_emoji(build / "sources")
    emoji_samples = ask_all(train_pictures, num_phrasings=NUM_PHRASINGS, seed=SEED)
    forms = _draw_forms("train", NUM_FORMS, seed=SEED)
    known_forms = _draw_forms("known", NUM_KNOWN_FORMS, seed=SEED + 1)
    form_samples = ask_forms(forms, part="train", families=tuple(FORM_PHRASINGS), seed=SEED)
    form_samples += ask_yes_no(forms, part="train", seed=SEED)
    known_form_samples = ask_forms(known_forms, part="known", families=KNOWN_FORM_FAMILIES, seed=SEED)
    known += [replace(sample, image=f"forms/{sample.image}") for sample in known_form_samples]
    base_samples = emoji_samples + form_samples
    cutouts = {picture.file_name: picture.cutout for picture in train_pictures}
    _write_lessons(build / "emoji", cutouts, emoji_samples)
    _write_lessons(build / "forms", {name: form.picture for name, form in forms.items()}, form_samples)
    known_drawn = {name: on_white(picture.cutout) for name, picture in known_pictures.items()}
    known_drawn |= {f"forms/{name}": form.picture for name, form in known_forms.items()}
    with new_artifact(data / "pictures") as folder:
        _write_pictures(folder, easy_vqa, known_drawn)
    with new_artifact(data / "instructions") as folder:
        write_samples(folder / "train.json", easy_vqa.train)
        write_samples(folder / "heldout.json", easy_vqa.heldout)
        write_samples(folder / "known.json", known)
    whole_words = _make_tokenizer(data / "base", base_samples, easy_vqa.train)
    return {
        "easy_vqa": _report_easy_vqa(easy_vqa),
        "emoji": emoji_counts | _report_known(base_samples, known),
        "tokenizer": whole_words,
    }


def _draw_easy_vqa() -> EasyVqa:
    return select_easy_vqa(
        easy_vqa_folder(),
        num_train_pictures=NUM_TRAIN_PICTURES,
        num_heldout_pictures=NUM_HELDOUT_PICTURES,
        train_counts=TRAIN_COUNTS,
        heldout_counts=HELDOUT_COUNTS,
        seed=SEED,
    )


def _split_emoji(sources: Path) -> tuple[list[EmojiPicture], dict[str, EmojiPicture], list[Sample], dict[str, object]]:
    """Training pictures, known pictures by their path in the data, known samples, and the counts on the way."""
    noto, twemoji, fluent = (fetch_npm_package(package, folder=sources) for package in (NOTO, TWEMOJI, FLUENT))
    things = read_things(noto)
    train_things, new_things = split_things(things, heldout_share=HELDOUT_THING_SHARE, seed=SEED)
    packages = dict(zip(TRAINING_STYLES, (noto, twemoji), strict=True))
    read_train = [p for s in TRAINING_STYLES for p in read_vendor_pictures(packages[s], train_things, style=s)]
    read_new = [p for s in TRAINING_STYLES for p in read_vendor_pictures(packages[s], new_things, style=s)]
    read_style = draw_fluent_pictures(fluent, train_things)
    seen: set[bytes] = set()
    # training first: what looks exactly like a training picture is not held out
    train, new_thing, new_style = (drop_repeated(read, seen=seen) for read in (read_train, read_new, read_style))
    asked = ask_some(new_thing, part="new_thing", counts=NEW_THING_COUNTS, seed=SEED)
    asked += ask_some(new_style, part="new_style", counts=NEW_STYLE_COUNTS, seed=SEED)
    by_name = {picture.file_name: picture for picture in new_thing + new_style}
    known = [replace(sample, image=f"emoji/{sample.image}") for sample in asked]
    counts: dict[str, object] = {
        "things": {"train": len(train_things), "held out": len(new_things)},
        "heldout_style": HELDOUT_STYLE,
        "pictures": {"train": len(train), "new_thing": len(new_thing), "new_style": len(new_style)},
        "repeated_pictures": len(read_train + read_new + read_style) - len(seen),
        "things_without_heldout_style": len(train_things) - len(read_style),
    }
    return train, {f"emoji/{sample.image}": by_name[sample.image] for sample in asked}, known, counts


def _draw_forms(part: str, count: int, *, seed: int) -> dict[str, Form]:
    """By file name."""
    rng = random.Random(seed)
    return {f"{part}-{number:05d}.png": draw_form(rng) for number in range(count)}


def _write_lessons(target: Path, pictures: Mapping[str, Image.Image], samples: Sequence[Sample]) -> None:
    with new_artifact(target) as folder:
        (folder / "pictures").mkdir(parents=True)
        for name, picture in pictures.items():
            picture.save(folder / "pictures" / name)
        write_samples(folder / "train.json", samples)


def _write_pictures(folder: Path, easy_vqa: EasyVqa, known: Mapping[str, Image.Image]) -> None:
    for image in [*easy_vqa.pictures, *known]:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
    for image, source in easy_vqa.pictures.items():
        shutil.copyfile(source, folder / image)
    for image, picture in known.items():
        picture.save(folder / image, optimize=True)


def _make_tokenizer(folder: Path, *sets: Sequence[Sample]) -> dict[str, object]:
    texts = [text for samples in sets for sample in samples for text in (sample.question, sample.answer)]
    tokenizer = train_tokenizer(texts, vocab_size=VOCAB_SIZE, max_length=MAX_TEXT_TOKENS)
    save_tokenizer(tokenizer, folder)
    words = sorted({word for text in texts for word in text.rstrip("?").split()})
    return {"vocab": len(tokenizer), "words": len(words), "whole_words": share_of_whole_words(tokenizer, words)}


def _report_easy_vqa(easy_vqa: EasyVqa) -> dict[str, object]:
    open_questions = [sample for sample in easy_vqa.heldout if sample.question_type != "yes_no"]
    yes_no = [sample for sample in easy_vqa.heldout if sample.question_type == "yes_no"]
    return {
        "train": count_types(easy_vqa.train),
        "heldout": count_types(easy_vqa.heldout),
        "pictures": {
            "train": len({sample.image for sample in easy_vqa.train}),
            "heldout": len({sample.image for sample in easy_vqa.heldout}),
        },
        "leaked_pictures": easy_vqa.num_leaked_pictures,
        "repeated_pictures": easy_vqa.num_repeated_pictures,
        "guess": {
            "open": _guesses(easy_vqa.train, open_questions),
            "yes_no": _guesses(easy_vqa.train, yes_no),
        },
    }


def _report_known(base_samples: Sequence[Sample], known: Sequence[Sample]) -> dict[str, object]:
    names = {sample.answer for sample in base_samples if sample.question_type == "emoji_name"}
    types = count_types(known)
    by_type = {name: [sample for sample in known if sample.question_type == name] for name in types}
    return {
        "train": count_types(base_samples),
        "known": types,
        "known_pictures": len({sample.image for sample in known}),
        "names": len(names),
        "chance": {name: _guesses(base_samples, samples) for name, samples in by_type.items()}
        | {"all": _guesses(base_samples, known)},
        "guess_yes_no_in_train": _guesses(*_halves(base_samples)),
    }


def _halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    yes_no = [sample for sample in samples if sample.question_type == "emoji_yes_no"]
    shuffled = random.Random(SEED).sample(yes_no, len(yes_no))
    return shuffled[::2], shuffled[1::2]


def _guesses(train: Sequence[Sample], heldout: Sequence[Sample]) -> dict[str, float]:
    return {
        "by_question": round(guess_by_question(train, heldout), 4),
        "by_type": round(guess_by_type(train, heldout), 4),
        "by_type_at_best": round(guess_by_type(heldout, heldout), 4),
    }


if __name__ == "__main__":
    main()
