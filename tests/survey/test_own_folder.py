"""A run with other settings gets a folder of its own: named by what differs, unique, stable, found again."""

from pathlib import Path

import pytest

from llama_peft.recipe import dump_recipe, load_recipe
from llama_peft.survey.own_folder import folder_name, load_in_own_folder
from tests.support.runs import write_record

RATE = "train.learning_rate=3e-3"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], None),
        ([RATE], "tiny-sst2+learning_rate=0.003"),
        (["train.learning_rate=0.003"], "tiny-sst2+learning_rate=0.003"),
        (["train.max_steps=5", RATE], "tiny-sst2+learning_rate=0.003+max_steps=5"),
        ([RATE, "train.max_steps=5"], "tiny-sst2+learning_rate=0.003+max_steps=5"),
        (["train.seed=1"], "tiny-sst2+train.seed=1"),  # dataset.seed is another key
        (["train.learning_rate=1e-3"], "tiny-sst2"),  # the recipe says so anyway
        ([RATE, "train.output_dir=here"], None),
    ],
)
def test_names(overrides: list[str], name: str | None) -> None:
    found = load_in_own_folder("tiny-sst2", overrides)
    if name is None:
        assert found == load_recipe("tiny-sst2", overrides)
    else:
        assert found.run_folder == f"runs/{name}"


def test_every_name_is_one_that_windows_takes_and_unique() -> None:
    values = [
        "a b",
        "a-b",
        "A-B",
        "a/b",
        "{text}: ?",
        "x" * 300,
        "x" * 301,
        "con",
        "a.",
        "ü",
        ["a", "b"],
        None,
    ]
    names = [folder_name("mine", {"prompt.system": value}) for value in values]
    assert len({name.lower() for name in names}) == len(values)
    for name in names:
        assert len(name) < 120 and name.isascii() and not {*'<>:"/\\|?* '} & {*name}
        assert not name.endswith((".", " "))


@pytest.mark.parametrize(
    "earlier", ["tiny-sst2+1742203459", "tiny-sst2-learning_rate-3e-3", "tiny-sst2"]
)
def test_a_run_of_an_earlier_name_stays_in_use(
    earlier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs", earlier)
    folder.mkdir(parents=True)
    kept = load_recipe(
        "tiny-sst2", [RATE, f"train.output_dir={folder}", "dataset.labels=[negative, positive]"]
    )
    (folder / "recipe.yaml").write_text(dump_recipe(kept), "utf-8")
    assert load_in_own_folder("tiny-sst2", [RATE]).run_folder == folder.as_posix()
    other = load_in_own_folder("tiny-sst2", [RATE, "train.max_steps=5"]).run_folder
    assert other == "runs/tiny-sst2+learning_rate=0.003+max_steps=5"


def test_a_value_that_a_user_wrote_does_not_stand_for_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run with a rate of one's own is another one than that whose rate was chosen."""
    monkeypatch.chdir(tmp_path)
    asked = ["train.learning_rate=auto", "train.num_train_epochs=2", "ladder.seeds=[1, 2]"]
    own = load_in_own_folder("tiny-sst2", [RATE, asked[1]])
    folder = Path(own.run_folder)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(own), "utf-8")
    assert load_in_own_folder("tiny-sst2", asked).run_folder != folder.as_posix()
    write_record(folder, {"chosen": {"learning_rate": 1e-3}})
    assert load_in_own_folder("tiny-sst2", asked).run_folder == folder.as_posix()


def test_settings_that_a_user_wrote_do_not_stand_for_what_auto_epochs_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    auto = ["train.num_train_epochs=auto", RATE]
    folder = Path(load_in_own_folder("tiny-sst2", auto).run_folder)
    folder.mkdir(parents=True)
    chosen = {
        "num_train_epochs": 8.0,
        "early_stopping_patience": 2,
        "activation_checkpointing": True,
    }
    held = load_recipe("tiny-sst2", [*auto, f"train.output_dir={folder}"]).with_train(chosen)
    (folder / "recipe.yaml").write_text(dump_recipe(held), "utf-8")
    write_record(folder, {"chosen": chosen})
    seeds, checkpointing = "ladder.seeds=[1, 2]", "train.activation_checkpointing"
    again = [*auto, f"{checkpointing}=auto", seeds]
    assert load_in_own_folder("tiny-sst2", again).run_folder == folder.as_posix()
    for other in (
        ["train.num_train_epochs=8", RATE, f"{checkpointing}=auto", seeds],
        [*auto, f"{checkpointing}=false", seeds],
        [*auto, f"{checkpointing}=auto", "train.early_stopping_patience=5", seeds],
    ):
        assert load_in_own_folder("tiny-sst2", other).run_folder != folder.as_posix(), other
