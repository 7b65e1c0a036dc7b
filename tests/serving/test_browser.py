"""The served page in a real browser: asked, marked and corrected as a person would."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eval.report.page.browser import Browser, open_browser, program
from tests.serving.served import Served, inputs_of


@pytest.fixture(scope="module")
def browser(served: Served) -> Iterator[Browser]:
    if program() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium", reason="selenium is not installed: pip install '.[dev]'")
    with open_browser() as found:
        found.show(f"http://127.0.0.1:{served.port}/")
        found.wait("return document.querySelectorAll('textarea').length")
        yield found


def ask(browser: Browser, given: dict[str, str]) -> None:
    for name, text in given.items():
        browser.type(f"field-{name}", text)
    browser.run("document.getElementById('state').textContent = ''")
    browser.run("document.querySelector('#ask button').click()")
    browser.wait("return document.getElementById('state').textContent.endsWith(' s')", 60)


def test_it_shows_what_the_run_says_as_text(browser: Browser, served: Served) -> None:
    given = inputs_of(served)[-1] | dict.fromkeys(list(inputs_of(served)[0])[:1], "<b>Who?</b>")
    ask(browser, given)
    (right,) = served.loaded.predict([given])
    said = browser.texts("#tuned .said")
    assert said == [str(right.prediction) or "no answer"]
    assert browser.run("return document.querySelectorAll('main b').length") == 0
    assert len(browser.texts("#base .said")) == 1, "the untouched base stands beside"
    if served.loaded.run.labels:
        assert browser.texts("#tuned .chance .number")[0].endswith(" %")
    else:
        assert browser.text("marked") == given["context"]
        assert "".join(browser.texts("#marked mark")) == right.prediction


def test_a_correction_is_kept_as_a_row(browser: Browser, served: Served) -> None:
    given = inputs_of(served)[0]
    ask(browser, given)
    browser.type("truth", "negative" if served.loaded.run.labels else "Ägnes")
    browser.run("document.querySelector('#correct button').click()")
    browser.wait("return document.getElementById('kept').innerText.length > 3", 60)
    assert browser.text("kept") == "Kept."
    (row,) = [json.loads(line) for line in served.kept.read_text("utf-8").splitlines()]
    assert all(text in row.values() for text in given.values())
    served.kept.unlink()


def test_a_correction_that_is_none_is_answered_in_words(browser: Browser, served: Served) -> None:
    if served.loaded.run.labels:
        pytest.skip("a label is chosen from a list")
    ask(browser, inputs_of(served)[0])
    browser.type("truth", "not in the passage")
    browser.run("document.querySelector('#correct button').click()")
    browser.wait("return document.getElementById('kept').innerText.length > 3", 60)
    assert "finds answers in the passage" in browser.text("kept") and not served.kept.exists()


def test_it_fits_every_width_and_asks_only_its_own_server(browser: Browser, served: Served) -> None:
    for scheme in ("light", "dark"):
        for width in (375, 768, 1280):
            browser.resize(width, scheme)
            inner, whole = browser.run(
                "return [window.innerWidth, document.documentElement.scrollWidth]"
            )
            assert whole <= inner, (width, scheme)
    own = f"http://127.0.0.1:{served.port}/"
    assert all(address.startswith(own) for address in browser.requests())
    refused = [line for line in browser.errors() if "/api/feedback" not in line]
    assert refused == []


def test_axe_finds_nothing_serious(browser: Browser) -> None:
    axe = pytest.importorskip("axe_selenium_python", reason="pip install '.[dev]' has it")
    assert browser.violations(Path(axe.__file__).parent) == []
