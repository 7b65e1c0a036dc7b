"""LoRA on upper blocks trains on the states of the frozen ones as with these blocks in the loop."""

import pickle
import shutil
from collections import Counter, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_peft.errors import UserError
from llama_peft.features import blocks, cache, states
from llama_peft.features.shards import Stored
from llama_peft.prefix_tree.batch import as_trees, unpacked
from llama_peft.recipe import Lora, Recipe
from llama_peft.recipe.checks import pair_faults
from llama_peft.survey.rows import rows_cost
from llama_peft.training import fit as training
from llama_peft.training.features import frozen_blocks
from llama_peft.training.rows import collator
from tests.support import small, trainings

LAYERS = 3

Made = tuple[Recipe, Any, list[dict[str, Any]]]

WAYS = [
    ("classification", "llama", "none"),
    ("classification", "gemma3_text", "prefix_tree"),
    ("extractive_qa", "llama", "none"),
    ("extractive_qa", "gemma", "prefix_tree"),
    ("generative_qa", "llama", "none"),
    ("generative_qa", "gemma3_text", "prefix_tree"),
]


@pytest.fixture
def upper(make_base: Callable[..., Path], tmp_path: Path) -> Callable[..., Recipe]:
    """Returns a recipe with LoRA on the last two of three blocks."""

    def build(
        task: str, family: str = "llama", reuse: bool = True, bits: int = 32, **train: Any
    ) -> Recipe:
        keys = {"max_steps": 4, "learning_rate": 0.01, "per_device_train_batch_size": 4, **train}
        keys |= {"output_dir": str(tmp_path / "runs" / f"{reuse}"), "reuse_frozen_blocks": reuse}
        base = make_base(family, num_hidden_layers=LAYERS)
        lora = {"r": 4, "layers_to_transform": [1, 2]}
        return small.make_recipe(task, base, bits=bits, lora=lora, train=keys)

    return build


