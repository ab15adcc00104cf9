"""MGM: CLIP and ConvNeXt look, patch-info-mining joins them, the projector translates, the language model answers.

The module tree gives every application point a full path: `language_model.model.layers...`,
`vision_tower.encoder.layers...`, `mm_projector.0`, `vlm_uni_aux_projector.1`. It knows neither PEFT nor files.

Shapes: B rows, T prompt positions, L positions after insertion, S picture slots, N tokens of a picture, V views of a picture
(no dimension where there is one), P patches of a view, D CLIP's width, H hidden size. In logits, P labelled positions and V
vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from mgm_lora.errors import DataError
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.convnext import ConvNextPyramid, join_stages
from mgm_lora.model.lean import LeanStep
from mgm_lora.model.loss import head_logits, losses_by_position, summed_loss
from mgm_lora.model.mining import mine_patch_info, mining_projector, without_autocast
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN, MergedSequence, merge_pictures, used_slots
from mgm_lora.model.views import Square, join_square, join_whole, squares

_JOINED_BYTES = 2**28


@dataclass
class MGMOutput(ModelOutput):
    """`loss` where labels are given; `logits` as `logits_at` asks."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class MGMForConditionalGeneration(PreTrainedModel):
    """The whole model; the constructor gives random weights."""

    config_class = MGMConfig
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = False  # model.lean says what is computed again, part by part
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    if TYPE_CHECKING:  # transformers wraps these in a way that hides their arguments
        config: MGMConfig

        def to(self, *arguments: Any, **options: Any) -> Self: ...  # type: ignore[override]
        def eval(self) -> Self: ...

    def __init__(self, config: MGMConfig) -> None:
        super().__init__(config)
        vision_width, aux_width = config.vision_config.hidden_size, sum(config.aux_config.dims)
        hidden_size = config.text_config.hidden_size
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.vision_tower_aux = ConvNextPyramid(config.aux_config)
        self.vlm_uni_query_projector = mining_projector(vision_width, vision_width)
        self.vlm_uni_aux_projector = mining_projector(aux_width, vision_width)
        self.vlm_uni_val_projector = mining_projector(aux_width, vision_width)
        self.mm_projector = nn.Sequential(
            nn.Linear(vision_width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.lean = LeanStep()
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor | None = None,
        images_aux: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_at: Literal["none", "all", "labelled"] | None = None,
        sample_ids: Tensor | None = None,
    ) -> MGMOutput:
        """Loss, logits, or both.

        Args:
            input_ids: [B, T], -200 for a picture; padded on the right.
            attention_mask: [B, T].
            images: [S, V, 3, h, w], CLIP's views: the squares of the grid, row by row, then the whole; a row takes one slot per picture, at
                least one.
            images_aux: [S, 3, h', w'], the high-resolution view.
            labels: [B, T], -100 where nothing is to be learned.
            num_items_in_batch: labelled tokens that the loss is the mean over; none: those of this batch.
            logits_at: `all` gives [B, L, V]; `labelled` gives [P, V], those that predict the P labelled positions, row after row; by default
                `all` without labels and `none` with them.
            sample_ids: [B, T], for rows that hold several samples: the number of the sample that a position is of. Each sees itself alone.
        """
        merged = self.merge_inputs(
            input_ids,
            attention_mask=attention_mask,
            images=images,
            images_aux=images_aux,
            labels=labels,
            sample_ids=sample_ids,
        )
        hidden_BLH = self._text_body(merged)
        if labels is None:
            return MGMOutput(logits=head_logits(self.language_model, hidden_BLH))
        targets = merged.labels[:, 1:]
        rows, positions = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
        hidden_PH = hidden_BLH[rows, positions]
        total = summed_loss(
            hidden_PH, targets[rows, positions], language_model=self.language_model, chunk=self.lean.loss_chunk
        )
        loss = total / (len(rows) if num_items_in_batch is None else num_items_in_batch)
        wanted = {"all": hidden_BLH, "labelled": hidden_PH}.get(logits_at or "none")
        return MGMOutput(loss=loss, logits=None if wanted is None else head_logits(self.language_model, wanted))

    @torch.no_grad()
    def label_losses(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        images: Tensor | None = None,
        images_aux: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """How surprised the model is by each row's labels: the sum of their cross-entropies, [B], and their number, [B].

        Arguments as `forward` takes them; labels beyond the model's longest sequence are not read.
        """
        merged = self.merge_inputs(
            input_ids, attention_mask=attention_mask, images=images, images_aux=images_aux, labels=labels
        )
        hidden_BLH = self._text_body(merged)
        losses_P = losses_by_position(
            hidden_BLH.flatten(0, 1)[merged.predicting],
            merged.targets,
            language_model=self.language_model,
            chunk=self.lean.loss_chunk,
        )
        rows_P = merged.predicting // hidden_BLH.shape[1]
        num_rows = len(input_ids)
        sums_B = losses_P.new_zeros(num_rows).index_add_(0, rows_P, losses_P)
        return sums_B, torch.bincount(rows_P, minlength=num_rows)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor | None = None,
        images_aux: Tensor | None = None,
        picture_features: Sequence[Tensor] | None = None,
        **options: Any,
    ) -> Any:
        """The new tokens only, [B, <= max_new_tokens]; `options` go to transformers' `generate` of the language model.

        Args:
            input_ids: [B, T], -200 for a picture; padded on either side, the model's own padding is on the left.
            attention_mask: [B, T].
            images: as `forward` takes them.
            images_aux: as `forward` takes them.
            picture_features: instead of both, what `picture_features` made of the pictures, in the order of their places.
            options: among them `past_key_values`, a cache of the sequence's beginning, which is not computed again.
        """
        merged = self.merge_inputs(
            input_ids,
            attention_mask=attention_mask,
            images=images,
            images_aux=images_aux,
            picture_features=picture_features,
            padding_side="left",
        )
        return self.language_model.generate(
            inputs_embeds=merged.inputs_embeds, attention_mask=merged.attention_mask.long(), **options
        )

    def merge_inputs(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor,
        images: Tensor | None = None,
        images_aux: Tensor | None = None,
        picture_features: Sequence[Tensor] | None = None,
        labels: Tensor | None = None,
        padding_side: Literal["left", "right"] = "right",
        sample_ids: Tensor | None = None,
    ) -> MergedSequence:
        """The language model's input: scaled embeddings with the pictures in their places; slots that no row uses are not computed."""
        slots = used_slots(input_ids)
        if picture_features is None:
            flat = [slot for row in slots for slot in row]
            picture_features = self._features_of(flat, images=images, images_aux=images_aux)
        embeds = self.language_model.get_input_embeddings()(input_ids.masked_fill(input_ids == PICTURE_TOKEN, 0))
        return merge_pictures(
            embeds,
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            picture_features=_by_row(picture_features, slots=slots),
            max_length=self.config.max_length,
            padding_side=padding_side,
            sample_ids=sample_ids,
        )

    def picture_features(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """What stands in the sequence for S pictures, [S, N, H]: as the language model takes it, scaled like its own embeddings."""
        # transformers 5 scales Gemma's embeddings in the embedding itself; the published MGM scaled the merged sequence, pictures and all.
        scale = getattr(self.language_model.get_input_embeddings(), "embed_scale", 1.0)
        scale = scale.to(_dtype_of(self.mm_projector)) if isinstance(scale, Tensor) else scale
        return self.encode_images(images, images_aux) * scale

    def encode_images(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """Pictures to language model tokens, the whole's before the squares', [S, N, H]; before the language model's embedding scale."""
        clip_SVPD = self.clip_features(images)
        if self.config.num_views == 1:
            clip_SVPD = clip_SVPD[:, None]
        at_once = self._pictures_at_once(images_aux)
        looked = [
            self._look(clip, self.aux_stages(aux))
            for clip, aux in zip(clip_SVPD.split(at_once), images_aux.split(at_once), strict=True)
        ]
        return cast(Tensor, self.mm_projector(torch.cat(looked)))

    def clip_features(self, images: Tensor) -> Tensor:
        """CLIP's patches of `hidden_states[select_layer]`, [S, V, P, D]; layers behind that one are not computed."""
        tower = self.vision_tower
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(tower)):
            hidden = tower.pre_layrnorm(tower.embeddings(images.flatten(end_dim=-4).to(tower.dtype)))
            for layer in tower.encoder.layers[: self.config.num_used_vision_layers]:
                hidden = layer(hidden, None)
        return cast(Tensor, hidden[:, 1:].unflatten(0, images.shape[:-3]))

    def aux_stages(self, images_aux: Tensor) -> list[Tensor]:
        """The pyramid's four stages, [S, C_i, h'/2^(i+2), w'/2^(i+2)]."""
        tower = self.vision_tower_aux
        dtype = _dtype_of(tower)
        trains = torch.is_grad_enabled() and _trains(tower)
        # A frozen tower in reduced precision computes in it: under autocast a card's norms would give float32.
        plain = not trains and dtype != torch.float32
        with torch.set_grad_enabled(trains), without_autocast(images_aux) if plain else nullcontext():
            return cast(list[Tensor], tower(images_aux.to(dtype), run=partial(self.lean.run, "vision_tower_aux")))

    def aux_features(self, images_aux: Tensor) -> Tensor:
        """The joined pyramid, [S, C, h'/4, w'/4]."""
        return join_stages(self.aux_stages(images_aux))

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embedding."""
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return cast(nn.Module, self.language_model.get_output_embeddings())

    def _features_of(self, slots: list[int], *, images: Tensor | None, images_aux: Tensor | None) -> list[Tensor]:
        if not slots:
            return []
        if images is None or images_aux is None or slots[-1] >= min(len(images), len(images_aux)):
            found = "none" if images is None or images_aux is None else f"{len(images)} and {len(images_aux)}"
            raise DataError(f"the rows need {slots[-1] + 1} picture slots, found {found} in images and images_aux")
        if images.shape[1:] != self.config.images_shape:
            raise DataError(
                f"a picture in images must be {list(self.config.images_shape)} (image_grid {self.config.image_grid}, image_global"
                f" {self.config.image_global}), found {list(images.shape[1:])}: was it made with this checkpoint's processor?"
            )
        return list(self.picture_features(images[slots], images_aux[slots]))

    def _look(self, clip_SVPD: Tensor, stages: list[Tensor]) -> Tensor:
        """What CLIP sees in each view with what its patches find in high resolution, [S, V * P, D]; one view's pyramid is joined at a time."""
        seen = [
            clip_SVPD[:, number] + self.lean.run("mining", partial(self._mine, square), clip_SVPD[:, number], *stages)
            for number, square in self._views()
        ]
        return torch.cat(seen, dim=1)

    def _views(self) -> Iterator[tuple[int, Square | None]]:
        """The views' numbers in `images`, in the order of their tokens: the whole comes last there and first here."""
        grid = squares(self.config.image_grid)
        if self.config.image_global:
            yield len(grid), None
        yield from enumerate(grid)

    def _mine(self, square: Square | None, clip_SPD: Tensor, *stages: Tensor) -> Tensor:
        grid = self.config.image_grid
        return mine_patch_info(
            clip_SPD,
            join_whole(stages, grid=grid) if square is None else join_square(stages, square=square, grid=grid),
            query_projector=self.vlm_uni_query_projector,
            aux_projector=self.vlm_uni_aux_projector,
            val_projector=self.vlm_uni_val_projector,
        )

    def _pictures_at_once(self, images_aux: Tensor) -> int:
        """Pictures of which a view's joined pyramid exists at once: 106,168,320 numbers each in MGM-2B, so one at a time there."""
        height, width = (side // (4 * self.config.image_grid) for side in images_aux.shape[-2:])
        numbers = int(sum(self.config.aux_config.dims)) * height * width
        return max(1, _JOINED_BYTES // (numbers * _dtype_of(self.vision_tower_aux).itemsize))

    def _text_body(self, merged: MergedSequence) -> Tensor:
        # Rows are padded on the right: no token sees the padding behind it, so that the mask is the causal one and need not exist. Where a row
        # holds several samples, transformers makes the mask from the positions, which begin anew with each sample.
        body = self.language_model.get_decoder()
        output = body(inputs_embeds=merged.inputs_embeds, position_ids=merged.position_ids, use_cache=False)
        return cast(Tensor, output.last_hidden_state)


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _by_row(features: Sequence[Tensor], *, slots: list[list[int]]) -> list[list[Tensor]]:
    num_places = sum(len(row) for row in slots)
    if len(features) != num_places:
        raise DataError(f"the rows have {num_places} places for pictures, found the features of {len(features)}")
    rest = iter(features)
    return [[next(rest) for _ in row] for row in slots]


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
