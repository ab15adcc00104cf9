"""DeepSpeed: its configuration, made from plan and settings, and a Trainer that saves, resumes and hands back under every ZeRO stage.

Under bfloat16 DeepSpeed keeps all weights in bfloat16 and, apart, float32 masters of what is trained: those are what is handed back and
stored, since the bfloat16 copies have lost the small steps. There is no JSON file to edit; what was used is written beside the run.
It doesn't start processes: `mgm_lora.training.launch` does.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from mgm_lora.errors import SettingsError, TrainingError
from mgm_lora.lora.injection import TrainableModel
from mgm_lora.memory.knobs import ZERO_BUCKET_NUMBERS, StepKnobs
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.settings import TrainingSettings
from mgm_lora.training.grouped_trainer import GroupedTrainer

logger = logging.getLogger(__name__)
_ENGINE_NAME = "latest"  # the last file of DeepSpeed's part of a checkpoint


def deepspeed_config(training: TrainingSettings, *, knobs: StepKnobs) -> dict[str, Any]:
    """DeepSpeed's configuration of this step; the optimizer and its rates per group come from us."""
    return {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": knobs.micro_batch_size,
        "gradient_accumulation_steps": knobs.num_accumulated(training.global_batch_size),
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": training.precision == "bfloat16"},
        "zero_optimization": _zero_section(knobs),
        "zero_allow_untested_optimizer": True,  # torch's AdamW, of which it knows Adam only
        **_accumulation_section(training, knobs=knobs),
        "steps_per_print": 2**31 - 1,
    }


def check_deepspeed(trainable: TrainableModel, *, training: TrainingSettings, knobs: StepKnobs) -> None:
    """Raises SettingsError where DeepSpeed can't run this: wrong number of processes, widths that don't fit, no compiler."""
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks != knobs.num_cards:
        raise SettingsError(
            f"the plan is for {knobs.num_cards} cards, found {num_ranks} processes: start it with `mgm-lora train`,"
            " which launches one process per card, or set step.num_cards"
        )
    frozen = [
        name for name, p in trainable.model.named_parameters() if not p.requires_grad and p.dtype == torch.float32
    ]
    if training.precision == "bfloat16" and frozen:
        raise SettingsError(
            f"engine deepspeed under precision bfloat16 would round {len(frozen)} frozen float32 weights for good, first {frozen[0]}:"
            " set base.dtype to bfloat16, or training.precision to float32, or engine to torch"
        )
    if num_ranks > 1 and not torch.cuda.is_available():
        _build_shared_memory()
    if knobs.offload_optimizer:
        _build_cpu_adam()


@contextmanager
def rank_environment() -> Iterator[None]:
    """What DeepSpeed and accelerate read from the environment, for as long as a training.

    Where no launcher started this process, it is the only rank: DeepSpeed wants that said, or it looks for MPI. The process group
    stays, since DeepSpeed can't make a second one.
    """
    before = dict(os.environ)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    if "RANK" not in before:
        os.environ.update(alone)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()  # under ZeRO-3, transformers would build the next model in shares
        for name in [name for name in os.environ if name in alone or name.startswith("ACCELERATE_")]:
            if name not in before:
                del os.environ[name]


class ZeroTrainer(GroupedTrainer):
    """The Trainer under DeepSpeed. Its checkpoints are DeepSpeed's own, one file per rank, without the frozen weights."""

    def gather_(self) -> None:
        """In place, all ranks together: the first rank's model is whole again, what was trained in float32 from the masters.

        On the other ranks trained parameters are left empty: nobody reads them, and a full fine-tune's take 4 bytes each.
        """
        keeps = self.args.process_index == 0
        masters = self._unshared_masters()
        for name, parameter in self._trained_parameters().items():
            full = masters.get(name)
            full = _full_master(parameter) if full is None else full
            parameter.grad = None
            parameter.data = full.detach().to("cpu", torch.float32, copy=True) if keeps else torch.empty(0)
        if self._knobs.zero_stage == 3:
            _gather_frozen_(self._trainable.model, keeps=keeps)

    def release_(self) -> None:
        """Takes the engine off the model."""
        if self._engine is not None:
            self._engine.destroy()
        self.deepspeed = None
        self.model_wrapped = self._trainable.model
        self.accelerator.free_memory()
        super().release_()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing: the engine's checkpoint holds what is trained."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[no-untyped-call]
        if self._knobs.zero_stage == 3:
            _show_mining_weights_(self._trainable.mgm)
        if self._masters_are_whole:
            # It was warmed up by a step over zeros, which would shrink the first real ones by Adam's bias correction.
            self._engine.optimizer.optimizer.state.clear()
        if resume_from_checkpoint is not None:
            self._load_engine(resume_from_checkpoint)
        return prepared

    def _load_engine(self, checkpoint: str) -> None:
        if not (Path(checkpoint) / _ENGINE_NAME).is_file():
            raise TrainingError(
                f"checkpoint '{checkpoint}' is not DeepSpeed's: it is of other settings; delete it and train again"
            )
        # Not strict: frozen weights are not in it, and are the base's.
        found, _ = self._engine.load_checkpoint(checkpoint, load_module_strict=False)
        if found is None:
            raise TrainingError(f"DeepSpeed could not read its checkpoint '{checkpoint}': delete it and train again")
        self._load_optimizer_and_scheduler(checkpoint)
        if self._knobs.offload_optimizer:
            _catch_up_(self._engine.optimizer.optimizer)

    @property
    def _engine(self) -> Any:
        return self.deepspeed

    @property
    def _masters_are_whole(self) -> bool:
        """Under ZeRO-0 in bfloat16."""
        return self._knobs.zero_stage == 0 and hasattr(self._engine.optimizer, "fp32_groups")

    def _unshared_masters(self) -> dict[str, Tensor]:
        """ZeRO-0 under bfloat16 keeps whole masters, which DeepSpeed's own accessor doesn't know."""
        if not self._masters_are_whole:
            return {}
        optimizer = self._engine.optimizer
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        by_id = {id(low): high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}
        return {name: by_id[id(p)] for name, p in self._trained_parameters().items()}


