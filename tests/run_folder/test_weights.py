"""Changed, damaged or foreign weights and records are never loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe
from llama_peft.run_folder import layout
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.weights import load_tuned, save_weights
from llama_peft.system.files import sha256
from llama_peft.training import fit as training
from tests.support import runs


@pytest.fixture(scope="module")
def finished(
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    keys = {"output_dir": str(folder), "max_steps": 1}
    return training.train(make_recipe("classification", make_base(), lora={"r": 4}, train=keys))


def test_changed_exports_are_refused(finished: Path, tmp_path: Path) -> None:
    for name in (
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "recipe.yaml",
        "split.json",
    ):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(finished, copy)
        raw = (copy / name).read_bytes()
        (copy / name).write_bytes(raw[:-3] + b"xyz")
        with pytest.raises(UserError, match="changed after the training"):
            runs.load(copy)
        (copy / name).unlink()
        with pytest.raises(UserError, match="no finished run"):
            runs.load(copy)


def resealed(folder: Path) -> None:
    facts = json.loads((folder / "training.json").read_text())
    facts["files"] = {name: sha256(folder / name) for name in facts["files"]}
    runs.write_record(folder, facts)


def test_an_adapter_of_another_depth_is_refused(finished: Path, tmp_path: Path) -> None:
    """Trap 20: PEFT loads it without an error, and the layers that it lacks stay untrained."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    path = copy / "adapter/adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if ".layers.1." not in name}
    save_file(kept, path)
    resealed(copy)
    with pytest.raises(UserError, match=r"does not fit the base.*layers\.1\."):
        runs.load(copy)


def test_another_base_of_the_same_shape_is_refused(
    finished: Path, make_base: Callable[..., Path], tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(
        "\n".join(
            f"  model_name_or_path: {make_base(initializer_range=0.03)}"
            if "model_name_or_path" in line
            else line
            for line in text.splitlines()
        )
    )
    resealed(copy)
    with pytest.raises(UserError, match="trained on another"):
        runs.load(copy)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", ""])
def test_a_run_that_is_trained_again_meanwhile_is_refused_in_one_line(
    finished: Path, tmp_path: Path, name: str
) -> None:
    """Between the check of its files and the loading of its weights."""
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    run = open_run(copy)
    shutil.move(copy / "adapter" / name, tmp_path)
    with pytest.raises(UserError, match="this run is being trained again"):
        load_tuned(run)


@pytest.mark.parametrize("linked", ["adapter", "adapter/adapter_model.safetensors", "recipe.yaml"])
def test_weights_and_recipe_behind_a_link_are_not_read(
    finished: Path, tmp_path: Path, linked: str
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    (copy / linked).rename(tmp_path / "outside")
    (copy / linked).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out of"):
        runs.load(copy)


def test_an_export_leaves_what_its_user_put_beside_it(
    make_base: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    recipe = make_recipe("classification", make_base(), lora={"r": 4}, train=keys)
    run = training.train(recipe)
    for name in ("README.md", "notes.txt"):
        (run / "adapter" / name).write_text("mine")
    (run / "adapter/adapter_config.json").unlink()
    training.train(recipe)
    assert {path.name for path in (run / "adapter").iterdir()} == {
        "README.md", "notes.txt", *layout.ADAPTER_FILES,
    }  # fmt: skip
    assert (run / "adapter/README.md").read_text() == "mine" and runs.load(run)


def test_a_folder_without_a_run_names_the_command_that_trains_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="llama-peft train"):
        runs.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "null",
        '{"files": {}, "parameters": {}, "head": {}, "base_fingerprint": null}',
        '{"files": {}, "parameters": {}, "head": "x", "base_fingerprint": "sha256:1"}',
        '{"files": [], "parameters": {}, "head": {}, "base_fingerprint": "sha256:1"}',
    ],
)
def test_a_damaged_record_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / layout.TRAINING
    if text.startswith("{"):
        runs.write_record(tmp_path, json.loads(text))  # its sum is right
    else:
        path.write_text(text)
    with pytest.raises(UserError, match="this record of a run cannot be read"):
        runs.record_of(tmp_path)


CONFIG_CHANGES: list[dict[str, object]] = [
    {"lora_alpha": float("nan")},
    {"lora_alpha": float("inf")},
    {"lora_alpha": -1},
    {"lora_alpha": "32"},
    {"r": 0},
    {"r": 10**9},
    {"r": 5},
    {"r": True},
    {"lora_dropout": float("nan")},
    {"lora_dropout": 1.5},
    {"rank_pattern": {"q_proj": 10**5}},
    {"rank_pattern": {"q_proj": -1}},
    {"alpha_pattern": {"q_proj": float("nan")}},
    {"alpha_pattern": {"q_proj": 1e300}},
    {"anything": float("nan")},
]


@pytest.mark.parametrize("change", CONFIG_CHANGES, ids=str)
def test_an_adapter_with_a_number_that_is_none_is_refused(
    change: dict[str, object], finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    path = copy / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    resealed(copy)
    with pytest.raises(UserError, match=r"adapter_config\.json: this adapter cannot be") as caught:
        runs.load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_weights_that_are_no_numbers_are_neither_loaded_nor_exported(
    lora: dict[str, int] | None,
    value: float,
    make_base: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    recipe = make_recipe("classification", make_base(), lora=lora, train=keys)
    run = training.train(recipe)
    path = run / (layout.HEAD if lora is None else "adapter/adapter_model.safetensors")
    right, record = load_file(path), runs.record_of(run)
    spoilt = {name: one.clone() for name, one in right.items()}
    spoilt[min(spoilt)].view(-1)[0] = value
    tuned = runs.load(run)
    module = dict(tuned.model.named_parameters())
    trained = next(one for name, one in module.items() if "score" in name or "lora_A" in name)
    trained.data.view(-1)[0] = value
    with pytest.raises(UserError, match=r"nothing is exported.*lower train.learning_rate"):
        save_weights(tuned.model, recipe, run, lambda files: record)
    assert runs.record_of(run) == record, "what was there before is whole"
    save_file(spoilt, path)
    resealed(run)
    with pytest.raises(UserError, match="its weights are not numbers"):
        runs.load(run)
