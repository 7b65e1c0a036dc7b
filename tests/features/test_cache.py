"""Law 5: cached states of the frozen base equal live ones."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_peft.errors import UserError
from llama_peft.features import cache, shards, states
from llama_peft.model import heads
from llama_peft.recipe import Recipe
from llama_peft.system import seal
from llama_peft.tokens.batches import pad
from llama_peft.training.features import head, layer_choice

FAMILIES = ["llama", "gemma", "gemma3_text"]
LAYERS = 3

Made = tuple[Recipe, Any, list[dict[str, Any]]]


def live(model: Any, rows: list[dict[str, Any]]) -> dict[states.Key, torch.Tensor]:
    """Return the pooled states (N, D) of each text alone, by the bare model, of every layer and pooling."""
    found: dict[states.Key, list[torch.Tensor]] = {}
    for row in rows:
        input_ids, mask = pad([row["input_ids"]], 0)
        with torch.inference_mode():
            out = model.model(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
            inner = {n: model.model.norm(out.hidden_states[n]) for n in range(1, LAYERS)}
        whole = out.last_hidden_state
        for layer, at in {**inner, LAYERS: whole, -1: whole}.items():
            for pooling in layer_choice.POOLINGS:
                pooled = heads.pool(at, mask, pooling)[0]
                found.setdefault(states.Key(layer, pooling), []).append(pooled)
    return {key: torch.stack(each) for key, each in found.items()}


def stacked(states: head.States) -> torch.Tensor:
    return torch.stack([states[i]["features"] for i in range(len(states))])


@pytest.mark.parametrize("grouping", ["prefix_tree", "length_sorted"])
@pytest.mark.parametrize(("family", "bits"), [*((family, 4) for family in FAMILIES), ("llama", 32)])
def test_cached_states_are_the_live_ones(
    make: Callable[..., Made], tmp_path: Path, family: str, grouping: str, bits: int
) -> None:
    """At every layer and pooling, and at the last layer of a base that ends there."""
    tolerance = 1e-5  # NF4 here is float32 arithmetic on 4-bit weights
    recipe, model, rows = make(family, bits, rows=20, features=grouping)
    stem = rows[0]["input_ids"][:6]  # texts that differ by one token, and one that ends inside
    rows = [
        *rows,
        *({**rows[0], "input_ids": (*stem, *end)} for end in ((9,), (11,), (12, 13), ())),
    ]
    expected = live(model, rows)
    folder = cache.compute(recipe, model, "train", rows, tmp_path / "cache", tuple(expected))
    for key, right in expected.items():
        assert right.std(0).mean() > 0.005, "texts differ, so that rows in another order would show"
        found = stacked(head.States(rows, folder, key))
        assert (found - right).abs().max() <= tolerance * right.abs().max()
        if key.layer > 0:
            keys = {"pooling": key.pooling, "layer": key.layer, "features": grouping}
            cut, shallow, _ = make(family, bits, rows=20, **keys)
            assert shallow.config.get_text_config().num_hidden_layers == key.layer
            assert len(shallow.model.layers) == key.layer
            again = head.states_of(cut, shallow, "train", rows, tmp_path / "cache")
            assert (stacked(again) - right).abs().max() <= tolerance * right.abs().max()
            input_ids, mask = pad([row["input_ids"] for row in rows], 0)
            with torch.inference_mode():
                logits = shallow(input_ids=input_ids, attention_mask=mask).logits
            torch.testing.assert_close(
                shallow.score(stacked(again)), logits, atol=1e-4, rtol=tolerance
            )


def test_shared_beginnings_are_computed_once(make: Callable[..., Made], tmp_path: Path) -> None:
    recipe, model, rows = make()
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0].numel())
    )
    rows = [{**row, "input_ids": rows[0]["input_ids"][:9] + row["input_ids"][1:]} for row in rows]
    head.states_of(recipe, model, "train", rows, tmp_path)
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert sum(seen) <= tokens - 8 * (len(rows) - 1)


def test_same_key_is_computed_once_and_another_key_again(
    make: Callable[..., Made], tmp_path: Path
) -> None:
    recipe, model, rows = make()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))

    def computed(recipe: Recipe = recipe, rows: list[dict[str, Any]] = rows) -> bool:
        calls.clear()
        key = states.Key(int(recipe.head.layer), recipe.head.pooling)
        cache.compute(recipe, model, "train", rows, tmp_path, (key,))
        return bool(calls)

    assert computed() and not computed()
    assert not computed(recipe.changed(train={"learning_rate": 1.0})), "what no state depends on"
    assert computed(recipe.changed(head={"pooling": "mean"}))
    assert computed(recipe.changed(head={"layer": 2}))
    assert computed(recipe.changed(head={"features": "length_sorted"}))
    assert computed(recipe.changed(quantization={"load_in_4bit": True}))
    assert not computed(rows=rows[3:1:-1]), "states are found by the text"
    assert computed(rows=[*rows, {**rows[0], "input_ids": (7, 9, 7)}])
    other = [{**rows[0], "input_ids": (*rows[0]["input_ids"], 5)}, *rows[1:]]
    assert computed(rows=other)
    assert not computed(), "each has a folder of its own"


def test_states_of_fewer_texts_at_one_of_many_layers_are_found(
    make: Callable[..., Made], tmp_path: Path
) -> None:
    """After `head.layer: auto`, and on a part of the training examples, there is nothing to compute."""
    recipe, model, rows = make()
    keys = tuple(states.Key(n, p) for n in range(1, LAYERS + 1) for p in layer_choice.POOLINGS)
    whole = cache.compute(recipe, model, "train", rows, tmp_path / "cache", keys)
    plain = stacked(head.States(rows, whole, states.Key(2, "mean")))
    cut, shallow, _ = make(layer=2, pooling="mean")
    alone = head.states_of(cut, shallow, "train", rows[:9], tmp_path / "alone")
    assert (stacked(alone) - plain[:9]).abs().max() <= 1e-5 * plain.abs().max()
    shallow.model.register_forward_pre_hook(lambda *_: pytest.fail("a pass of its own"))
    again = head.states_of(cut, shallow, "train", rows[8::-1], tmp_path / "cache")
    assert torch.equal(stacked(again), plain[:9].flip(0))


def test_another_base_of_the_same_name_is_another_key(
    make: Callable[..., Made], tmp_path: Path
) -> None:
    recipe, model, rows = make()
    key = (states.Key(-1, "last"),)
    first = cache.compute(recipe, model, "train", rows, tmp_path, key)
    file = Path(recipe.model.model_name_or_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, file, {"format": "pt"})
    second = cache.compute(recipe, model, "train", rows, tmp_path, key)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] / 2
    save_file(tensors, file, {"format": "pt"})
    assert first != second


def test_a_killed_pass_continues_after_its_last_shard(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SHARD", 8)
    monkeypatch.setattr(states, "ROW_TOKENS", 64)
    recipe, model, rows = make()
    key = (states.Key(-1, "last"),)
    whole = cache.compute(recipe, model, "train", rows, tmp_path / "whole", key)
    files = sorted(whole.glob("states-*"))
    assert len(files) > 3
    for kept in range(len(files) + 1):
        cut = tmp_path / str(kept) / whole.name
        cut.mkdir(parents=True)
        for file in (whole / shards.SUMS, *(files if kept % 2 else files[:kept])):
            shutil.copy(file, cut)
        if kept == 3:  # the disk changed a bit of a finished one
            first = cut / files[0].name
            raw = bytearray(first.read_bytes())
            raw[-1] ^= 1
            first.write_bytes(raw)
        if kept:
            last = cut / files[kept - 1].name
            last.write_bytes(last.read_bytes()[:-5])  # the one that was being written
        (cut / ".partial").write_bytes(b"cut off")
        again = cache.compute(recipe, model, "train", rows, cut.parent, key)
        assert seal.is_sealed(again)
        found, expected = (stacked(head.States(rows, f, key[0])) for f in (again, whole))
        assert torch.equal(found, expected)


def test_damaged_states_are_computed_again(
    make: Callable[..., Made], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, model, rows = make()
    key = states.Key(-1, "last")
    folder = cache.compute(recipe, model, "train", rows, tmp_path, (key,))
    expected = stacked(head.States(rows, folder, key)).clone()
    shard = next(folder.glob("states-*"))
    held = bytearray(shard.read_bytes())
    held[-3] ^= 1
    shard.unlink()
    shard.write_bytes(held)
    assert cache.compute(recipe, model, "train", rows, tmp_path, (key,)) == folder
    assert "damaged" in caplog.text
    assert torch.equal(stacked(head.States(rows, folder, key)), expected)


@pytest.mark.parametrize("name", ["features", "features/{}", "features/{}.lock"])
def test_a_link_in_the_place_of_cached_states_is_not_followed(
    make: Callable[..., Made], tmp_path: Path, name: str
) -> None:
    recipe, model, rows = make()
    place, outside = tmp_path / "runs/features", tmp_path / "outside"
    arguments = recipe, model, "train", rows, place, (states.Key(-1, "last"),)
    made = cache.compute(*arguments)
    planted = tmp_path / "runs" / name.format(made.name)
    if name.endswith("lock"):
        shutil.rmtree(made)
    outside.mkdir()
    planted.rename(tmp_path / "before")
    planted.symlink_to(outside / "file" if name.endswith("lock") else outside)
    with pytest.raises(UserError, match=r"leads out of|not a lock of ours"):
        cache.compute(*arguments)
    assert not [*outside.iterdir()]


def test_links_among_shards_are_replaced_and_notes_stay(
    make: Callable[..., Made], tmp_path: Path
) -> None:
    recipe, model, rows = make()
    arguments = recipe, model, "train", rows, tmp_path / "features", (states.Key(-1, "last"),)
    folder, outside = cache.compute(*arguments), tmp_path / "outside"
    outside.write_text("mine")
    for name in (".partial", shards.ORDER):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
    (folder / seal.SEAL).unlink()
    cache.compute(*arguments)
    (folder / "notes.txt").write_text("mine")
    assert seal.is_sealed(folder) and outside.read_text() == "mine"


def test_too_small_a_disk_is_said_before(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, model, rows = make()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"0\.001 MB are free.*head\.features: none"):
        head.states_of(recipe, model, "train", rows, tmp_path)
    assert not list(tmp_path.rglob("states-*"))


def test_a_continued_pass_needs_disk_for_the_rest_only(
    make: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own finished shards fill the disk."""
    monkeypatch.setattr(cache, "SHARD", 8)
    monkeypatch.setattr(states, "ROW_TOKENS", 64)
    recipe, model, rows = make()
    key = (states.Key(-1, "last"),)
    whole = cache.compute(recipe, model, "train", rows, tmp_path / "whole", key)
    last = sorted(whole.glob("states-*"))[-1]
    usage = namedtuple("usage", "total used free")
    rest = 2 * last.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - rest, rest))
    for name in (seal.SEAL, last.name):
        (whole / name).unlink()
    assert cache.compute(recipe, model, "train", rows, tmp_path / "whole", key) == whole
