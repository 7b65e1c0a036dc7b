"""The page in a real browser: nothing leaves it, it fits every width, and 12,000 examples answer at once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import report
from tests.eval.report.page.browser import Browser, open_browser, program
from tests.support.evaluations import trained, write
from tests.support.html import embedded

EXAMPLES, COPIES = 60, 200
EVIL = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
WORDS = ("river", "harbour", "bridge", "market", "tower", "garden", "school", "mill")


def questions() -> dict[str, list[str]]:
    """Questions, of which every third has no answer."""
    return {f"q{n:02}": [] if n % 3 == 0 else [WORDS[n % 8]] for n in range(EXAMPLES)}


def add_passages(folder: Path) -> None:
    """Write the passages, prompts and probabilities that an evaluation of a model leaves."""
    file = folder / "predictions.jsonl"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for n, line in enumerate(lines):
        passage = f"Town {n // 4} has a {' and a '.join(WORDS)}. {'Many people live there. ' * 12}"
        text = f"What does town {n // 4} have, number {n}?" + (EVIL if n == 1 else "")
        line |= {"text": text, "passage": passage, "no_answer_probability": (n * 7 % 60) / 60}
        line["prompt"] = f"Read this.\n{passage}\nQuestion: {text}\nAnswer:"
        line["raw"] = f" {line['prediction']}\n"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def enlarge(page: Path) -> None:
    """Repeat the examples of a page until there are 12,000: to score so many would take minutes."""
    text = page.read_text("utf-8")
    (part,) = embedded(text)
    for columns in (part["rows"], *part["said"]):
        columns |= {name: column * COPIES for name, column in columns.items()}
    rows = part["rows"]
    rows["id"] = [f"{id_}-{n // EXAMPLES:03}" for n, id_ in enumerate(rows["id"])]
    rows["passage"] = [n // 4 for n in range(len(rows["id"]))]
    known = part["passages"]
    part["passages"] = [
        known[n % len(known)].replace("Town", f"Copy {n}, town")
        for n in range(EXAMPLES * COPIES // 4)
    ]
    part["examples"] = len(rows["id"])
    data = json.dumps([part]).replace("<", "\\u003c")
    begin = text.index(">", text.index('<script type="application/json"')) + 1
    page.write_text(text[:begin] + data + text[text.index("</script>", begin) :], "utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = trained(tmp_path_factory.mktemp("runs") / "squad")
    golds = questions()
    first = {id_: WORDS[n % 5] for n, id_ in enumerate(golds)}
    said = {id_: (own or [""])[0] if n % 10 else "?" for n, (id_, own) in enumerate(golds.items())}
    said["q01"] = EVIL
    write(run / "zero-shot", first, golds)
    write(run / "tuned", said, golds, kind="span")
    for name in ("zero-shot", "tuned"):
        add_passages(run / name)
    lines = [{"step": s, "loss": 1 / s, "grad_norm": 1.0} for s in range(1, 30)]
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = report.write_html(run)
    enlarge(made)
    return made


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Browser]:
    if program() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")
    with open_browser() as found:
        found.show(page)
        yield found


def count(browser: Browser) -> str:
    return browser.text("count")


def test_it_fits_every_width_asks_for_nothing_and_reports_no_error(browser: Browser) -> None:
    for scheme in ("light", "dark"):
        for width in (375, 768, 1280):
            browser.resize(width, scheme)
            inner, whole = browser.run(
                "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
            )
            assert whole <= inner, (scheme, width)
    assert browser.requests() == [], "a request left the page"
    assert browser.errors() == []
    assert browser.run("return document.title") == "squad: report"
    assert browser.run("return document.querySelectorAll('main script, main img').length") == 0
    assert EVIL in browser.text("list"), "a prediction is shown as text"


def test_the_numbers_that_it_shows_are_those_of_results_json(browser: Browser, page: Path) -> None:
    (part,) = embedded(page.read_text("utf-8"))
    (scores,) = json.loads((page.parent / "tuned/results.json").read_text("utf-8"))[
        "results"
    ].values()
    (cell,) = browser.run(
        "return [...document.querySelectorAll('.numbers tr')].filter(row => row.cells[0].innerText === 'span')"
        ".slice(0, 1).map(row => row.cells[1].innerText)"
    )
    assert cell.split()[0] == f"{scores['f1']:.2f}"
    browser.choose("kind", "right")
    right = sum(
        one == other == 1 for one, other in zip(*(s["right"] for s in part["said"]), strict=True)
    )
    assert count(browser) == f"{right:,} of 12,000 examples"
    browser.choose("kind", "")


def choose(name: str, value: str) -> Callable[[Browser], float]:
    return lambda browser: browser.choose(name, value)


ACTIONS: list[tuple[Callable[[Browser], float], str]] = [
    (choose("kind", "mended"), "10,000"),
    (choose("silent", "hollow"), "400"),
    (choose("kind", ""), "1,200"),
    (choose("silent", "gold"), "4,000"),
    (choose("silent", ""), "12,000"),
    (lambda browser: browser.type("query", "copy 2999 garden"), "4 "),
    (lambda browser: browser.type("query", ""), "12,000"),
    (choose("sort", "unsure"), "12,000"),
    (lambda browser: browser.click("next"), "12,000"),
    (choose("size", "100"), "12,000"),
    (choose("before", "1"), "12,000"),
    (choose("before", "0"), "12,000"),
]


def test_filters_search_sort_and_pages_of_12_000_examples_take_less_than_a_second(
    browser: Browser,
) -> None:
    for action, found in ACTIONS:
        assert action(browser) < 1000, "milliseconds"
        assert count(browser).startswith(found), count(browser)
    sure = [float(text.rsplit(" ", 1)[1]) for text in browser.texts("#list li dd:last-of-type")]
    assert sure == sorted(sure) and len(sure) == 100
    browser.choose("sort", "")
    browser.choose("size", "10")


def test_it_is_used_by_keyboard_alone(browser: Browser) -> None:
    browser.press("ARROW_RIGHT")
    browser.press("ARROW_RIGHT")
    browser.press("ARROW_LEFT")
    assert browser.text("page") == "page 2 of 1,200"
    browser.press("/")
    assert browser.run("return document.activeElement.id") == "query"
    for key in ("4", "7", "?", "TAB"):
        browser.press(key)
    assert browser.run("return document.activeElement.id") != "query"
    assert count(browser) == "200 of 12,000 examples"
    assert browser.texts("mark.hit")[0] == "47?"
    browser.type("query", "")


def test_a_passage_is_marked_and_the_prompt_is_what_the_model_read(browser: Browser) -> None:
    browser.type("query", "q47-123")
    assert browser.texts(".passage mark.gold.new") == ["mill"]
    assert browser.texts(".passage mark.old") == ["bridge"]
    browser.run("document.querySelectorAll('#list details').forEach(one => one.open = true)")
    browser.wait("return document.querySelectorAll('#list pre').length")
    read, wrote, *_ = browser.texts("#list pre")
    assert read.startswith("Read this.\nCopy ") and "number 47?\nAnswer:" in read
    assert wrote.strip() == "bridge"
    browser.type("query", "")


def test_axe_finds_nothing_serious(browser: Browser) -> None:
    axe: Any = pytest.importorskip(
        "axe_selenium_python", reason="axe-selenium-python is not installed"
    )
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    for scheme, width in (("light", 1280), ("dark", 375)):
        browser.resize(width, scheme)
        found = browser.violations(Path(axe.__file__).parent)
        assert found == [], (scheme, width)
