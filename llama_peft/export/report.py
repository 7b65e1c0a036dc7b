"""A report as it may be pushed: whole, and of nothing but the elements of our template.

A sum proves only that the page and the sum belong together: a stranger can write both. So a page that
will be read on the Hub holds no script, no event handler, no form and no address.
"""

import re
from pathlib import Path

from llama_peft.run_folder.comparison import Comparison
from llama_peft.run_folder.evaluations import damaged
from llama_peft.run_folder.layout import COMPARISON, REPORT
from llama_peft.run_folder.ownership import REPORT_POLICY
from llama_peft.system.files import read_text, sha256_of

_ATTRIBUTES = r"""(?:\s+(?:
    (?:lang|scope|class|id|role|tabindex|aria-label(?:ledby)?|data-label|viewBox|points|[dxyr]|[xy][12]|c[xy]|text-anchor
    |transform|fill|stroke-width|stroke-dasharray|(?:(?:fill|stroke)-)?opacity|font-size|font-weight)="[^"<>]*"
    |href="\#[a-z-]*"
    |style="background:\ rgb\(var\(--shade\)\ /\ [\d.]+\)"
))*"""
_META = r"""<meta\s+(?:
    charset="utf-8"
    |name="viewport"\ content="width=device-width,\ initial-scale=1"
)>"""
_TAG = re.compile(
    rf"""{_META}|</?(?:
        html|head|title|style|body|header|nav|main|section|a|h[1234]|p|div|ul|li|small|pre|details|summary|dl|dt|dd
        |table|caption|thead|tbody|tr|th|td|figure|figcaption|svg|g|line|polyline|circle|path|text
    ){_ATTRIBUTES}\s*/?>""",
    re.VERBOSE,
)
"""An element of the template, or of that of version 0.1.0. Text in a report holds no `<`, because the
template escapes it.
"""
_SUM = "sha256-[A-Za-z0-9+/]+="
_POLICY = (
    rf"{re.escape(REPORT_POLICY)}(?:unsafe-inline|{_SUM})'"
    rf"(?:;\ script-src\ '{_SUM}';\ base-uri\ 'none';\ form-action\ 'none')?"
)
_BEGINNING = re.compile(
    rf"""<!doctype\ html>\s*<html\ lang="en">\s*<head>\s*<meta\ charset="utf-8">\s*
    <meta\ http-equiv="Content-Security-Policy"\s+content="{_POLICY}">""",
    re.VERBOSE,
)
_NOT_PUSHED = re.compile("<!-- not pushed -->.*?<!-- end of not pushed -->", re.DOTALL)
"""The examples of a report, and the script that shows them."""


def checked_report(run: Path, comparison: Comparison) -> str:
    """The text of the report without its examples and its script. Raises UserError if it is not the
    one that was written with the comparison.
    """
    try:
        page = read_text(run, REPORT)
        if comparison.report_sha256 is None:
            raise ValueError(f"{COMPARISON} does not record its sum")
        if comparison.report_sha256 != sha256_of(page):
            raise ValueError("it was changed after it was written")
        page = _NOT_PUSHED.sub("", page, count=1)
        check_markup(page)
    except (OSError, ValueError) as error:
        raise damaged(run, REPORT, error) from None
    return page


def check_markup(page: str) -> None:
    """Raise ValueError if a page holds anything but the elements of our template."""
    if not _BEGINNING.match(page):
        raise ValueError("it does not begin as a report of llama-eval does")
    rest = _TAG.sub("", _BEGINNING.sub("", page, count=1))
    if "<" in rest:
        found = rest[rest.index("<") :].split(">")[0][:40]
        raise ValueError(f"it holds {found}>, which a report of llama-eval never does")
    for style in re.findall(r"<style[^>]*>(.*?)(?:</style|\Z)", page, re.DOTALL):
        if re.search(r"\\|url\(|@import", style):
            raise ValueError("its style names an address, which a report of llama-eval never does")
