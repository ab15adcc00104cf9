"""MGM: CLIP and ConvNeXt look, patch-info-mining joins them, the projector translates, the language model answers.

The module tree gives every application point a full path: `language_model.model.layers...`,
`vision_tower.encoder.layers...`, `mm_projector.0`, `vlm_uni_aux_projector.1`. It knows neither PEFT nor files.

Shapes: B rows, T prompt positions, L positions after insertion, S picture slots, N tokens of a picture, D CLIP's width,
H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, CLIPVisionModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from mgm_lora.errors import DataError
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.convnext import ConvNextPyramid, join_stages
from mgm_lora.model.mining import mine_patch_info, mining_projector
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN, MergedSequence, merge_pictures, used_slots


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
    supports_gradient_checkpointing = True
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
        """
        merged = self.merge_inputs(
            input_ids, attention_mask=attention_mask, images=images, images_aux=images_aux, labels=labels
        )
        hidden_BLH = self._text_body(merged)
        wanted = logits_at or ("all" if labels is None else "none")
        if labels is None:
            return MGMOutput(logits=self.language_model.lm_head(hidden_BLH))
        # Only labelled positions reach the head: of ~800 tokens of a sample 576 are picture tokens, and Gemma's head is 256,000 wide.
        targets = merged.labels[:, 1:]
        labelled = targets != IGNORE_INDEX
        logits_PV = self.language_model.lm_head(hidden_BLH[:, :-1][labelled])
        total = F.cross_entropy(logits_PV.float(), targets[labelled], reduction="sum")
        loss = total / (labelled.sum() if num_items_in_batch is None else num_items_in_batch)
        if wanted == "all":
            return MGMOutput(loss=loss, logits=self.language_model.lm_head(hidden_BLH))
        return MGMOutput(loss=loss, logits=logits_PV if wanted == "labelled" else None)

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
        )

    def encode_images(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """Pictures to language model tokens, [S, N, H], before the language model's embedding scale."""
        clip_SND = self.clip_features(images)
        found_SND = mine_patch_info(
            clip_SND,
            self.aux_features(images_aux),
            query_projector=self.vlm_uni_query_projector,
            aux_projector=self.vlm_uni_aux_projector,
            val_projector=self.vlm_uni_val_projector,
        )
        return cast(Tensor, self.mm_projector(clip_SND + found_SND))

    def clip_features(self, images: Tensor) -> Tensor:
        """CLIP's patches of `hidden_states[select_layer]`, [S, N, D]; layers behind that one are not computed."""
        tower = self.vision_tower
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(tower)):
            hidden = tower.pre_layrnorm(tower.embeddings(images.to(tower.dtype)))
            for layer in tower.encoder.layers[: self.config.num_used_vision_layers]:
                hidden = layer(hidden, None)
        return cast(Tensor, hidden[:, 1:])

    def aux_features(self, images_aux: Tensor) -> Tensor:
        """The joined pyramid, [S, C, h'/4, w'/4]."""
        tower = self.vision_tower_aux
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(tower)):
            return join_stages(tower(images_aux.to(_dtype_of(tower))))

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

    def _text_body(self, merged: MergedSequence) -> Tensor:
        body = self.language_model.get_decoder()
        output = body(inputs_embeds=merged.inputs_embeds, attention_mask=merged.attention_mask.long(), use_cache=False)
        return cast(Tensor, output.last_hidden_state)


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