def count_runs(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count how often each block computes a batch, from the first step on."""
    seen: Counter[int] = Counter()
    plain = training._run

    def run(trainer: Any, *rest: Any) -> None:
        for number, block in enumerate(trainer.model.get_decoder().layers):
            block.mlp.register_forward_pre_hook(lambda *_, n=number: seen.update([n]))
        plain(trainer, *rest)

    monkeypatch.setattr(training, "_run", run)
    return seen


@pytest.mark.parametrize(("task", "family", "packing"), WAYS)
def test_the_same_weights_as_with_all_blocks(
    upper: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    family: str,
    packing: str,
) -> None:
    """Of every task, in trees and in padded rows, with a validation; the frozen block never runs."""
    found, runs = {}, {}
    for reuse in (False, True):
        with monkeypatch.context() as patch:
            seen = count_runs(patch)
            folder = training.train(upper(task, family, reuse, packing=packing))
        found[reuse], runs[reuse] = trainings.weights(folder), dict(seen)
    assert runs[False][0] == runs[False][2] == runs[True][2]
    assert 0 not in runs[True]
    assert found[True].keys() == found[False].keys()
    for name, its in found[True].items():
        if not name.endswith("qa_outputs.bias"):  # no span depends on it, so it follows noise
            torch.testing.assert_close(its, found[False][name], atol=1e-4, rtol=1e-4)
    moved = max(its.abs().max() for name, its in found[True].items() if "lora_B" in name)
    assert moved > 1e-2, "it has learned"


def test_pieces_of_a_batch_have_their_states(
    upper: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the first step, so each batch is computed in halves, without tree rows."""
    whole = trainings.weights(training.train(upper("classification", packing="prefix_tree")))
    seen = []

    def once(trainer: Any, inputs: dict[str, Any]) -> None:
        seen.append(len(inputs["input_ids"]))
        if len(seen) == 1:
            raise MemoryError

    trainings.hurt(monkeypatch, once)
    recipe = upper("classification", packing="prefix_tree")
    recipe = recipe.with_train({"output_dir": recipe.run_folder + "-2"})
    halved = trainings.weights(training.train(recipe))
    assert seen[:3] == [4, 2, 2]
    for name, its in halved.items():
        torch.testing.assert_close(its, whole[name], atol=1e-5, rtol=1e-4)


def test_activation_checkpointing_and_four_bits(upper: Callable[..., Recipe]) -> None:
    """Blocks above are computed again in the backward pass, from the same states."""
    recipe = upper("classification", bits=4, activation_checkpointing=True)
    found = trainings.weights(training.train(recipe))
    expected = trainings.weights(training.train(upper("classification", reuse=False, bits=4)))
    for name, its in found.items():
        torch.testing.assert_close(its, expected[name], atol=1e-4, rtol=1e-3)


def test_a_run_continues_with_or_without_states_which_are_found_again(
    upper: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    keys: dict[str, Any] = {"eval_steps": 2}
    expected = trainings.weights(training.train(upper("classification", reuse=False, **keys)))
    recipe = upper("classification", **keys)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        trainings.hurt(patch, trainings.lose_power)
        training.train(recipe)
    assert "there already" not in caplog.text
    other = recipe.with_train({"output_dir": recipe.run_folder + "-2"})
    training.train(other)
    assert "there already" in caplog.text
    folder = training.train(recipe.with_train({"reuse_frozen_blocks": False}))
    assert "continuing from" in caplog.text
    for name, its in trainings.weights(folder).items():
        torch.testing.assert_close(its, expected[name], atol=1e-5, rtol=1e-4)


def test_wrong_states_end_the_run_before_its_first_step(
    upper: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = frozen_blocks.pad_sequence

    def swapped(states: list[torch.Tensor], **keys: Any) -> torch.Tensor:
        return plain([its.flip(0) for its in states], **keys)

    monkeypatch.setattr(frozen_blocks, "pad_sequence", swapped)
    with pytest.raises(
        UserError, match=r"the states of the frozen blocks give a loss of [\d.]+, but"
    ):
        training.train(upper("generative_qa", packing="prefix_tree"))


def test_too_small_a_disk_is_said_before(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There would be room for one state of each text."""
    recipe, model, rows = make()
    upper = recipe.changed(lora=Lora(layers_to_transform=[1, 2]))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 100 * len(rows) * 4))
    with pytest.raises(UserError, match=r"are free: make room, or set train\.reuse_frozen_blocks"):
        cache.compute(upper, model, "train", rows, tmp_path / "runs", (states.Key(1, "tokens"),))
    assert not list(tmp_path.rglob("states-*"))
    cache.compute(recipe, model, "train", rows, tmp_path / "runs", (states.Key(1, "last"),))


def test_tokens_that_are_trained_leave_no_block_frozen(upper: Callable[..., Recipe]) -> None:
    recipe = upper("generative_qa").changed(lora={"trainable_token_indices": [5]})
    with pytest.raises(UserError, match="something is trained on the first block or below it"):
        training.train(recipe)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "llama",
            {"attention_dropout": 0.1},
            r"drop other numbers in each epoch \(attention_dropout 0.1",
        ),
        ("llama", {"num_kv_shared_layers": 1}, "upper blocks read keys of lower ones"),
    ],
)
def test_bases_whose_states_do_not_stand_for_their_blocks_are_refused(
    make_base: Callable[..., Path],
    upper: Callable[..., Recipe],
    family: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    base = make_base(family, num_hidden_layers=LAYERS, **changes)
    recipe = upper("classification").changed(model={"model_name_or_path": str(base)})
    with pytest.raises(UserError, match=message):
        training.train(recipe)


def test_blocks_that_are_elsewhere_are_named() -> None:
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
    assert "not where they are looked for" in str(
        blocks.unfit(FalconForCausalLM(FalconConfig(**sizes)))
    )


def test_the_collator_goes_to_other_processes(
    upper: Callable[..., Recipe], make: Callable[..., Made], tmp_path: Path
) -> None:
    """Where workers are spawned, everything that makes batches is pickled."""
    recipe, model, rows = make()
    reusing = recipe.changed(lora=Lora(layers_to_transform=[1]), train={"packing": "prefix_tree"})
    its = frozen_blocks.with_states(
        reusing, model, 1, {"train": rows}, collator(reusing, 0), tmp_path / "runs/run"
    )
    here, there = its(rows[:6]), pickle.loads(pickle.dumps(its))(rows[:6])
    assert here["packed"] and torch.equal(here["states"], there["states"])
    trees = as_trees(here["states"], here["origins"])
    padded = unpacked(trees, here["packed"]["paths"])
    real = here["attention_mask"].bool()
    torch.testing.assert_close(padded[real], here["states"][real], atol=1e-5, rtol=1e-5)
    # A token that several texts share has the state that the first of them gave.
    places = here["packed"]["paths"].flatten()[real.flatten()].tolist()
    first = dict(reversed([*zip(places, real.flatten().nonzero()[:, 0].tolist(), strict=True)]))
    assert len(first) < len(places)
    assert all(here["origins"].flatten()[place] == index for place, index in first.items())


@pytest.mark.parametrize("chosen", [None, 0, [0, 2]])
def test_blocks_below_lora_are_asked_for_before_anything_is_loaded(
    upper: Callable[..., Recipe], chosen: int | list[int] | None
) -> None:
    recipe = upper("classification").changed(lora={"layers_to_transform": chosen})
    (fault,) = pair_faults(recipe)
    assert fault.message.startswith("needs LoRA on upper blocks only")


def test_blocks_are_as_before_once_the_states_are_used(
    make: Callable[..., Made],
) -> None:
    """Also those whose forward pass a library has replaced, and after a fault inside."""
    _, model, rows = make()
    ids = torch.tensor([rows[0]["input_ids"]])
    lowest, second, last = model.model.layers
    own = lowest.forward
    lowest.forward = lambda hidden, *a, **k: own(hidden, *a, **k)
    replaced = lowest.forward
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        given = blocks.read_before(model, {"input_ids": ids}, 2)
        ran = Counter[str]()
        lowest.mlp.register_forward_pre_hook(lambda *_: ran.update("x"))
        with pytest.raises(KeyError), blocks.given([lowest, second], given):
            found = model(input_ids=torch.zeros_like(ids)).logits
            assert not ran, "nor any other block that is frozen"
            raise KeyError
        assert torch.equal(model(input_ids=ids).logits, expected)
    torch.testing.assert_close(found, expected)
    assert lowest.forward is replaced and "forward" not in vars(second) | vars(last)
    assert not torch.equal(given, model.get_input_embeddings()(ids))


def test_a_killed_pass_over_tokens_continues_after_its_last_shard(
    make: Callable[..., Made],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 100 * 64 * 4)
    monkeypatch.setattr(states, "ROW_TOKENS", 64)
    recipe, model, rows = make()
    key = states.Key(1, "tokens")
    whole = cache.compute(recipe, model, "train", rows, tmp_path / "runs", (key,))
    expected = [Stored(whole, key.name).of(cache.sums_of([row])) for row in rows]
    assert [len(its) for its in expected if its is not None] == [len(r["input_ids"]) for r in rows]
    parts = sorted(whole.glob("states-*"))
    assert len(parts) > 3 and max(part.stat().st_size for part in parts) < 2 * 100 * 64 * 4
    parts[-1].unlink()
    (whole / "manifest.json").unlink()
    calls = Counter[str]()
    model.model.layers[0].register_forward_pre_hook(lambda *_: calls.update("x"))
    again = cache.compute(recipe, model, "train", rows, tmp_path / "runs", (key,))
    assert again == whole and 0 < calls["x"] < len(rows)
    for row, right in zip(rows, expected, strict=True):
        assert torch.equal(Stored(again, key.name).of(cache.sums_of([row])), right)
        with torch.no_grad():
            live = blocks.read_before(model, {"input_ids": torch.tensor([row["input_ids"]])}, 1)
        torch.testing.assert_close(right, live[0], atol=1e-5, rtol=1e-5)
    assert Stored(again, key.name).of(cache.sums_of([{"input_ids": (1, 2, 3)}])) is None
    # What is said of the disk is as if each text had as many tokens as it can have.
    tokens, longest = sum(len(row["input_ids"]) for row in rows), recipe.train.max_length
    reusing = recipe.changed(lora=Lora(), train={"reuse_frozen_blocks": True})
    said = rows_cost(reusing, len(rows)).states * tokens / (len(rows) * longest)
    size = sum(path.stat().st_size for path in whole.glob("states-*"))
    assert said <= size <= 1.2 * said
