"""A base that this machine can train, for a recipe that names none yet."""

from typing import NamedTuple

from llama_peft.system.memory import gpu_kind


class Base(NamedTuple):
    """A base, and why it is a sensible one here."""

    name: str
    why: str
    on_gpu: bool


_LARGE = "unsloth/Llama-3.2-1B"
_SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def fitting_base(name: str | None) -> Base:
    """Return the base of that name, or one that fits this machine and needs no account."""
    on_gpu = gpu_kind() is not None
    if name is not None:
        return Base(name, "", on_gpu)
    if on_gpu:
        return Base(_LARGE, "1.2B weights; a copy of meta-llama/Llama-3.2-1B", on_gpu)
    return Base(_SMALL, "135M weights, because there is no GPU; `tiny` needs no download", on_gpu)
