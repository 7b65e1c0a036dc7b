"""Writes report.html: the page of a run, of a ladder, or of any results side by side.

The template engine escapes everything that comes from data, a model or a user. The page's policy
forbids requests, and every style and script but the two of this folder, which it names by their
sums. So a model's output cannot do anything in it.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from llama_peft.errors import UserError
from llama_peft.run_folder.evaluations import read_evaluations
from llama_peft.run_folder.ladder.finished import read_finished
from llama_peft.run_folder.layout import REPORT, RESULTS, TRAINING, TUNED, ZERO_SHOT
from llama_peft.run_folder.ownership import REPORT_POLICY, is_our_file
from llama_peft.run_folder.record import TrainingRecord, read_record
from llama_peft.system.files import inside, is_file, write_text
from llama_peft.system.terminal import listed

from ...results import SystemResults, read_systems, result_folders
from ..charts import Chart, figures, training
from ..charts.figures import Mean
from ..charts.files import names_of, write_charts
from ..comparison import check_replaceable, write_compared
from ..table import Table, system_names, table
from . import facts, tables
from .examples import embedded
from .part import MOST_COLUMNS, Part, confused, drawn, grids

if TYPE_CHECKING:
    from jinja2 import Template

    from ...ladder.read import Rung
    from ...ladder.verdict import Verdict

LARGEST = 20_000_000
"""Bytes of a page, about: of a larger one, a sample of the examples is shown."""
_FOLDER = Path(__file__).parent
_TEMPLATE = "page.html.jinja"
_PALETTE = _FOLDER.parent / "charts" / "palette.css"


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows."""

    name: str
    lines: Sequence[str]
    """The verdict."""
    tables: Sequence[Table]
    """The compact ones."""
    parts: Sequence[Part]
    compared: Sequence[Table]
    """Of each part, every metric with its differences."""
    charts: Sequence[Chart] = ()
    """Of the run as a whole."""
    run: Path | None = None
    record: TrainingRecord | None = None
    commands: Sequence[str] = ()
    drawings: Mapping[str, Sequence[Chart]] = field(default_factory=dict)
    """Of each part, by its title."""

    def inline_of(self, part: Part) -> list[Chart]:
        """The charts of a part that stand in the page: a table of counts takes the place of its drawing."""
        has_table = len(part.first.labels) <= MOST_COLUMNS
        return [
            one
            for one in self.drawings[part.title]
            if not (has_table and one.name.startswith("confusion"))
        ]

    @property
    def first_charts(self) -> list[Chart]:
        """Those of the whole, among those of a single part."""
        if len(self.parts) > 1:
            return [*self.charts]
        own = self.inline_of(self.parts[0])
        return [*own[:1], *self.charts, *own[1:]]

    @property
    def has_curve(self) -> bool:
        """Whether the loss is drawn."""
        return any(chart.name == "training" for chart in self.charts)


def write_html(run_folder: Path, verdict: "Verdict | None" = None) -> Path:
    """Write report.html and its charts into the run folder and return the path of the page.

    verdict: that of the run's ladder, if the caller knows it already.

    comparison.json, which the card needs, is written too. Raises UserError if the results in
    zero-shot/ or tuned/ cannot be read or are of other weights, or if the folder holds a report
    that is not ours.
    """
    run = _run_of(Path(run_folder))
    check_replaceable(run)
    pairs = _measured(run)
    read_evaluations(run)
    verdict = verdict or _verdict(run)
    page = _page_of_run(run, pairs, verdict)
    charts = [*_all_charts(page)]
    check_replaceable(run, [name for chart in charts for name in names_of(chart)])
    write_text(run, REPORT, render(page))
    sums = write_charts(run, charts)
    write_compared(run, pairs, verdict.lines if verdict else (), sums)
    return run / REPORT


