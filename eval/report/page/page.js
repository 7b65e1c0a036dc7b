"use strict";
// Lists, filters, searches and sorts the examples that the page holds. Texts become text nodes, never markup.
(() => {
  const TEXT = "\ue000", PASSAGE = "\ue001";
  const KINDS = {
    "": "all", mended: "mended", broken: "broken", wrong: "both wrong", right: "both right",
  };
  const NUMBER_KINDS = { "": "all", mended: "closer", broken: "further away", right: "equally close" };
  const parts = JSON.parse(document.getElementById("data").textContent);
  document.getElementById("browser").replaceChildren(document.getElementById("controls").content.cloneNode(true));
  const at = (id) => document.getElementById(id);
  let part, haystacks, passages, kinds, found = [], page = 0;

  const said = (name) => part.said[Number(at(name).value)];
  const words = (value) => typeof value === "number" ? String(Number(value.toPrecision(4)))
    : Array.isArray(value) ? [...new Set(value)].join(" | ") : value;
  const empty = () => part.side === "answers" ? "(no answer)" : "(no label)";
  const plural = (number) => number.toLocaleString("en");

  function make(tag, name, ...inner) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...inner);
    return element;
  }

  function fill(id, options, value) {
    at(id).replaceChildren(...options.map(([key, text]) => {
      const option = make("option", "", text);
      option.value = key;
      return option;
    }));
    at(id).value = value;
  }

  function choosePart() {
    part = parts[Number(at("part").value)];
    const known = part.systems.map((system, number) => [String(number), system.name]).filter(([number]) => part.said[number]);
    fill("before", known, String(part.before));
    fill("after", known, String(part.said[part.after] ? part.after : part.before));
    const labels = [["", "any"], ...part.labels.map((label) => [label, label])];
    fill("gold", labels, "");
    fill("said", labels, "");
    const isAnswers = part.side === "answers";
    at("silent").parentElement.hidden = !isAnswers;
    at("gold").parentElement.hidden = at("said").parentElement.hidden = part.labels.length === 0;
    at("legend").hidden = part.passages.length === 0;
    passages = part.passages.map((passage) => passage.toLowerCase());
    haystacks = part.rows.id.map((id, row) => [
      id, part.rows.text[row], words(part.rows.gold[row]), ...part.said.map((one) => one ? words(one.prediction[row]) : ""),
    ].join("\n").toLowerCase());
    compare();
  }

  function compare() {
    const old = said("before"), now = said("after"), counts = {};
    kinds = part.rows.id.map((_, row) => {
      const before = old.right[row], after = now.right[row];
      const kind = after > before ? "mended" : after < before ? "broken" : after === 1 || part.side === "numbers" ? "right" : "wrong";
      counts[kind] = (counts[kind] || 0) + 1;
      return kind;
    });
    const names = Object.entries(part.side === "numbers" ? NUMBER_KINDS : KINDS);
    const value = at("kind").value;
    fill("kind", names.map(([key, name]) => [key, `${name} (${plural(key ? counts[key] || 0 : kinds.length)})`]), value);
    if (at("kind").value !== value) at("kind").value = "";
    ["before", "after"].forEach((id, number) => {
      at("legend").children[number + 1].textContent = part.systems[Number(at(id).value)].name;
    });
    select();
  }

  const has = (value, label) => Array.isArray(value) ? value.includes(label) : value === label;

  function select() {
    const now = said("after"), rows = part.rows;
    const kind = at("kind").value, gold = at("gold").value, given = at("said").value, silent = at("silent").value;
    const wanted = at("query").value.toLowerCase().split(/\s+/).filter(Boolean);
    const inPassage = wanted.map((word) => passages.map((passage) => passage.includes(word)));
    const isSilent = {
      gold: (row) => rows.gold[row].length === 0 || rows.gold[row].every((text) => !text),
      said: (row) => now.prediction[row] === "", hollow: (row) => now.hollow[row] === 1,
    }[part.side === "answers" ? silent : ""];
    found = [];
    for (let row = 0; row < kinds.length; row++) {
      if (kind && kinds[row] !== kind) continue;
      if (gold && !has(rows.gold[row], gold)) continue;
      if (given && !has(now.prediction[row], given)) continue;
      if (isSilent && !isSilent(row)) continue;
      if (wanted.every((word, number) => haystacks[row].includes(word) || inPassage[number][rows.passage[row]])) found.push(row);
    }
    sort(now);
    page = 0;
    show();
  }

  function sort(now) {
    const key = { unsure: now.sure, sure: now.sure.map((one) => one === null ? null : -one), worst: now.score }[at("sort").value];
    if (!key) return;
    const last = (value) => value === null ? Infinity : value;
    found.sort((one, other) => last(key[one]) - last(key[other]) || one - other);
  }

  function show() {
    const size = Number(at("size").value), pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.min(Math.max(0, page), pages - 1);
    const sample = kinds.length < part.examples
      ? `, of a sample of ${plural(kinds.length)} drawn at random from ${plural(part.examples)}: all of them would make this page too large` : "";
    at("count").textContent = `${plural(found.length)} of ${plural(kinds.length)} examples${sample}`;
    at("page").textContent = `page ${plural(page + 1)} of ${plural(pages)}`;
    at("previous").disabled = page === 0;
    at("next").disabled = page === pages - 1;
    at("list").replaceChildren(...found.slice(page * size, (page + 1) * size).map(item));
  }

  function item(row) {
    const kind = kinds[row], names = part.side === "numbers" ? NUMBER_KINDS : KINDS, rows = part.rows;
    const element = make("li", "", make("div", "head", make("span", `badge is-${kind}`, names[kind]), make("span", "", rows.id[row])));
    if (rows.text[row]) element.append(make("p", "asked", ...hits(rows.text[row])));
    const answers = make("dl", "", make("dt", "", part.side === "answers" ? "right answer" : "true"), make("dd", "", words(rows.gold[row]) || empty()));
    const shown = new Set([at("before").value, at("after").value].map(Number));
    shown.forEach((number) => answers.append(...line(number, row)));
    element.append(answers);
    if (rows.passage[row] >= 0) element.append(make("p", "passage", ...marked(row)));
    const others = part.said.map((_, number) => number).filter((number) => part.said[number] && !shown.has(number));
    if (others.length) element.append(folded("Every other system", () => [make("dl", "", ...others.flatMap((number) => line(number, row)))]));
    if ([...shown].some((number) => part.said[number].frame[row] >= 0 || part.said[number].raw[row] !== null)) {
      element.append(folded("Prompt, and what the model wrote", () => [...shown].flatMap((number) => exact(number, row))));
    }
    return element;
  }

  function line(number, row) {
    const one = part.said[number], score = one.score[row];
    const text = words(one.prediction[row]);
    const dd = make("dd", "", text === "" ? empty() : text, " ");
    if (one.hollow[row]) dd.append(make("span", "note", "(punctuation only: counts as no answer) "));
    if (part.side === "numbers") dd.append(make("span", "note", `off by ${words(-score)} `));
    else dd.append(make("span", one.right[row] === 1 ? "yes" : "no", one.right[row] === 1 ? "right" : "wrong"), " ");
    if (part.side === "answers" && score > 0 && score < 1) dd.append(make("span", "note", `f1 ${(100 * score).toFixed(1)} `));
    if (one.sure[row] !== null) dd.append(make("span", "note", `confidence ${one.sure[row].toFixed(3)}`));
    return [make("dt", "", part.systems[number].name), dd];
  }

  function folded(title, fillIn) {
    const element = make("details", "", make("summary", "", title));
    element.addEventListener("toggle", () => { if (element.open && element.children.length === 1) element.append(...fillIn()); });
    return element;
  }

  function exact(number, row) {
    const one = part.said[number], frame = part.frames[one.frame[row]];
    const prompt = frame && frame.replaceAll(TEXT, () => part.rows.text[row]).replaceAll(PASSAGE, () => part.passages[part.rows.passage[row]]);
    const raw = one.raw[row] === null ? words(one.prediction[row]) : one.raw[row];
    const name = part.systems[number].name, label = (text) => make("p", "note", text);
    return [
      ...(prompt ? [label(`${name} read:`), make("pre", "", prompt)] : []),
      label(`${name} wrote:`), make("pre", "", raw === "" ? "(nothing)" : raw),
    ];
  }

  function hits(text) {
    const wanted = at("query").value.toLowerCase().split(/\s+/).filter(Boolean), lower = text.toLowerCase();
    if (!wanted.length || lower.length !== text.length) return [text];
    return cut(text, wanted.flatMap((word) => everywhere(lower, word).map((start) => [start, start + word.length, "hit"])));
  }

  function everywhere(text, word) {
    const starts = [];
    for (let start = text.indexOf(word); start >= 0; start = text.indexOf(word, start + word.length)) starts.push(start);
    return starts;
  }

  function marked(row) {
    const passage = part.passages[part.rows.passage[row]], spans = [];
    const place = (text, start, name) => {
      if (!text) return;
      const known = start !== null && start !== undefined && passage.startsWith(text, start) ? start : passage.indexOf(text);
      if (known >= 0) spans.push([known, known + text.length, name]);
    };
    part.rows.gold[row].forEach((text, number) => place(text, (part.rows.starts[row] || [])[number], "gold"));
    [["before", "old"], ["after", "new"]].forEach(([id, name]) => place(said(id).prediction[row], said(id).start[row], name));
    return cut(passage, spans);
  }

  // A text as nodes: each piece that spans cover is marked with their names.
  function cut(text, spans) {
    const ends = [...new Set([0, text.length, ...spans.flatMap(([start, end]) => [start, end])])].sort((one, other) => one - other);
    return ends.slice(1).map((end, number) => {
      const start = ends[number], names = new Set(spans.filter((span) => span[0] <= start && end <= span[1]).map((span) => span[2]));
      return names.size ? make("mark", [...names].join(" "), text.slice(start, end)) : text.slice(start, end);
    });
  }

  function turn(step) {
    page += step;
    show();
    at("count").scrollIntoView({ block: "nearest" });
  }

  fill("part", parts.map((one, number) => [String(number), one.title]), "0");
  at("part").parentElement.hidden = parts.length === 1;
  at("part").addEventListener("change", choosePart);
  ["before", "after"].forEach((id) => at(id).addEventListener("change", compare));
  ["kind", "silent", "gold", "said", "sort"].forEach((id) => at(id).addEventListener("change", select));
  at("size").addEventListener("change", show);
  at("query").addEventListener("input", select);
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, pre, .wide, .top")) return;
    if (event.key === "/") {
      event.preventDefault();
      at("query").focus();
    }
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });
  choosePart();
})();
