"""A conversation with a model about some pictures, question by question.

The pictures are looked at once. What was said stays in the language model's cache, and only what is new in the next prompt is computed: the
prompt is made anew from the texts each time, and the cache is kept as far as its tokens are the prompt's. So an answer is the one that the whole
conversation would get at once. It doesn't know where questions come from or answers go.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from mgm_lora.errors import DataError
from mgm_lora.model.answering import check_length, generate_tokens
from mgm_lora.model.markers import mark_pictures
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.template import PICTURE_MARKER


class Chat:
    """Asks, and remembers what was asked and answered."""

    def __init__(self, model: Any, *, processor: MGMProcessor, pictures: Sequence[Image], max_new_tokens: int) -> None:
        """Looks at the pictures.

        Args:
            model: an MGM, adapted or not.
            processor: of the same checkpoint.
            pictures: RGB, in the order in which questions name them; any number.
            max_new_tokens: longest answer.
        """
        self._model, self._processor, self._max_new_tokens = model, processor, max_new_tokens
        self._features = _look(model, pictures, processor=processor)
        self._turns: list[tuple[str, str]] = []
        self._cache: DynamicCache | None = None
        self._cached_ids: list[int] = []

    def ask(self, question: str, *, show: Callable[[str], None] | None = None) -> str:
        """The greedy answer; the first question shows the pictures, where it has no `<image>` they come before it.

        Args:
            question: text.
            show: called with each piece of the answer as it comes; together they are the answer.

        Raises:
            DataError: the question is empty, names pictures that aren't there, or makes the conversation too long. It is then as if it had not
                been asked.
        """
        if self._turns and PICTURE_MARKER in question:
            raise DataError(
                f"the question holds {PICTURE_MARKER}, but all {len(self._features)} pictures were shown with the first one: ask about them in words"
            )
        num_shown_now = 0 if self._turns else len(self._features)
        turns = [*self._turns, ("human", mark_pictures(question, num_pictures=num_shown_now))]
        prompt = self._processor.encode_prompt(turns, num_pictures=len(self._features))
        check_length(prompt, processor=self._processor)
        answer = self._processor.decode(self._continue(prompt, show=show))
        self._turns = [*turns, ("gpt", answer)]
        return answer

    def _continue(self, prompt: list[int], *, show: Callable[[str], None] | None) -> list[int]:
        cache, self._cache = self._reusable(prompt), None  # a cache that was interrupted is not used again
        ids = torch.tensor([prompt])
        [tokens] = generate_tokens(
            self._model,
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            processor=self._processor,
            max_new_tokens=self._max_new_tokens,
            picture_features=self._features,
            past_key_values=cache,
            streamer=None if show is None else AnswerStream(self._processor, show=show),
        )
        self._cache, self._cached_ids = cache, [*prompt, *tokens]
        return tokens

    def _reusable(self, prompt: list[int]) -> DynamicCache:
        """The cache as far as it holds the prompt's beginning; at least the prompt's last token is left to compute."""
        # a cache of windows has forgotten what lies behind them, so that it can't be cut
        if self._cache is None or any(self._cache.is_sliding):
            return DynamicCache(config=self._model.language_model.config)
        held = self._cache.get_seq_length()
        common = _common_length(prompt[:-1], self._cached_ids)
        kept = min(held, self._processor.num_positions(prompt[:common]))
        self._cache.crop(kept - held)
        return self._cache


class AnswerStream(BaseStreamer):
    """Hands on an answer's text as its tokens come, each piece once it can no longer change."""

    def __init__(self, processor: MGMProcessor, *, show: Callable[[str], None]) -> None:
        self._processor, self._show = processor, show
        self._tokens: list[int] = []
        self._shown = ""

    def put(self, value: Tensor) -> None:
        """Takes the next tokens; transformers calls it first with those of the prompt, which are none where it is given as embeddings."""
        self._tokens += value.flatten().tolist()
        text = self._processor.decode(self._tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a letter of which a part is yet to come
            self._hand_on(text)

    def end(self) -> None:
        """Hands on what is left."""
        self._hand_on(self._processor.decode(self._tokens))

    def _hand_on(self, text: str) -> None:
        if len(text) > len(self._shown):
            self._show(text[len(self._shown) :])
            self._shown = text


def _look(model: Any, pictures: Sequence[Image], *, processor: MGMProcessor) -> list[Tensor]:
    device = next(model.parameters()).device
    features = []
    with torch.inference_mode():
        for picture in pictures:  # one at a time: what is kept is small, what is computed is not
            views = processor.pixels(picture)
            features += model.picture_features(views.images[None].to(device), views.images_aux[None].to(device))
    return features


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
