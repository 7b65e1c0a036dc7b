"""Which rungs a recipe asks for, and with which recipe and folder each is measured."""

from collections.abc import Callable

import pytest

from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, load_recipe
from llama_peft.run_folder.ladder.rungs import check_rung, measurements, settled, wanted

LORA = {"r": 2}
Make = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("task", "lora", "rungs"),
    [
        ("classification", LORA, "majority tf-idf zero-shot few-shot head tuned"),
        ("classification", None, "majority tf-idf zero-shot few-shot tuned"),
        ("extractive_qa", LORA, "no-answer bm25 zero-shot few-shot tuned"),
        ("generative_qa", LORA, "no-answer bm25 zero-shot few-shot tuned"),
    ],
)
def test_the_rungs_follow_from_the_task(
    make_recipe: Make, task: str, lora: dict[str, int] | None, rungs: str
) -> None:
    assert wanted(make_recipe(task, "tiny", lora=lora)) == tuple(rungs.split())


def test_a_rung_that_is_not_asked_for_is_refused_with_those_that_are(make_recipe: Make) -> None:
    recipe = make_recipe("classification", "tiny", ladder={"rungs": ["tuned", "majority"]})
    assert wanted(recipe) == ("majority", "tuned")
    with pytest.raises(UserError, match="no such rung; its rungs are majority, tuned"):
        check_rung(recipe, "tf-idf")


def test_every_measurement_has_a_folder_of_its_own_and_the_run_itself_is_one(
    make_recipe: Make,
) -> None:
    ladder = {"seeds": [1, 2], "sizes": [8, 16, "all"], "encoder": "tiny"}
    recipe = settled(make_recipe("classification", "tiny", lora=LORA, ladder=ladder))
    assert recipe.train.seed == 1
    plan = measurements(recipe, 24)
    folders = [one.results for one in plan]
    assert len({*folders}) == len(folders)
    # 4 untrained, 3 trained with 2 seeds; for each of 2 sizes TF-IDF once and 3 trained with 2 seeds
    assert [one.size for one in plan] == [None] * (4 + 3 * 2) + [16] * 7 + [8] * 7
    own = [one for one in plan if one.recipe.run_folder == recipe.run_folder and one.is_trained]
    assert [one.name for one in own] == ["tuned, seed 1"]
    assert own[0].recipe == recipe.changed(ladder=own[0].recipe.ladder, train=own[0].recipe.train)


def test_the_recipe_of_every_rung_is_a_valid_one(make_recipe: Make) -> None:
    """Also if the adapter is trained by an attention that computes tree rows in 16 bits and nothing else."""
    recipe = make_recipe(
        "classification",
        "tiny",
        lora=LORA,
        model={"dtype": None, "attn_implementation": "varlen"},
        train={"packing": "prefix_tree"},
        ladder={"sizes": [8], "encoder": "tiny", "full": True},
    )
    plan = measurements(settled(recipe), 24)
    for one in plan:
        assert load_recipe(one.recipe) == one.recipe, one.name
    asked = {one.rung for one in plan if one.recipe.model.attn_implementation == "varlen"}
    assert "tuned" in asked and not asked & {"head", "encoder", "full"}


def test_a_head_alone_has_no_adapter_and_small_parts_are_read_more_often(make_recipe: Make) -> None:
    recipe = make_recipe(
        "classification",
        "tiny",
        lora=LORA,
        ladder={"sizes": [100]},
        train={"max_steps": -1, "num_train_epochs": 2.0},
    )
    plan = {one.results: one.recipe for one in measurements(recipe, 900)}
    assert plan["ladder/head-seed-42/tuned"].lora is None
    small = plan["ladder/tuned-100-seed-42/tuned"]
    assert small.dataset.max_train_samples == 100
    assert small.train.num_train_epochs == 6.0  # 2 * sqrt(900 / 100)
