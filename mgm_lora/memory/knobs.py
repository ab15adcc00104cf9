"""How a training step is run, with nothing left open: what the plan chose, and what training obeys. It chooses nothing itself."""

from dataclasses import dataclass
from typing import Literal

from mgm_lora.arm_settings import CheckpointedPart, OptimizerName

ZERO_BUCKET_NUMBERS = 2**25
"""Numbers in a bucket of DeepSpeed's: 64 MiB in bfloat16. The card holds one for gradients on their way, one more for weights under ZeRO 1 and 2;
a tensor above it travels alone, and under offload_optimizer the largest trained tensor has a buffer of its own there."""


@dataclass(frozen=True)
class StepKnobs:
    """One way to run an arm's step; the fields mean what those of `StepSettings` do."""

    micro_batch_size: int
    checkpointing: tuple[CheckpointedPart, ...] = ()
    offload_activations: bool = False
    loss_chunk: int = 1024
    quantization: Literal["none", "nf4"] = "none"
    optimizer: OptimizerName = "adamw"
    engine: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    num_cards: int = 1

    def num_accumulated(self, global_batch_size: int) -> int:
        """Forward passes on a card per optimizer step."""
        return global_batch_size // (self.micro_batch_size * self.num_cards)
