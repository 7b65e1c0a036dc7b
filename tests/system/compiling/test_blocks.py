"""Compiled blocks compute what plain ones do, whatever the width of a batch, and give way if they do not compile."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from peft import PeftModel
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from llama_peft.errors import UserError
from llama_peft.prefix_tree import flex, varlen
from llama_peft.prefix_tree.loss import self_check
from llama_peft.prefix_tree.pack import collate, pack
from llama_peft.recipe import Recipe
from llama_peft.system.compiling import blocks
from llama_peft.system.compiling.blocks import MOST, as_they_are, compile_blocks
from llama_peft.system.compiling.counted import Backend, Counted
from llama_peft.training import fit as training
from llama_peft.training.resume import recipe_sum
from tests.support.trainings import weights
from tests.support.tree_examples import families, gradients, with_lora

WIDTHS = ((12, 300, 2), (12, 200, 3), (5, 64, 4))
"""How many families of examples, the longest row, and how many rows."""
TOLERANCE = 1e-6


def batch(number: int, room: int, rows: int) -> dict[str, Tensor]:
    trees = collate(pack(families(number), room)[:rows])
    return {key: trees[key] for key in trees if key not in ("ids", "labels")}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What we logged: torch writes about each compilation."""
    return [one.getMessage() for one in caplog.records if one.name.startswith("llama_peft")]


def compiled(model: PeftModel, backend: Backend) -> Counted[Tensor]:
    torch._dynamo.reset()
    return compile_blocks(model.get_base_model(), backend)


