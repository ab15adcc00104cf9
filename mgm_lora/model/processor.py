"""Turns conversations and pictures into what the model takes, and its tokens into text.

Belongs to a checkpoint: sizes come from its `config.json`, the tokenizer from its files. It doesn't batch and knows no
data set.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL.Image import Image
from transformers import AutoTokenizer

from mgm_lora.errors import CheckpointError
from mgm_lora.model.checkpoint import read_config, resolve_checkpoint
from mgm_lora.model.config import MGMConfig, changed_config
from mgm_lora.model.markers import pictures_per_message, show_pictures
from mgm_lora.model.pictures import Pixels, picture_pixels
from mgm_lora.model.published_towers import TowerPlaces
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN
from mgm_lora.model.template import (
    PICTURE_MARKER,
    TEMPLATES,
    Piece,
    Template,
    conversation_pieces,
    find_template,
    question_pieces,
)

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"


@dataclass(frozen=True)
class EncodedText:
    """A conversation as ids, -200 for a picture, and what is learned of it, -100 for nothing."""

    input_ids: list[int]
    labels: list[int]


class MGMProcessor:
    """Tokenizer, template and picture sizes of one checkpoint."""

    def __init__(self, tokenizer: Any, *, config: MGMConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.template = find_template(config.conversation)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        towers: TowerPlaces | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Self:
        """Of a folder or hub id, with `changes` to its configuration; raises CheckpointError where its tokenizer lacks the template's tokens."""
        folder = resolve_checkpoint(name, revision=revision)
        # given, so that transformers doesn't guess a model type and warn
        config = changed_config(read_config(folder, towers=towers), changes or {})
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"'{folder}' holds no tokenizer that can be read: {error}") from error
        processor = cls(tokenizer, config=config)
        _check_tokens(tokenizer, template=processor.template, folder=folder)
        return processor

    @property
    def num_picture_tokens(self) -> int:
        """Tokens that a picture takes in the sequence."""
        return self.config.num_picture_tokens

    @property
    def pad_token_id(self) -> int:
        """What short rows are filled with."""
        own = self.tokenizer.pad_token_id  # Llama's tokenizers have none
        return int(self.tokenizer.convert_tokens_to_ids(self.template.pad_token) if own is None else own)

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end an answer."""
        ends = [self.tokenizer.convert_tokens_to_ids(token) for token in self.template.stop_tokens]
        return list(dict.fromkeys([*ends, self.tokenizer.eos_token_id]))

    def encode_sample(self, turns: Sequence[tuple[str, str]], *, num_pictures: int | None = None) -> EncodedText:
        """A whole conversation; learned are the answers with what ends them.

        Args:
            turns: (role, text) with `<image>` in questions where pictures are.
            num_pictures: of the sample; none: one in each message with markers, as published.

        Raises:
            DataError: the turns don't alternate, or the markers can't stand for so many pictures.
        """
        return self._encode(conversation_pieces(turns, template=self.template), turns=turns, num_pictures=num_pictures)

    def encode_prompt(self, turns: Sequence[tuple[str, str]], *, num_pictures: int | None = None) -> list[int]:
        """A conversation that ends with a question, up to where the answer begins; arguments and errors as of `encode_sample`."""
        return self._encode(
            question_pieces(turns, template=self.template), turns=turns, num_pictures=num_pictures
        ).input_ids

    def num_tokens(self, encoded: EncodedText) -> int:
        """Length in the sequence, picture tokens included."""
        return self.num_positions(encoded.input_ids)

    def num_positions(self, input_ids: Sequence[int]) -> int:
        """Length of a prompt in the sequence, picture tokens included."""
        return len(input_ids) + input_ids.count(PICTURE_TOKEN) * (self.num_picture_tokens - 1)

    def decode(self, token_ids: Sequence[int]) -> str:
        """An answer's text, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()

    def pixels(self, picture: Image) -> Pixels:
        """Both views of an RGB picture."""
        return picture_pixels(
            picture,
            image_size=self.config.vision_config.image_size,
            image_size_aux=self.config.image_size_aux,
            aspect_ratio=self.config.image_aspect_ratio,
            image_grid=self.config.image_grid,
            image_global=self.config.image_global,
        )

    def save_pretrained(self, folder: Path) -> None:
        """Writes the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)
        if getattr(self.tokenizer, "legacy", False):
            _keep_legacy(folder)

    def _encode(
        self, pieces: Sequence[Piece], *, turns: Sequence[tuple[str, str]], num_pictures: int | None
    ) -> EncodedText:
        pieces = show_pictures(pieces, counts=pictures_per_message(turns, num_pictures=num_pictures))
        text = "".join(piece.text for piece in pieces)
        learned = [piece.learned for piece in pieces for _ in piece.text]
        markers = [found.start() for found in re.finditer(PICTURE_MARKER, text)]
        pictures = [place for place in markers if not learned[place]]  # in an answer it is but text
        input_ids = [int(self.tokenizer.bos_token_id)] if self.template.begins_with_bos else []
        labels = [IGNORE_INDEX] * len(input_ids)
        start = 0
        for end in [*pictures, len(text)]:
            encoded = self.tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
            for token_id, (begin, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                input_ids.append(token_id)
                # A token that begins before the answer does is part of the prompt.
                labels.append(token_id if learned[start + begin] else IGNORE_INDEX)
            if end < len(text):
                input_ids.append(PICTURE_TOKEN)
                labels.append(IGNORE_INDEX)
            start = end + len(PICTURE_MARKER)
        return EncodedText(input_ids=input_ids, labels=labels)


def _keep_legacy(folder: Path) -> None:
    # transformers 5.23 leaves it out, and what is read back puts no space before a later turn
    path = folder / TOKENIZER_CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "legacy": True}, indent=2), "utf-8")


def _check_tokens(tokenizer: Any, *, template: Template, folder: Path) -> None:
    def is_one(token: str) -> bool:
        return list(tokenizer(token, add_special_tokens=False)["input_ids"]) == [tokenizer.convert_tokens_to_ids(token)]

    missing = [token for token in template.special_tokens if not is_one(token) or token == tokenizer.unk_token]
    if template.begins_with_bos and tokenizer.bos_token_id is None:
        missing.append("a bos_token")
    if tokenizer.pad_token_id is None and tokenizer.convert_tokens_to_ids(template.pad_token) is None:
        missing.append(f"a pad_token, or {template.pad_token}")
    if missing:
        raise CheckpointError(
            f"the tokenizer of '{folder}' lacks {missing}, which the conversation template '{template.name}' needs: is base.conversation"
            f" (or config.json's `conversation`) right? Known are {', '.join(TEMPLATES)}"
        )
