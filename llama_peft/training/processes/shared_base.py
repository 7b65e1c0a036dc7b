"""Several processes share the frozen base out: each keeps its part of every block.

A block is whole only while it is computed: torch's fully_shard (FSDP2) gathers it before its forward and its
backward pass. What is trained stays whole in each process, and DDP averages its gradients as it does
without this. So checkpoints, exports and steps are those of any other run, and a run continues with or
without it. accelerate's own FSDP is not used: it takes that path on GPUs only, and would also share
out what is trained, and so make every checkpoint a set of parts.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from llama_peft.errors import UserError
from llama_peft.system.processes import job


def share_base(base: PreTrainedModel, trained: nn.Module) -> None:
    """Share out the blocks of a base. trained: the module that Trainer gets, with the base inside or not.

    Raises UserError if the base is packed in a form that cannot be cut.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    mesh = init_device_mesh(base.device.type, (job.count(),))
    own = {one for one in base.parameters() if one.requires_grad}
    for block in base.get_decoder().layers:
        for weight in block.parameters():
            _check_can_be_cut(weight)
        # Each block is on its own, so torch would leave it whole until the backward pass; and a checkpoint,
        # which the first process writes, would cut it again in that process only.
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=own)
    frozen = [name for name, one in trained.named_parameters() if not one.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trained, frozen)


def _check_can_be_cut(weight: nn.Parameter) -> None:
    """Make the bytes of a 4-bit weight numbers of 32 bits, which fully_shard takes and bitsandbytes reads.

    It is what `bnb_4bit_quant_storage` is for; the bytes stay as they are.
    """
    if type(weight).__name__ == "Params4bit":
        weight.data = weight.data.reshape(-1).view(torch.float32).reshape(-1, 1)
        weight.quant_storage = torch.float32
    elif not weight.is_floating_point() or weight.itemsize < 2:
        raise UserError(
            "--share-base: this base is packed in 8 bits, which cannot be shared out: set "
            "quantization.load_in_4bit: true, or leave --share-base away"
        )
