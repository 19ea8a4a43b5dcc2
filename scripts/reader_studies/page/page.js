"use strict";
// localStorage holds the answers under the study's id, one set per reader: {reader, readers: {name: {position, answers}}}. An
// answer is {rating: 1..5, guess: "real" | "synthetic", seconds}. Results leave the page only as a file that the reader saves.

const study = JSON.parse(document.getElementById("study").textContent);
const items = study.items;
const STORE = `reader_study/${study.study}`;
const COLUMNS = ["study", "reader", "item", "rating", "guess", "seconds"];
const element = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];

// No prototype, so that a reader may have any name, even "constructor".
const byName = (readers) => Object.assign(Object.create(null), readers);

let state = { reader: "", readers: byName({}) };
let shownSince = null; // ms, while an image is on the screen

// --- Storing answers

function load() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORE));
    if (stored) state = { reader: stored.reader, readers: byName(stored.readers) };
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    say("This browser keeps no answers for this page. Save them as a file before you close it.");
  }
}

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch { /* the message was shown when the page was opened */ }
}

function say(text) { element("message").textContent = text; }

const mine = () => state.readers[state.reader];
const answerTo = (item) => (mine().answers[item.id] ??= { rating: null, guess: null, seconds: 0 });
const isDone = (item) => Boolean(mine().answers[item.id]?.rating && mine().answers[item.id]?.guess);

// --- Time on the current image; the clock stops while the page is hidden

function countTime() {
  if (shownSince !== null) {
    answerTo(items[mine().position]).seconds += (performance.now() - shownSince) / 1000;
    shownSince = performance.now();
  }
}

document.addEventListener("visibilitychange", () => {
  if (element("reading").hidden) return;
  if (document.hidden) {
    countTime();
    shownSince = null;
    keep();
  } else {
    shownSince = performance.now();
  }
});

// --- Views

function show(view) {
  for (const id of ["welcome", "reading", "end"]) element(id).hidden = id !== view;
  for (const who of all(".who")) who.textContent = `Reader: ${state.reader}`;
  shownSince = null;
  if (view === "reading") showItem();
  if (view === "welcome") element("reader").focus();
}

function showItem() {
  const item = items[mine().position];
  const image = element("image");
  image.src = `data:image/png;base64,${item.image}`;
  image.alt = `Image ${mine().position + 1} of ${items.length}, ${item.direction} slice`;
  image.style.width = study.extent[item.direction].width;
  image.style.height = study.extent[item.direction].height;
  shownSince = document.hidden ? null : performance.now();
  showAnswers();
}

const mark = (button, chosen) => button.setAttribute("aria-pressed", chosen);

function showAnswers() {
  const answer = answerTo(items[mine().position]);
  for (const button of all("[data-rating]")) mark(button, Number(button.dataset.rating) === answer.rating);
  for (const button of all("[data-guess]")) mark(button, button.dataset.guess === answer.guess);
  const done = items.filter(isDone).length;
  element("count").textContent = `Image ${mine().position + 1} of ${items.length}, ${done} answered`;
  element("progress").max = items.length;
  element("progress").value = done;
  element("back").disabled = mine().position === 0;
  element("next").disabled = !isDone(items[mine().position]);
}

function answer(name, value) {
  countTime();
  answerTo(items[mine().position])[name] = value;
  say("");
  keep();
  showAnswers();
}

function go(step) {
  const position = mine().position;
  if (step > 0 ? !isDone(items[position]) : position === 0) return;
  countTime();
  if (position + step < items.length) {
    mine().position += step;
    keep();
    showItem();
    return;
  }
  const missing = items.findIndex((item) => !isDone(item)); // possible after the import of an unfinished file
  if (missing >= 0) mine().position = missing;
  keep();
  show(missing >= 0 ? "reading" : "end");
}

// --- Readers

function begin(name) {
  state.reader = name;
  state.readers[name] ??= { position: 0, answers: {} };
  keep();
  show(items.every(isDone) ? "end" : "reading");
}