def charts_of(run_folder: Path) -> list[Chart]:
    """Return the charts of a run's report. Raises UserError as `write_html`; nothing is written."""
    run = _run_of(Path(run_folder))
    return [*_all_charts(_page_of_run(run, _measured(run), _verdict(run)))]


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write the page of several results side by side.

    Others are compared with the first of the same part and task. Raises UserError as `compare`, or
    if `output` is a file that is not ours.
    """
    if not is_our_file(output.parent, output.name, REPORT):
        raise UserError(
            f"{output}: llama-eval did not write this file, so it is not replaced; choose another --output"
        )
    systems = [
        one for folder in folders for own in result_folders(folder) for one in read_systems(own)
    ]
    groups: dict[tuple[object, ...], list[SystemResults]] = {}
    for one in systems:
        groups.setdefault((one.side, one.labels, one.part), []).append(one)
    parts = [_part([*zip(system_names(own), own, strict=True)]) for own in groups.values()]
    page = Page(
        name=", ".join(dict.fromkeys(one.config.recipe for one in systems)),
        lines=[line for part in parts for line in tables.headline(part)],
        tables=[tables.compact(part) for part in parts],
        parts=parts,
        compared=[table([*part.systems.values()]) for part in parts],
        charts=[chart for part in parts[:1] if (chart := _cost(part))],
        commands=[facts.page_command([*folders], output)],
        drawings=_drawings(parts),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output.parent, output.name, render(page))
    return output


def _run_of(folder: Path) -> Path:
    """Return a run folder. Raises UserError with the folder that was meant, if another one was given."""
    if is_file(folder, TRAINING) or any((folder / name).is_dir() for name in (ZERO_SHOT, TUNED)):
        return folder
    above = next((one for one in folder.absolute().parents if (one / TRAINING).is_file()), None)
    if above is not None:
        raise UserError(
            f"{folder} is inside a run, and a report is about a whole run: llama-eval html {_near(above)}"
        )
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; give a run folder with {ZERO_SHOT}/ and {TUNED}/"
        )
    if (folder / RESULTS).is_file():
        raise UserError(
            f"{folder} holds one evaluation, and a report shows several: llama-eval html {folder} "
            "OTHER_FOLDER --output report.html"
        )
    inner = sorted(path.parent for path in folder.glob(f"*/{TRAINING}"))
    meant = (
        f"is one of these meant: {listed(map(str, inner[:3]))}?" if inner else "give a run folder"
    )
    raise UserError(f"{folder} is not a run folder, which holds {ZERO_SHOT}/ and {TUNED}/; {meant}")


def _near(folder: Path) -> Path:
    """Return a path from the working folder, if it lies inside."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _verdict(run: Path) -> "Verdict | None":
    """The verdict of the run's ladder; None if none was climbed."""
    if read_finished(run) is None:
        return None
    from ...ladder.verdict import judge

    return judge(run)


def _systems(run: Path, name: str) -> list[SystemResults]:
    inside(run, name)  # the folder may be a link that a stranger made
    return read_systems(run / name)


def _measured(run: Path) -> list[tuple[SystemResults, SystemResults]]:
    """Return the zero-shot and the tuned results of each part."""
    return [*_pairs(_systems(run, ZERO_SHOT), _systems(run, TUNED))]


def _pairs(
    zero_shot: Sequence[SystemResults], tuned: Sequence[SystemResults]
) -> Iterator[tuple[SystemResults, SystemResults]]:
    """The zero-shot and tuned system of each part that both were evaluated on."""
    before = {system.part: system for system in zero_shot}
    for after in tuned:
        if after.part in before:
            yield before[after.part], after
    if not {system.part for system in tuned} & before.keys():
        folder = tuned[0].folder.parent
        raise UserError(
            f"{folder}: {ZERO_SHOT} and {TUNED} were evaluated on different parts; "
            f"evaluate the same with: llama-eval run --model {folder} --output {folder / TUNED}"
        )


def _page_of_run(
    run: Path, pairs: Sequence[tuple[SystemResults, SystemResults]], verdict: "Verdict | None"
) -> Page:
    parts = [_part_of_run(*pair, verdict) for pair in pairs]
    record = read_record(run) if is_file(run, TRAINING) else None
    curves = training.curves(facts.history(run), facts.resumed_at(record) if record else ())
    own = [*_of_ladder(verdict, parts[0])] if verdict else [_cost(parts[0])]
    lines = verdict.lines if verdict else [line for part in parts for line in tables.headline(part)]
    return Page(
        name=pairs[0][1].config.recipe,
        lines=lines,
        tables=verdict.tables if verdict else [tables.compact(part) for part in parts],
        parts=parts,
        compared=[table([*pair]) for pair in pairs],
        charts=[chart for chart in (*own, curves) if chart],
        run=run,
        record=record,
        commands=facts.commands(run),
        drawings=_drawings(parts),
    )