def step(model: PeftModel, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits of real tokens, and the gradients of their mean with weights."""
    logits = model(**given, use_cache=False).logits[given["attention_mask"].bool()]
    (logits * torch.linspace(0, 1, logits.shape[1])).mean().backward()
    return logits.detach(), gradients(model)


def use_kernel_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make varlen attention run torch's own function on this CPU, which has no flash kernel: the twin of
    sequences one by one, which nothing can compile, computes inside it.
    """
    one_by_one = varlen._one_by_one

    def forward(*given: Any, scale: float, window_size_left: int, **_: Any) -> tuple[Any, ...]:
        query, key, value, query_starts, key_starts, most_queries, most_keys, *_rest = given
        found = {"query_starts": query_starts, "key_starts": key_starts}
        assert most_queries == query_starts.diff().max() and most_keys == key_starts.diff().max()
        window = None if window_size_left < 0 else window_size_left + 1
        output = one_by_one(query, key, value, found, scale, window)  # type: ignore[arg-type]
        return output.contiguous(), query.new_zeros(query.shape[1::-1]), None, None, None

    def backward(slope: Tensor, *given: Any, **named: Any) -> tuple[Tensor, ...]:
        leaves = [one.detach().requires_grad_() for one in given[:3]]

        def compute() -> tuple[Tensor, ...]:
            output, *_ = forward(*leaves, *given[5:9], **named)
            return torch.autograd.grad(output, leaves, slope)

        with ThreadPoolExecutor(
            1
        ) as other:  # this thread is inside of an operator, without autograd
            return other.submit(compute).result()

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    monkeypatch.setattr(varlen, "_one_by_one", varlen._kernel)


def agree(model: PeftModel, plain: PeftModel, given: dict[str, Tensor]) -> None:
    (found, slope), (expected, right) = step(model, given), step(plain, given)
    assert (found - expected).norm() <= TOLERANCE * expected.norm()
    assert (slope - right).norm() <= TOLERANCE * right.norm()


@pytest.mark.parametrize("kind", ["llama-sdpa", "llama-varlen"])
def test_gradients_are_those_of_plain_blocks_at_every_width(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Plain blocks attend to blocks of keys, of which each row has its own number, or to gathered keys, of
    which each batch has its own number.
    """
    use_kernel_here(monkeypatch)
    model, plain = with_lora(kind), with_lora(kind)
    names = list(model.state_dict())
    one = compiled(model, "eager")
    for width in WIDTHS:
        agree(model, plain, batch(*width))
    assert not said(caplog) and not one.refused
    # The first block's input needs no gradient.
    assert one.compilations == 2 and list(model.state_dict()) == names
    written = model.generate(input_ids=torch.arange(3, 9)[None], max_new_tokens=3)
    assert one.compilations == 2 and written.shape[1] > 6, "a cache of keys takes the plain way"


def test_activations_are_computed_again_in_compiled_blocks() -> None:
    model, plain = with_lora("llama-sdpa"), with_lora("llama-sdpa")
    one = compiled(model, "eager")
    for each in (model, plain):
        each.enable_input_require_grads()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    agree(model, plain, batch(*WIDTHS[2]))
    assert one.compilations == 1 and not one.refused


def test_what_is_compiled_wrongly_is_found_before_the_first_step() -> None:
    """Tree rows are computed by compiled blocks, and the plain rows beside them by plain ones."""
    model, examples = with_lora("llama-sdpa"), families(3)

    def wrong(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        return lambda *given: tuple(one * 1.1 for one in graph(*given))

    base = model.get_base_model()
    expected = self_check(model, examples, 300, as_they_are(base))
    one = compiled(model, wrong)
    with pytest.raises(UserError, match="or blocks were compiled wrongly"):
        self_check(model, examples, 300, as_they_are(base))
    assert one.compilations == 1 and not one.refused
    with as_they_are(base):
        assert self_check(model, examples, 300) == expected
    with pytest.raises(UserError):
        self_check(model, examples, 300, as_they_are(base))


def fails(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
    raise RuntimeError("no C++ compiler is here\nand much more")


def test_what_does_not_compile_runs_as_it_is_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also if only the derivative does not, which shows before the backward pass begins."""
    model, plain = with_lora("llama-sdpa"), with_lora("llama-sdpa")

    def forward(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        return make_boxed_func(graph.forward)

    one = compiled(model, aot_autograd(fw_compiler=forward, bw_compiler=fails))
    agree(model, plain, batch(*WIDTHS[2]))
    (line,) = said(caplog)
    assert one.refused and "no C++ compiler is here" in line and "\n" not in line


def test_too_many_compilations_are_a_failure_too(caplog: pytest.LogCaptureFixture) -> None:
    """A block that was compiled before stays so where checkpointing makes its pass again."""
    model, plain = with_lora("llama-sdpa"), with_lora("llama-sdpa")
    one = compiled(model, "aot_eager")
    one.compilations = MOST - 1  # the first block's, whose input needs no gradient
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().disable_input_require_grads()
    agree(model, plain, batch(*WIDTHS[2]))
    (line,) = said(caplog)
    assert one.refused and "more than" in line


def test_out_of_memory_is_no_failure_of_the_compiler() -> None:
    """The Trainer computes such a step again, in smaller pieces."""

    def runs_out(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = with_lora("llama-sdpa")
    one = compiled(model, "eager")
    one._compiled = runs_out
    with pytest.raises(torch.OutOfMemoryError):
        model(**batch(*WIDTHS[2]), use_cache=False)
    assert not one.refused


def test_a_training_is_the_same_with_and_without_compiled_blocks(
    make_recipe: Callable[..., Recipe],
    make_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a 4-bit base, with tree rows, validation and the best checkpoint; the run stays one of the same recipe."""
    made = list[Counted[Tensor]]()
    compiles = blocks.compile_blocks
    monkeypatch.setattr(blocks, "compile_blocks", lambda base: made.append(compiles(base, "eager")))
    torch._dynamo.reset()
    base = make_base()

    def trained(key: bool) -> tuple[Recipe, list[float], Path]:
        keys = {"torch_compile": key, "packing": "prefix_tree", "per_device_train_batch_size": 2}
        keys |= {"output_dir": str(tmp_path / str(key)), "max_length": 256}
        recipe = make_recipe("generative_qa", base, 4, lora={"r": 4}, train=keys)
        run = training.train(recipe)
        lines = (run / "history.jsonl").read_text("utf-8").splitlines()
        losses = [one[key] for one in map(json.loads, lines) for key in one if "loss" in key]
        return recipe, losses, run

    (first, losses, run), (second, expected, other) = trained(True), trained(False)
    (one,) = made
    assert not one.refused and 0 < one.compilations <= MOST / 2
    assert losses == pytest.approx(expected, rel=TOLERANCE) and len(losses) > 2
    found, right = weights(run), weights(other)
    assert found.keys() == right.keys()
    assert all((found[key] - right[key]).norm() <= 1e-4 * right[key].norm() for key in right)
    assert recipe_sum(first) == recipe_sum(second)


def test_flex_attention_is_a_part_of_a_compiled_block(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without gradients, because FlexAttention has no derivative on a CPU."""
    monkeypatch.setattr(flex, "kernel", flex.Kernel("eager"))
    model, plain = with_lora("llama-sdpa"), with_lora("llama-eager")
    config = model.get_base_model().config
    flex.AttentionInterface.register(flex.NAME, flex.attention)
    flex.AttentionMaskInterface.register(flex.NAME, flex.sdpa_mask)
    config._attn_implementation = flex.NAME
    with torch.no_grad():
        one = None
        for width in WIDTHS[:2]:
            given = batch(*width)
            expected = plain(**given, use_cache=False).logits
            found = model(**given, use_cache=False).logits  # the kernel alone
            one = one or compiled(model, "eager")
            again = model(**given, use_cache=False).logits
            real = given["attention_mask"].bool()
            assert all((each - expected)[real].abs().max() < 1e-4 for each in (found, again))
    assert not said(caplog) and one.compilations == 1
    assert not flex.kernel.refused


def _named(given: Tensor, name: str) -> Tensor:
    """What is compiled for each name."""
    return given * len(name)


def test_each_training_of_a_process_counts_its_own_compilations(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """torch counts those of a function's code, of which every training has a copy, and has a limit of its own."""
    given = torch.ones(2)
    for _ in range(2):
        one = Counted(_named, MOST, "%s", "eager")
        found = [one.compiled(given, "x" * length) for length in range(MOST + 1)]
        assert [each is None for each in found] == [*[False] * MOST, True]
        assert said(caplog).pop() == f"it would be compiled more than {MOST} times"
