"""The blocks below everything that is trained: what they compute of a row never changes.

So it is computed once. While a training runs on these states, the frozen blocks pass on what they
are given, and the last of them passes on the states in its place. Everything else of the model,
with the names of its weights, stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

# Shapes: B rows, T tokens, D hidden size.


def unfit(model: PreTrainedModel) -> str | None:
    """Return why the states of blocks cannot stand in their place, if it is so."""
    if not hasattr(model.get_decoder(), "layers"):
        return f"the blocks of {type(model).__name__} are not where they are looked for"
    config = model.config.get_text_config()
    if getattr(config, "num_kv_shared_layers", 0):
        return "upper blocks read keys of lower ones (num_kv_shared_layers)"
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float) and value > 0:
            return (
                f"blocks drop other numbers in each epoch ({name} {value:g} in the base's config)"
            )
    return None


def frozen(model: PreTrainedModel) -> Sequence[nn.Module]:
    """Return the lowest blocks, up to the first one that holds a weight that is or was trained."""
    decoder = model.get_decoder()
    blocks: list[nn.Module] = list(decoder.layers)
    if _changes(decoder.get_input_embeddings()):
        return []
    return blocks[: next((k for k, block in enumerate(blocks) if _changes(block)), len(blocks))]


def _changes(module: nn.Module) -> bool:
    adapters = BaseTunerLayer, AuxiliaryTrainingWrapper
    return any(parameter.requires_grad for parameter in module.parameters()) or any(
        isinstance(part, adapters) for part in module.modules()
    )


@contextmanager
def given(blocks: Sequence[nn.Module], states_BTD: Tensor) -> Iterator[None]:
    """Run the model on the states that its lowest blocks would give, without these blocks.

    States end where the rows of the batch do; where the model pads them further, they are zero.
    """

    def states(hidden_BTD: Tensor, *_: object, **__: object) -> Tensor:
        more = hidden_BTD.shape[1] - states_BTD.shape[1]
        return F.pad(states_BTD.to(hidden_BTD), (0, 0, 0, more))

    with replaced(blocks[:-1], _pass_on), replaced(blocks[-1:], states):
        yield


def read_before(model: PreTrainedModel, inputs: Mapping[str, object], block: int) -> Tensor:
    """Return (B, T, D): what a block reads. No block runs but those below it."""
    decoder = model.get_decoder()
    found: list[Tensor] = []

    def keep(hidden_BTD: Tensor, *_: object, **__: object) -> Tensor:
        found.append(hidden_BTD)
        return hidden_BTD

    with (
        replaced(decoder.layers[block : block + 1], keep),
        replaced(decoder.layers[block + 1 :], _pass_on),
    ):
        decoder(**inputs, use_cache=False)
    return found[0]


def _pass_on(hidden_BTD: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_BTD


@contextmanager
def replaced(blocks: Sequence[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Compute blocks by another function, and then again by their own."""
    before = [block.__dict__.get("forward") for block in blocks]  # None: that of its class
    try:
        for block in blocks:
            block.__dict__["forward"] = forward
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del block.__dict__["forward"]
            else:
                block.__dict__["forward"] = own
