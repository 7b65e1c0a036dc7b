"use strict";
// Text from the model and from the user is only ever set as text, never as HTML.

const find = (id) => document.getElementById(id);
let run = null;
let asked = null;

function made(name, text, given) {
  const element = Object.assign(document.createElement(name), given || {});
  if (text !== undefined) element.textContent = text;
  return element;
}

async function send(path, body) {
  const reply = await fetch(path, body && {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error || "the server gave no answer");
  return found;
}

function shownPrediction(said) {
  if (Array.isArray(said)) return said.length ? said.join(", ") : "no label";
  if (typeof said === "number") return said.toPrecision(4);
  return said === "" ? (run.side === "answers" ? "no answer" : "nothing") : said;
}

function show(place, reply) {
  place.replaceChildren(made("p", shownPrediction(reply.prediction), { className: "said" }));
  const chances = Object.entries(reply.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 8);
  if (reply.no_answer_probability !== null) chances.push(["no answer", reply.no_answer_probability]);
  for (const [name, chance] of chances) {
    const row = made("div", undefined, { className: "chance" });
    const meter = made("meter", undefined, { min: 0, max: 1, value: chance });
    meter.setAttribute("aria-label", name);
    row.append(made("span", name), meter, made("span", (100 * chance).toFixed(1) + " %", { className: "number" }));
    place.append(row);
  }
}

function showPassage(reply) {
  const text = run.side === "answers" && run.fields.length > 1 ? asked[run.fields[1]] : "";
  find("passage").hidden = !text;
  if (!text) return;
  // The server counts characters; JavaScript counts halves of some of them.
  const letters = Array.from(text);
  const said = Array.from(reply.prediction);
  let start = reply.start;
  if (start === null && said.length) {
    const found = text.indexOf(reply.prediction);
    start = found < 0 ? null : Array.from(text.slice(0, found)).length;
  }
  const end = start === null ? 0 : start + said.length;
  const at = start === null ? 0 : start;
  find("marked").replaceChildren(
    letters.slice(0, at).join(""), made("mark", letters.slice(at, end).join("")), letters.slice(end).join(""),
  );
}

function askRight() {
  const place = find("right");
  const label = made("label", run.side === "answers" ? "The right answer (empty: none)" : "The right answer");
  label.htmlFor = "truth";
  let field;
  if (run.labels.length) {
    field = made("select", undefined, { id: "truth", multiple: run.side === "label_sets" });
    for (const name of run.labels) field.append(made("option", name, { value: name }));
  } else {
    field = made("input", undefined, { id: "truth", type: run.side === "numbers" ? "number" : "text", step: "any" });
  }
  place.replaceChildren(label, field);
}

function right() {
  const field = find("truth");
  if (run.side === "label_sets") return Array.from(field.selectedOptions, (one) => one.value);
  return run.side === "numbers" ? Number(field.value) : field.value;
}

async function busy(form, state, work) {
  const button = form.querySelector("button");
  button.disabled = true;
  state.textContent = "...";
  try {
    state.textContent = await work();
  } catch (error) {
    state.textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  busy(event.target, find("state"), async () => {
    asked = Object.fromEntries(run.fields.map((name) => [name, find("field-" + name).value]));
    const started = performance.now();
    const { replies: [reply] } = await send("/api/predict", { inputs: [asked] });
    show(find("tuned"), reply.tuned);
    find("untouched").hidden = reply.base === null;
    if (reply.base !== null) show(find("base"), reply.base);
    showPassage(reply.tuned);
    find("answers").hidden = find("correct").hidden = false;
    find("kept").textContent = "";
    return ((performance.now() - started) / 1000).toFixed(1) + " s";
  });
});

find("correct").addEventListener("submit", (event) => {
  event.preventDefault();
  busy(event.target, find("kept"), async () => {
    await send("/api/feedback", { given: asked, right: right() });
    return "Kept.";
  });
});

send("/api/run").then((found) => {
  run = found;
  document.title = run.folder;
  find("name").textContent = run.folder;
  find("about").textContent = run.name + " on " + run.base;
  for (const name of run.fields) {
    const label = made("label", name, { htmlFor: "field-" + name });
    find("fields").append(label, made("textarea", undefined, { id: "field-" + name, required: true }));
  }
  askRight();
}).catch((error) => { find("state").textContent = error.message; });
