"""Our own records are read within their ranges, and name every file that a run is made of."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_peft.errors import UserError
from llama_peft.run_folder import layout
from llama_peft.run_folder.comparison import MetricComparison, read_comparison
from llama_peft.run_folder.record import Stored, read_record
from llama_peft.run_folder.results import read_results
from llama_peft.run_folder.run import open_run
from llama_peft.run_folder.threshold import read_threshold
from llama_peft.system.files import with_sum
from tests.support.paths import RUNS_0_1_0

CHECKED = {
    layout.TRAINING: read_record,
    layout.COMPARISON: read_comparison,
    layout.THRESHOLD: read_threshold,
    layout.RESULTS: lambda folder: read_results(folder / layout.RESULTS),
}
SUM = "0" * 64
VALUES: dict[str, dict[str, object]] = {
    layout.TRAINING: {
        "files": {layout.RECIPE: SUM, layout.HEAD: SUM},
        "base_fingerprint": "sha256:0",
        "parameters": {"total": 8, "trainable": 4, "base": 4},
        "head": {"layer": -1, "pooling": "last"},
    },
    layout.COMPARISON: {
        "results_sha256": {},
        "parts": [],
        "verdict": ["Tuning helps.", "Best: LoRA."],
    },
    layout.THRESHOLD: {"no_answer_threshold": 0.5},
    layout.RESULTS: {
        "results": {"sst2": {"acc": 0.5}},
        "configs": {"sst2": {"labels": []}},
        "config": {"model_kind": "tuned", "recipe": "sst2"},
    },
}


def metric(**values: object) -> dict[str, object]:
    part = {"task": "sst2", "part": "test", "examples": 3}
    return {"parts": [{**part, "metrics": [{"name": "acc", "percent": False, **values}]}]}


def scored(**values: object) -> dict[str, object]:
    return {"results": {"sst2": values}}


ODD: list[tuple[str, dict[str, object]]] = [
    (layout.TRAINING, {"steps": -1}),
    (layout.TRAINING, {"steps": 10**30}),
    (layout.TRAINING, {"steps": True}),
    (layout.TRAINING, {"version": 0}),
    (layout.TRAINING, {"epochs": -1.0}),
    (layout.TRAINING, {"wall_seconds": -0.1}),
    (layout.TRAINING, {"wall_seconds": 10**400}),
    (layout.TRAINING, {"train_loss": "1"}),
    (layout.TRAINING, {"peak_memory_bytes": 10**15}),
    (layout.TRAINING, {"examples": {"train": -1}}),
    (layout.TRAINING, {"rows": {"train": 1.5}}),
    (layout.TRAINING, {"parameters": {"total": -8, "trainable": 4, "base": 4}}),
    (layout.TRAINING, {"head": {"layer": 10**9}}),
    (layout.TRAINING, {"head": {"layer": -2}}),
    (layout.TRAINING, {"history_sha256": "x"}),
    (layout.TRAINING, {"files": {layout.RECIPE: SUM, layout.HEAD: "its"}}),
    (layout.TRAINING, {"files": {layout.RECIPE: SUM, layout.HEAD: SUM.upper() + "F"}}),
    (layout.RESULTS, scored(acc_ci95=[0.6, 0.5])),
    (layout.RESULTS, scored(acc_ci95=[0.6])),
    (layout.RESULTS, scored(acc_ci95="x")),
    (layout.RESULTS, scored(total=-1)),
    (layout.RESULTS, scored(HasAns_total=0.5)),
    (layout.RESULTS, {"wall_seconds": -1}),
    (layout.RESULTS, {"n-samples": {"sst2": {"original": -1, "effective": 1}}}),
    (layout.COMPARISON, metric(p=1.5)),
    (layout.COMPARISON, metric(p=-0.1)),
    (layout.COMPARISON, metric(tuned_ci95=[1, 0])),
    (layout.COMPARISON, metric(difference_ci95=[1, 2, 3])),
    (layout.THRESHOLD, {"no_answer_threshold": 2}),
    (layout.THRESHOLD, {"fitted_on": -1}),
]  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_the_records_are_right_as_they_are(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(with_sum(VALUES[name])))
    assert CHECKED[name](tmp_path) is not None


def records(kind: type[Stored] = Stored) -> Iterator[type[Stored]]:
    for own in kind.__subclasses__():
        yield own
        yield from records(own)


@pytest.mark.parametrize("kind", records(), ids=lambda kind: kind.__name__)
def test_a_record_takes_the_lists_of_json(kind: type[Stored]) -> None:
    """JSON has no tuples, and a strict field for one would refuse what was written itself."""
    assert not any("tuple" in str(field.annotation) for field in kind.model_fields.values())


@pytest.mark.parametrize(("name", "values"), ODD, ids=str)
def test_a_number_outside_of_its_range_is_refused(
    name: str, values: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(with_sum(VALUES[name] | values)))
    with pytest.raises((UserError, ValueError)):
        CHECKED[name](tmp_path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 5_000])
@pytest.mark.parametrize("name", CHECKED)
def test_a_number_that_is_none_is_refused_anywhere(name: str, number: str, tmp_path: Path) -> None:
    """Its sum need not be right: the file is refused before that is looked at."""
    text = json.dumps(with_sum(VALUES[name] | {"anything": 123.5}))
    (tmp_path / name).write_text(text.replace("123.5", number))
    with pytest.raises((UserError, ValueError), match=r"is not a number|limit|damaged"):
        CHECKED[name](tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {layout.RECIPE: SUM},
        {layout.HEAD: SUM},
        {layout.RECIPE: SUM, layout.ADAPTER_WEIGHTS: SUM},
        {layout.RECIPE: SUM, layout.ADAPTER_CONFIG: SUM, f"adapter/{layout.ADAPTER_WEIGHTS}": SUM},
    ],
)
def test_sums_that_leave_out_a_part_of_the_run_are_refused(
    files: dict[str, str], tmp_path: Path
) -> None:
    text = json.dumps(with_sum(VALUES[layout.TRAINING] | {"files": files}))
    (tmp_path / layout.TRAINING).write_text(text)
    with pytest.raises(UserError, match=r"there (is|are) no sums? of") as caught:
        read_record(tmp_path)
    assert "\n" not in str(caught.value)


def plant_adapter(run: Path) -> None:
    """Weights in the folder that is looked at first; the sums are of those at the top."""
    (run / layout.ADAPTER).mkdir()
    for name in layout.ADAPTER_FILES:
        (run / layout.ADAPTER / name).write_bytes((run / name).read_bytes())


def name_a_head_only(run: Path) -> None:
    (run / layout.HEAD).touch()
    facts = json.loads((run / layout.TRAINING).read_text())
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    kept = {layout.RECIPE: facts["files"][layout.RECIPE], layout.HEAD: empty}
    (run / layout.TRAINING).write_text(json.dumps(with_sum(facts | {"files": kept})))


@pytest.mark.parametrize("change", [plant_adapter, name_a_head_only])
def test_weights_without_a_sum_are_not_loaded(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(RUNS_0_1_0 / "pushed", tmp_path / "run"))
    open_run(run)
    change(run)
    with pytest.raises(UserError, match=r"has no sum of this file"):
        open_run(run)


def test_intervals_may_be_of_no_width() -> None:
    MetricComparison(name="acc", percent=True, tuned_ci95=[100.0, 100.0])