def _part_of_run(before: SystemResults, after: SystemResults, verdict: "Verdict | None") -> Part:
    """The systems of a part: all rungs of a ladder on its part, else the two."""
    if verdict is None or verdict.climbed.part != after.part:
        return _part([*zip(system_names([before, after]), (before, after), strict=True)])
    same = {"zero-shot": before, "tuned": after}
    rungs = verdict.climbed.rungs
    named = [(rung.title, same.get(rung.name, rung.first)) for rung in rungs]
    titles = {rung.name: rung.title for rung in rungs}
    return _part(named, titles.get("zero-shot"), titles.get("tuned"))


def _part(
    named: Sequence[tuple[str, SystemResults]], before: str | None = None, after: str | None = None
) -> Part:
    first = named[0][1]
    tasks = ", ".join(dict.fromkeys(system.task for _, system in named))
    return Part(
        title=f"{tasks} ({first.part}, {first.counted})",
        systems=dict(named),
        before=before or named[0][0],
        after=after or named[-1][0],
    )


def _drawings(parts: Sequence[Part]) -> dict[str, Sequence[Chart]]:
    """The charts of each part. From the second part on, their names name the part too."""
    found: dict[str, Sequence[Chart]] = {part.title: [*drawn(part)] for part in parts}
    for part in parts[1:]:
        named = [chart.renamed(f"{chart.name}-{part.first.part}") for chart in found[part.title]]
        found[part.title] = named
    return found


def _all_charts(page: Page) -> Iterator[Chart]:
    yield from page.charts
    for part in page.parts:
        yield from page.drawings[part.title]


def _of_ladder(verdict: "Verdict", part: Part) -> Iterator[Chart | None]:
    """Yield score against cost, and the learning curve."""
    means = {one.rung.title: _mean(one.rung, verdict) for one in verdict.standings}
    seconds = {
        one.rung.title: one.cost.train_seconds or 0.0
        for one in verdict.standings
        if one.cost.train_seconds is not None or not one.rung.is_trained
    }
    yield figures.cost(verdict.metric.name, means, seconds, part.colours)
    lines: dict[str, dict[int, Mean]] = {}
    for rung in sorted(verdict.climbed.smaller, key=lambda one: one.size or 0):
        if rung.size is not None and verdict.metric.name in rung.measured:
            lines.setdefault(rung.title, {})[rung.size] = _mean(rung, verdict)
    for title, points in lines.items():
        if title in means:
            points[verdict.climbed.examples] = means[title]
    yield figures.learning_curve(verdict.metric.name, lines, part.colours)


def _mean(rung: "Rung", verdict: "Verdict") -> Mean:
    from ...ladder.standing import mean_of

    found = mean_of(rung, verdict.metric)
    bounds = found.interval
    low, high = (bounds.low, bounds.high) if bounds else (found.score, found.score)
    return Mean(found.score, low, high)


def _cost(part: Part) -> Chart | None:
    """Score against cost, if no ladder says it."""
    seconds = tables.seconds_to_train(part.systems)
    return figures.cost(part.metric.name, part.means, seconds, part.colours)


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE)


def render(page: Page) -> Iterator[str]:
    """Yield the text of the page in pieces: it may be large."""
    from markupsafe import Markup

    style = f"{_PALETTE.read_text('utf-8')}{(_FOLDER / 'page.css').read_text('utf-8')}"
    script = (_FOLDER / "page.js").read_text("utf-8")
    main = page.parts[0].systems[page.parts[0].after]
    return _template().generate(
        page=page,
        policy=Markup(
            f"{REPORT_POLICY}sha256-{_sum(style)}'; script-src 'sha256-{_sum(script)}'; {_NEVER}"
        ),
        style=Markup(style),
        script=Markup(script),
        data=map(Markup, embedded(page.parts, LARGEST)),
        main=main,
        inline={chart: Markup(chart.inline) for chart in _all_charts(page)},
        grids={part.title: [*grids(part)] for part in page.parts},
        confused={part.title: confused(part.systems[part.after]) for part in page.parts},
        scores={part.title: tables.every_score(part) for part in page.parts},
        dropped=facts.dropped(main, page.record),
        numbered=facts.numbered(main),
        facts=facts.facts(main),
        recipe=facts.recipe_of(page.run) if page.run else "",
    )


_NEVER = "base-uri 'none'; form-action 'none'"


def _sum(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
