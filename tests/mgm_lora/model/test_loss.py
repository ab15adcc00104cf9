"""The chunked loss is the plain one, in value and gradient, whatever the head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from mgm_lora.model.loss import cross_entropy_sum, head_logits, summed_loss

NUM_LABELLED, HIDDEN, VOCABULARY = 37, 16, 101
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


def make_language_model(family: str = "gemma", *, dtype: torch.dtype = torch.float64, **extra: Any) -> nn.Module:
    set_seed(4)
    config = AutoConfig.for_model(family, **SHAPE, **extra)
    model: nn.Module = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()  # type: ignore[operator]
    return model


def make_positions(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    set_seed(5)
    return torch.randn(NUM_LABELLED, HIDDEN, dtype=dtype).requires_grad_(), torch.randint(VOCABULARY, (NUM_LABELLED,))


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


@pytest.mark.parametrize("chunk", [1, 7, 36, 37, 1000])
@pytest.mark.parametrize("head_trains", [True, False])
def test_loss_and_gradients_are_the_plain_ones(chunk: int, head_trains: bool) -> None:
    model = make_language_model()
    weight = model.get_parameter("lm_head.weight").requires_grad_(head_trains)
    hidden, targets = make_positions()
    of = (hidden, weight) if head_trains else (hidden,)
    plain = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    ours = summed_loss(hidden, targets, language_model=model, chunk=chunk)
    assert ours.dtype == torch.float64
    assert abs(ours.item() - plain.item()) < 1e-10
    for found, wanted in zip(gradients(ours, *of), gradients(plain, *of), strict=True):
        assert (found - wanted).abs().max() < 1e-10


def test_soft_capped_logits_are_those_of_the_family() -> None:
    model = make_language_model("gemma2", final_logit_softcapping=3.0).eval()
    ids = torch.randint(1, VOCABULARY, (2, 9))
    body = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    wanted = model(input_ids=ids, use_cache=False).logits
    assert (head_logits(model, body) - wanted).abs().max() < 1e-12
    assert wanted.abs().max() <= 3.0


def test_soft_capped_loss_is_the_plain_one() -> None:
    model = make_language_model("gemma2", final_logit_softcapping=3.0)
    hidden, targets = make_positions()
    weight = model.get_parameter("lm_head.weight")
    plain = F.cross_entropy(torch.tanh(F.linear(hidden, weight) / 3.0) * 3.0, targets, reduction="sum")
    ours = summed_loss(hidden, targets, language_model=model, chunk=8)
    assert abs(ours.item() - plain.item()) < 1e-10
    assert (gradients(ours, hidden)[0] - gradients(plain, hidden)[0]).abs().max() < 1e-10


def test_reduced_precision_is_summed_in_float32() -> None:
    model = make_language_model(dtype=torch.bfloat16)
    hidden, targets = make_positions(torch.bfloat16)
    weight = model.get_parameter("lm_head.weight")
    exact = F.cross_entropy(F.linear(hidden.double(), weight.double()), targets, reduction="sum")
    ours = summed_loss(hidden, targets, language_model=model, chunk=8)
    assert ours.dtype == torch.float32
    assert abs(ours.item() / exact.item() - 1) < 2e-3  # logits carry 8 bits
    found, wanted = gradients(ours, hidden)[0].double(), gradients(exact, hidden)[0].double()
    assert (found - wanted).norm() / wanted.norm() < 1e-2


def test_one_chunk_of_logits_is_alive_at_a_time() -> None:
    model = make_language_model(dtype=torch.float32)
    model.requires_grad_(False)
    hidden, targets = make_positions(torch.float32)

    def kept_for_backward(run: Callable[[], Tensor]) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
            run()
        return max(sizes)

    assert (
        kept_for_backward(lambda: cross_entropy_sum(head_logits(model, hidden), targets)) >= NUM_LABELLED * VOCABULARY
    )
    assert (
        kept_for_backward(lambda: summed_loss(hidden, targets, language_model=model, chunk=4)) <= NUM_LABELLED * HIDDEN
    )


def test_no_label_at_all_is_no_loss() -> None:
    hidden, targets = make_positions()
    loss = summed_loss(hidden[:0], targets[:0], language_model=make_language_model(), chunk=4)
    assert loss.item() == 0.0
