"""MGM: CLIP and ConvNeXt look, patch-info-mining joins them, the projector translates, the language model answers.

The module tree gives every application point a full path: `language_model.model.layers...`,
`vision_tower.encoder.layers...`, `mm_projector.0`, `vlm_uni_aux_projector.1`. It knows neither PEFT nor files.

Shapes: B rows, T prompt positions, L positions after insertion, S picture slots, N tokens of a picture, D CLIP's width,
H hidden size, V vocabulary.
"""

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
from mgm_lora.model.loss import head_logits, summed_loss
from mgm_lora.model.mining import mine_patch_info, mining_projector, without_autocast
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN, MergedSequence, merge_pictures, used_slots

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
            images: [S, 3, h, w], CLIP's view; a row takes one slot per picture, at least one.
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
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor | None = None,
        images_aux: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """The new tokens only, [B, <= max_new_tokens]; `options` go to transformers' `generate` of the language model."""
        merged = self.merge_inputs(
            input_ids, attention_mask=attention_mask, images=images, images_aux=images_aux, padding_side="left"
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
        labels: Tensor | None = None,
        padding_side: Literal["left", "right"] = "right",
        sample_ids: Tensor | None = None,
    ) -> MergedSequence:
        """The language model's input: scaled embeddings with the pictures in their places; slots that no row uses are not computed."""
        slots = used_slots(input_ids)
        flat = [slot for row in slots for slot in row]
        features = self._features_of(flat, images=images, images_aux=images_aux)
        embeds = self.language_model.get_input_embeddings()(input_ids.masked_fill(input_ids == PICTURE_TOKEN, 0))
        return merge_pictures(
            embeds,
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            picture_features=[[features[slot] for slot in row] for row in slots],
            max_length=self.config.max_length,
            padding_side=padding_side,
            sample_ids=sample_ids,
        )

    def encode_images(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """Pictures to language model tokens, [S, N, H], before the language model's embedding scale."""
        clip_SND = self.clip_features(images)
        at_once = self._pictures_at_once(images_aux)
        found = [
            self.lean.run("mining", self._mine, clip, *self.aux_stages(views))
            for clip, views in zip(clip_SND.split(at_once), images_aux.split(at_once), strict=True)
        ]
        return cast(Tensor, self.mm_projector(clip_SND + torch.cat(found)))

    def clip_features(self, images: Tensor) -> Tensor:
        """CLIP's patches of `hidden_states[select_layer]`, [S, N, D]; layers behind that one are not computed."""
        tower = self.vision_tower
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(tower)):
            hidden = tower.pre_layrnorm(tower.embeddings(images.to(tower.dtype)))
            for layer in tower.encoder.layers[: self.config.num_used_vision_layers]:
                hidden = layer(hidden, None)
        return cast(Tensor, hidden[:, 1:])

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

    def _features_of(self, slots: list[int], *, images: Tensor | None, images_aux: Tensor | None) -> dict[int, Tensor]:
        if not slots:
            return {}
        if images is None or images_aux is None or slots[-1] >= min(len(images), len(images_aux)):
            found = "none" if images is None or images_aux is None else f"{len(images)} and {len(images_aux)}"
            raise DataError(f"the rows need {slots[-1] + 1} picture slots, found {found} in images and images_aux")
        scale = self._embedding_scale()
        features = self.encode_images(images[slots], images_aux[slots]) * scale
        return dict(zip(slots, features, strict=True))

    def _embedding_scale(self) -> Tensor | float:
        # transformers 5 scales Gemma's embeddings in the embedding itself; the published MGM scaled the merged sequence, pictures and all.
        scale = getattr(self.language_model.get_input_embeddings(), "embed_scale", 1.0)
        return scale.to(_dtype_of(self.mm_projector)) if isinstance(scale, Tensor) else scale

    def _mine(self, clip_SND: Tensor, *stages: Tensor) -> Tensor:
        return mine_patch_info(
            clip_SND,
            join_stages(stages),
            query_projector=self.vlm_uni_query_projector,
            aux_projector=self.vlm_uni_aux_projector,
            val_projector=self.vlm_uni_val_projector,
        )

    def _pictures_at_once(self, images_aux: Tensor) -> int:
        """Pictures whose joined pyramid exists at once: 108,380,160 numbers each in MGM-2B, so one at a time there."""
        height, width = images_aux.shape[-2:]
        numbers = int(sum(self.config.aux_config.dims)) * (height // 4) * (width // 4)
        return max(1, _JOINED_BYTES // (numbers * _dtype_of(self.vision_tower_aux).itemsize))

    def _text_body(self, merged: MergedSequence) -> Tensor:
        # Rows are padded on the right: no token sees the padding behind it, so that the mask is the causal one and need not exist. Where a row
        # holds several samples, transformers makes the mask from the positions, which begin anew with each sample.
        body = self.language_model.get_decoder()
        output = body(inputs_embeds=merged.inputs_embeds, position_ids=merged.position_ids, use_cache=False)
        return cast(Tensor, output.last_hidden_state)


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
