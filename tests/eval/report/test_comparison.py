"""Laws of comparison.json: it has the numbers of the table."""

import json
from functools import partial

import pytest

from eval import report
from llama_peft.system.files import sha256
from llama_peft.system.formatting import number


@pytest.mark.parametrize("name", ["run", "squad"])
def test_comparison_json_has_the_table_s_numbers(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    report.write_html(folder)
    content = json.loads((folder / "comparison.json").read_text())
    assert content["results_sha256"] == {
        name: sha256(folder / name / "results.json") for name in ("zero-shot", "tuned")
    }
    (table,), (part,) = report.compare([folder]), content["parts"]
    zero_shot, tuned, difference = (table.rows[i].cells for i in (0, 1, 2))
    names = [line["name"] for line in part["metrics"]]
    assert names == list(table.columns[: table.costs_from])
    for column, line in enumerate(part["metrics"]):
        write = partial(number, is_percent=line["percent"])
        assert write(line["zero_shot"]) == zero_shot[column].text
        assert write(line["tuned"]) == tuned[column].text
        assert write(line["difference"], sign="+") == difference[column].text
