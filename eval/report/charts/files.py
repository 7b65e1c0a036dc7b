"""The charts of a report as files: each one as SVG and as PNG, in the folder `charts` beside it."""

from collections.abc import Sequence
from pathlib import Path

from llama_peft.run_folder.layout import CHARTS
from llama_peft.run_folder.ownership import chart_files
from llama_peft.system.files import make_folder, new_file, remove_file, sum_of, write_text

from .draw import Chart


def names_of(chart: Chart) -> tuple[str, str]:
    """Return the names of a chart's two files, SVG and PNG, in the folder of the report."""
    return f"{CHARTS}/{chart.name}.svg", f"{CHARTS}/{chart.name}.png"


def write_charts(folder: Path, charts: Sequence[Chart]) -> dict[str, str]:
    """Write the charts, remove those of ours that are no longer drawn, and return the sum of each PNG
    file by its name.
    """
    written = {name for chart in charts for name in names_of(chart)}
    for name in {*chart_files(folder)} - written:
        remove_file(folder, name)
    if charts:
        make_folder(folder, CHARTS)
    sums = {}
    for chart in charts:
        svg, png = names_of(chart)
        write_text(folder, svg, chart.svg)
        with new_file(folder, png) as place:
            place.write_bytes(chart.png)
        sums[png] = sum_of(folder, png)
    return sums