def _zero_section(knobs: StepKnobs) -> dict[str, Any]:
    pinned = torch.cuda.is_available()
    section: dict[str, Any] = {
        "stage": knobs.zero_stage,
        "overlap_comm": False,  # a second bucket, and nothing to overlap with on one card
        "contiguous_gradients": True,
        "reduce_bucket_size": ZERO_BUCKET_NUMBERS,
        "allgather_bucket_size": ZERO_BUCKET_NUMBERS,
    }
    if knobs.offload_optimizer:
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if knobs.zero_stage == 3:
        section |= {
            "stage3_prefetch_bucket_size": ZERO_BUCKET_NUMBERS,
            "stage3_max_live_parameters": ZERO_BUCKET_NUMBERS,
            "stage3_max_reuse_distance": ZERO_BUCKET_NUMBERS,
            "sub_group_size": 2**27,
        }
    if knobs.offload_parameters:
        section["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    return section


def _accumulation_section(training: TrainingSettings, *, knobs: StepKnobs) -> dict[str, Any]:
    # bfloat16 loses small addends over many micro batches; stages 0 and 1 and offloaded gradients know no other width
    wide = training.precision == "bfloat16" and knobs.zero_stage >= 2 and not knobs.offload_optimizer
    return {"data_types": {"grad_accum_dtype": "fp32"}} if wide else {}


def _show_mining_weights_(model: MGMForConditionalGeneration) -> None:
    """In place, under ZeRO-3: mining takes its maps' weights without calling the maps.

    So the whole model's forward fetches those weights, and the engine's hooks on the maps, which would meet other tensors, go.
    """
    from deepspeed import zero

    for projector in (model.vlm_uni_query_projector, model.vlm_uni_aux_projector, model.vlm_uni_val_projector):
        for parameter in projector.parameters():
            zero.register_external_parameter(model, parameter)
        for module in projector.modules():
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()


def _build_cpu_adam() -> None:
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        _build(CPUAdamBuilder())
    except Exception as error:  # a missing compiler shows in many ways
        raise SettingsError(
            f"offload_optimizer needs DeepSpeed's CPU Adam, which could not be built here ({str(error).strip().splitlines()[0]}):"
            " install a C++ compiler and ninja (`apt-get install g++ ninja-build`), or set step.offload_optimizer to false"
        ) from error


def _build_shared_memory() -> None:
    """What ranks on a CPU talk by; where it can't be built, they talk by gloo."""
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    if builder.is_compatible(verbose=False):
        _build(builder)


def _build(builder: Any) -> None:
    """Builds a kernel once; it is kept in torch's extensions folder."""
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(builder.name, verbose=False))
    if not any(folder.glob("*.so")):
        logger.info("building DeepSpeed's %s into '%s' (a minute or two)", builder.name, folder)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # ends with its process, as torch's own does not
        (folder / "lock").unlink(missing_ok=True)  # of a build that was killed: torch would wait for it forever
        builder.load(verbose=False)


def _catch_up_(optimizer: Any) -> None:
    """In place: brings the kernel's running powers of the betas, which no checkpoint holds, to where they were, to the last bit."""
    group = optimizer.param_groups[0]
    steps = max((int(state["step"]) for state in optimizer.state.values()), default=0)
    zeros = [torch.zeros(1) for _ in range(4)]
    betas, rates = group["betas"], (group["eps"], 0.0)
    for step in range(1, steps + 1):
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, 0.0, *betas, *rates, True, *zeros)


def _full_master(parameter: nn.Parameter) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    full = safe_get_full_fp32_param(parameter)
    return parameter if full is None else full  # ZeRO-0 in float32: the parameter is the master


def _gather_frozen_(model: nn.Module, *, keeps: bool) -> None:
    from deepspeed import zero

    for parameter in model.parameters():
        if not parameter.requires_grad:
            with zero.GatheredParameters([parameter]):
                full = parameter.detach().cpu().clone() if keeps else torch.empty(0)
            parameter.data = full


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