element("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = element("reader").value.replace(/\s+/g, " ").trim();
  if (!name) return;
  say("");
  begin(name);
});

for (const button of all(".leave")) button.addEventListener("click", () => {
  if (!element("reading").hidden) countTime();
  state.reader = "";
  keep();
  element("reader").value = "";
  show("welcome");
});

// --- Files

function results() {
  const lines = [COLUMNS.join("\t")];
  for (const item of items) {
    const given = mine().answers[item.id];
    if (!given?.rating && !given?.guess) continue;
    const cells = [study.study, state.reader, item.id, given.rating ?? "n/a", given.guess ?? "n/a", given.seconds.toFixed(1)];
    lines.push(cells.join("\t"));
  }
  return lines.join("\n") + "\n";
}

for (const button of all(".save")) button.addEventListener("click", () => {
  if (!element("reading").hidden) countTime();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([results()], { type: "text/tab-separated-values" }));
  link.download = `reader_study_${study.study}_${state.reader.replace(/[^\p{L}\p{N}]+/gu, "-")}.tsv`;
  link.click();
  URL.revokeObjectURL(link.href);
});

function parse(text) {
  const [header, ...lines] = text.replace(/^\uFEFF/, "").split(/\r?\n/).filter((line) => line !== "");
  if (header !== COLUMNS.join("\t")) throw new Error("This is not a results file of a reader study.");
  const known = new Set(items.map((item) => item.id));
  const readers = new Set();
  const answers = {};
  for (const [number, line] of lines.entries()) {
    const [studyId, reader, item, rating, guess, seconds] = line.split("\t");
    const where = `Row ${number + 2}`;
    if (studyId !== study.study) throw new Error(`${where}: these are results of another study, ${studyId}.`);
    if (!known.has(item)) throw new Error(`${where}: there is no image ${item} in this study.`);
    if (!/^([1-5]|n\/a)$/.test(rating)) throw new Error(`${where}: the rating must be 1 to 5, not ${rating}.`);
    if (!/^(real|synthetic|n\/a)$/.test(guess)) throw new Error(`${where}: the guess must be real or synthetic, not ${guess}.`);
    readers.add(reader);
    answers[item] = { rating: Number(rating) || null, guess: guess === "n/a" ? null : guess, seconds: Number(seconds) || 0 };
  }
  if (readers.size !== 1 || readers.has("")) throw new Error("The file must hold the answers of one reader.");
  return { name: [...readers][0], answers };
}

element("import").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (!file) return;
  try {
    const { name, answers } = parse(await file.text());
    const before = state.readers[name] ?? { position: 0, answers: {} };
    state.readers[name] = { ...before, answers: { ...before.answers, ...answers } };
    state.reader = name;
    mine().position = Math.max(0, items.findIndex((item) => !isDone(item)));
    say("");
    begin(name);
  } catch (error) {
    say(error.message);
  }
  event.target.value = "";
});

// --- Mouse and keys

for (const button of all("[data-rating]")) button.addEventListener("click", () => answer("rating", Number(button.dataset.rating)));
for (const button of all("[data-guess]")) button.addEventListener("click", () => answer("guess", button.dataset.guess));
element("back").addEventListener("click", () => go(-1));
element("next").addEventListener("click", () => go(1));
element("again").addEventListener("click", () => { mine().position = 0; show("reading"); });

document.addEventListener("keydown", (event) => {
  if (element("reading").hidden || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (/^[1-5]$/.test(key)) answer("rating", Number(key));
  else if (key === "r") answer("guess", "real");
  else if (key === "s") answer("guess", "synthetic");
  else if (key === "arrowright") go(1);
  else if (key === "arrowleft") go(-1);
  else return;
  event.preventDefault();
});

for (const total of all(".total")) total.textContent = items.length;
load();
if (state.readers[state.reader]) begin(state.reader);
else show("welcome");
