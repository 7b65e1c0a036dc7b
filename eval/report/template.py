"""The page's HTML and CSS. `report_page` fills it; the engine escapes every value."""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: what tuning bought</title>
<style>
:root {
  color-scheme: light dark;
  --page: #fcfcfb; --text: #1d1d1b; --muted: #63625d; --line: #dcdbd5; --shade: 42 120 214;
  --training: #2a78d6; --validation: #c2410c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #1a1a19; --text: #f0efea; --muted: #a3a29b; --line: #3a3a37; --shade: 90 158 240;
    --training: #5a9ef0; --validation: #fb923c;
  }
}
body {
  margin: 0 auto; max-width: 88rem; padding: 1.5rem; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .3rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, .text th, .text td { text-align: left; }
.text td { vertical-align: top; max-width: 26rem; overflow-wrap: anywhere; }
th { font-weight: 600; } tr.detail th, .muted, small { color: var(--muted); font-weight: 400; }
tr.detail th { padding-left: 1.8rem; }
small { display: block; } .numbers { white-space: nowrap; margin-bottom: 1rem; }
.grids { display: flex; flex-wrap: wrap; gap: 2.5rem; }
svg { max-width: 45rem; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--muted); } svg line { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.training polyline { stroke: var(--training); } .training circle { fill: var(--training); }
.validation polyline { stroke: var(--validation); } .validation circle { fill: var(--validation); }
svg .training text { fill: var(--training); } svg .validation text { fill: var(--validation); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .8rem; }
</style>
</head>
<body>
{% macro rows(table, first, last, lines) %}
<div class="wide"><table class="numbers">
<thead><tr><th scope="col">system</th>
{% for column in table.columns[first:last] %}<th scope="col">{{ column }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in lines %}
<tr{% if row.is_detail %} class="detail"{% endif %}><th scope="row">{{ row.name }}</th>
{% for cell in row.cells[first:last] %}
<td>{{ cell.text }}{% if cell.interval %}<small>{{ cell.interval }}</small>{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
<h1>{{ name }}: what tuning bought</h1>
{% for part in parts %}
<h2>{{ part.table.title }}</h2>
{{ rows(part.table, 0, part.table.costs_from, part.table.rows) }}
{% if part.table.costs_from < part.table.columns | length %}
{{ rows(part.table, part.table.costs_from, part.table.columns | length,
        part.table.systems) }}
{% endif %}
{% for note in part.table.notes %}<p class="muted">{{ note }}</p>{% endfor %}

<h3>Said (columns) by true (rows)</h3>
<div class="grids">
{% for grid in part.grids %}
<table><caption>{{ grid.caption }}</caption>
<thead><tr><th></th>
{% for column in grid.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, cells in grid.rows %}
<tr><th scope="row">{{ name }}</th>
{% for count, share in cells %}
<td style="background: rgb(var(--shade) / {{ '%.2f' | format(share * 0.5) }})">
{{ '{:,}'.format(count) }}<small>{{ '%.1f' | format(share * 100) }} %</small></td>
{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endfor %}
</div>
{% endfor %}

<h2>Loss</h2>
{% if chart %}
{{ chart }}
{% else %}
<p class="muted">The run's history.jsonl holds no losses.</p>
{% endif %}

{% for part in parts %}
{% for changes in part.changes %}
<h2>{{ changes.caption }}: {{ '{:,}'.format(changes.total) }}</h2>
{% if changes.sample %}
<div class="wide"><table class="text">
<caption>{{ part.table.title }}: {{ changes.sample | length }} of them, drawn at random</caption>
<thead><tr>
{% for column in changes.columns %}<th scope="col">{{ column }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in changes.sample %}
<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% endfor %}
{% endfor %}

<h2>Configuration</h2>
<dl>{% for key, value in facts %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% if recipe %}<details><summary>recipe.yaml</summary><pre>{{ recipe }}</pre></details>{% endif %}
<h2>Versions</h2>
<dl>{% for key, value in versions.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</body>
</html>
"""
