"""The loss over labelled positions, a chunk at a time.

Of ~800 tokens of a sample 576 are picture tokens and most others a question: only what is labelled reaches the head, which is 256,000 wide
in Gemma. A chunk's logits are computed again in the backward pass, so that one chunk's are alive at a time, forwards and backwards. The head
is called as a module: it may be tied, frozen, trained, adapted, or shared out over cards. It doesn't know where hidden states come from.

Shapes: P labelled positions, H hidden size, V vocabulary.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgm_lora.model.lean import sum_in_chunks


def summed_loss(hidden_PH: Tensor, targets_P: Tensor, *, language_model: nn.Module, chunk: int) -> Tensor:
    """The sum of the cross-entropies of P positions; in float32, or in the logits' precision where that is higher."""

    def of_chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_sum(head_logits(language_model, hidden), targets)

    return sum_in_chunks(of_chunk, hidden_PH, targets_P, chunk=chunk)


def losses_by_position(hidden_PH: Tensor, targets_P: Tensor, *, language_model: nn.Module, chunk: int) -> Tensor:
    """The cross-entropy of each of P positions, [P], in float32; for reading, not for training: no graph is kept."""
    with torch.no_grad():
        losses = [
            F.cross_entropy(head_logits(language_model, hidden).float(), targets, reduction="none")
            for hidden, targets in zip(hidden_PH.split(chunk), targets_P.split(chunk), strict=True)
        ]
    return torch.cat(losses) if losses else hidden_PH.new_zeros(0, dtype=torch.float32)


def cross_entropy_sum(logits_PV: Tensor, targets_P: Tensor) -> Tensor:
    """The sum of the cross-entropies, reduced precision brought to float32 first."""
    reduced = logits_PV.dtype in (torch.bfloat16, torch.float16)
    return F.cross_entropy(logits_PV.float() if reduced else logits_PV, targets_P, reduction="sum")


def head_logits(language_model: nn.Module, hidden: Tensor) -> Tensor:
    """The language model's logits, [..., V], soft-capped where its family does that (Gemma 2, arXiv 2408.00118, section 2)."""
    logits = cast(Tensor, language_model.lm_head(hidden))  # type: ignore[operator]
    cap = getattr(language_model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
