"""The plain way to the same step: what transformers and PEFT do by themselves, and patch-info-mining as it was published.

Transformers' own loss over the logits of every position, in float32; keys and values of every high-resolution position (unified_resampler of MGM's
mgm_arch.py), of all pictures at once; transformers' own gradient checkpointing, which takes the language model and CLIP alike; PEFT's own casts.
Weights, adapters, data, merging of pictures and the order of the parts are ours, so that what differs is what is compared. It measures nothing.

Shapes: S pictures, N patches, M high-resolution positions of a patch, D CLIP's width.
"""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from mgm_lora.model.mgm import MGMForConditionalGeneration, MGMOutput
from mgm_lora.model.mining import split_into_patches

_Kind = TypeVar("_Kind", bound=MGMForConditionalGeneration)


class PlainMGM(MGMForConditionalGeneration):
    """The same weights under the same names."""

    supports_gradient_checkpointing = True

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **pictures: Any
    ) -> MGMOutput:
        """The mean loss over the labelled tokens of the batch; arguments as our model's."""
        merged = self.merge_inputs(input_ids, attention_mask=attention_mask, labels=labels, **pictures)
        output = self.language_model(
            inputs_embeds=merged.inputs_embeds,
            attention_mask=merged.attention_mask,
            labels=merged.labels,
            use_cache=False,
        )
        return MGMOutput(loss=output.loss)

    def encode_images(self, images: Tensor, images_aux: Tensor) -> Tensor:
        """Pictures to language model tokens, as published."""
        clip_SND = self.clip_features(images)
        patches_SNMC = split_into_patches(self.aux_features(images_aux), num_patches=clip_SND.shape[1])
        query_SND = self.vlm_uni_query_projector(clip_SND)
        keys_SNMD = self.vlm_uni_aux_projector(patches_SNMC)
        values_SNMD = self.vlm_uni_val_projector(patches_SNMC)
        scores = query_SND[:, :, None] @ (keys_SNMD.transpose(-1, -2) / keys_SNMD.shape[-1] ** 0.5)
        mined_SND = (scores.nan_to_num().softmax(-1) @ values_SNMD).mean(2)
        return cast(Tensor, self.mm_projector(clip_SND + mined_SND))


def share_weights(model: MGMForConditionalGeneration, *, kind: type[_Kind]) -> _Kind:
    """A model of `kind` whose weights are the given model's own, not copies."""
    with torch.device("meta"):
        twin = kind(model.config)
    twin.load_state_dict(model.state_dict(), assign=True, strict=False)
    twin.tie_weights()
    buffers = dict(model.named_buffers())
    for name, module in twin.named_modules():
        for key in module._buffers:
            module._buffers[key] = buffers[f"{name}.{key}" if name else key]
    return twin


def make_plain_(model: PlainMGM) -> None:
    """In place: transformers' gradient checkpointing, as the published scripts switch it on."""
    model.activation_checkpointing_enable({"use_reentrant": False})
