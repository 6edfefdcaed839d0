"""Finetune with the UNet's weights, gradients and averages spread over the ranks (FSDP2), as DDP would."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


class Sharded(ModelParallelStrategy):
    """`--trainer.strategy sharded`: each rank keeps its share of the model that `configure_model` shards.

    Lightning's FSDP2 strategy with data parallelism only. `last.ckpt` stays one file of whole weights, the
    same as DDP's, so each strategy continues from the other's.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def check(model: pl.LightningModule, trainer: pl.Trainer) -> None:
    """Raise ValueError for a run that cannot be sharded."""
    if not hasattr(model, "gather"):
        raise ValueError("trainer.strategy sharded is for fit and base, which train a UNet: use ddp here")
    if model.train_text_encoder or model.lora_rank:
        raise ValueError(
            "trainer.strategy sharded spreads a whole UNet: leave model.train_text_encoder and "
            "model.lora_rank out, or use ddp"
        )
    if model.optimizer != "adamw":
        raise ValueError("trainer.strategy sharded goes with model.optimizer adamw, whose states it spreads")
    if trainer.precision == "16-mixed":
        raise ValueError("trainer.strategy sharded cannot scale losses for 16-mixed: use bf16-mixed")


def shard(unet: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a diffusers UNet's parameters over `mesh` (one dimension), in place, along their first axis.

    A block's weights are gathered on a rank only while it computes; `conv_in`, `conv_out` and the embeddings
    form one group of the root. Zhao et al., "PyTorch FSDP", VLDB 2023, as torch's `fully_shard`.
    """
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        if block is not None:  # an SDXL-like UNet may go without a middle
            fully_shard(block, mesh=mesh)
    fully_shard(unet, mesh=mesh)


def gathered(module: nn.Module) -> dict[str, Any]:
    """The state dict of a sharded module, gathered on the CPU of the first rank; empty on the others.

    Called on all ranks.
    """
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
