// SPDX-License-Identifier: Apache-2.0
// A box is its index into the columns of data.js, which are sorted by quality, lowest first; a
// position is an index into `view`, the boxes that the filters leave, in the chosen order. Only
// tiles near the visible part of the grid are in the document. Names from files are only ever
// set as text.
"use strict";

const { labels, thumbs, categories, images, boxes } = window.REVIEW;
const FORMAT = "mal_mmdet review";
const VERSION = 1;
const DECISIONS = ["undecided", "accepted", "rejected", "flagged"];
const MARKS = ["", "✓", "✗", "⚑"];
const SIZES = ["small", "medium", "large"];
const BINS = 50; // of the histogram, as many as the sliders have steps
const OVERSCAN = 2; // rows of tiles above and below the visible ones
const TILE = { width: thumbs.size + 18, height: thumbs.size + 58 };
const STORE = `mal_mmdet review ${labels.sha256}`;

const byId = (id) => document.getElementById(id);
const grid = byId("grid");
const enlarged = byId("enlarged");
const count = boxes.id.length;
const decisions = new Uint8Array(count); // indices into DECISIONS
const tiles = new Map(); // position → its element
let view = new Uint32Array(0);
let current = 0; // a position
let columns = 1;

// ---- decisions: kept by the browser, exported, imported

function restore() {
  try {
    const kept = localStorage.getItem(STORE);
    if (kept?.length === count) decisions.set(kept);
  } catch {
    // It keeps nothing, which it will say after the first decision.
  }
}

function keep() {
  try {
    localStorage.setItem(STORE, new TextDecoder().decode(decisions.map((code) => code + 48)));
  } catch {
    say("This browser does not keep decisions: export them before you leave.");
  }
}

function exported() {
  const file = { format: FORMAT, version: VERSION, labels };
  for (const code of [1, 2, 3]) {
    file[DECISIONS[code]] = boxes.id.filter((_, box) => decisions[box] === code);
  }
  return file;
}

function download() {
  const blob = new Blob([JSON.stringify(exported(), null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${labels.name.replace(/\.json$/, "")}.decisions.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** Takes over the decisions of a file, or none of them, and says what is wrong with it. */
function importDecisions(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    return say("Not imported: the file is not JSON.");
  }
  if (file?.format !== FORMAT || file.version !== VERSION) {
    return say("Not imported: these are no decisions of such a page.");
  }
  if (file.labels?.sha256 !== labels.sha256) {
    return say(`Not imported: the decisions are about another file, ${file.labels?.name}.`);
  }
  const found = new Map(boxes.id.map((id, box) => [id, box]));
  const imported = decisions.slice();
  for (const code of [1, 2, 3]) {
    const ids = file[DECISIONS[code]];
    if (!Array.isArray(ids)) return say(`Not imported: the list "${DECISIONS[code]}" is missing.`);
    for (const id of ids) {
      if (!found.has(id)) return say(`Not imported: there is no box with the id ${id}.`);
      imported[found.get(id)] = code;
    }
  }
  decisions.set(imported);
  filter();
  keep();
}

function decide(code) {
  if (!view.length) return;
  decisions[view[current]] = code;
  summarise();
  keep();
  move(code ? 1 : 0);
}

// ---- filters and order

const ascending = (column) => (a, b) => (column[a] ?? 2) - (column[b] ?? 2) || a - b;
const ORDERS = {
  "quality, worst first": (a, b) => a - b,
  "quality, best first": (a, b) => (boxes.quality[b] ?? -1) - (boxes.quality[a] ?? -1) || a - b,
  "order of the file": ascending(boxes.place),
};
if (boxes.iou) ORDERS["IoU, lowest first"] = ascending(boxes.iou);
// `ascending` puts what has no value behind everything, and no place in the file lacks one.

function filter() {
  const chosen = ["category", "size", "decision"].map((id) => byId(id).value);
  const columnsOf = [boxes.category, boxes.size, decisions];
  const low = Number(byId("low").value);
  const high = Number(byId("high").value);
  const everyQuality = low === 0 && high === 1; // then also boxes without one
  const bins = new Uint32Array(BINS);
  let found = 0;
  const boxesFound = new Uint32Array(count);
  for (let box = 0; box < count; box++) {
    if (chosen.some((value, i) => value && Number(value) !== columnsOf[i][box])) continue;
    const quality = boxes.quality[box];
    if (quality !== null) bins[binOf(quality)]++;
    if (everyQuality || (quality !== null && quality >= low && quality <= high)) {
      boxesFound[found++] = box;
    }
  }
  view = boxesFound.subarray(0, found).sort(ORDERS[byId("sort").value]);
  byId("low-value").value = low.toFixed(2);
  byId("high-value").value = high.toFixed(2);
  drawHistogram(bins, low, high);
  current = 0;
  grid.scrollTop = 0;
  layout();
  summarise();
}

const binOf = (quality) => Math.min(Math.floor(quality * BINS + 1e-9), BINS - 1);

function drawHistogram(bins, low, high) {
  const highest = Math.max(...bins, 1);
  bins.forEach((number, bin) => {
    const bar = byId("histogram").children[bin];
    bar.style.height = `${(100 * number) / highest}%`;
    const middle = (bin + 0.5) / BINS;
    bar.classList.toggle("in", middle > low && middle < high);
    bar.title = `${(bin / BINS).toFixed(2)} – ${((bin + 1) / BINS).toFixed(2)}: ${number}`;
  });
  const total = bins.reduce((a, b) => a + b, 0);
  const under = bins.slice(0, BINS / 2).reduce((a, b) => a + b, 0);
  const text = `Histogram of quality: ${total} boxes, ${under} of them below 0.5`;
  byId("histogram").setAttribute("aria-label", text);
}

function summarise() {
  const numbers = [0, 0, 0, 0];
  for (const code of decisions) numbers[code]++;
  const parts = [1, 2, 3].map((code) => `${format(numbers[code])} ${DECISIONS[code]}`);
  say(`${format(view.length)} of ${format(count)} boxes · ${parts.join(" · ")}`);
}

const format = (number) => number.toLocaleString("en");
const say = (text) => (byId("status").value = text);
const figure = (value) => (value === null ? "–" : value.toFixed(2));

// ---- the grid

function layout() {
  columns = Math.max(1, Math.floor(grid.clientWidth / TILE.width));
  byId("sheet").style.height = `${Math.ceil(view.length / columns) * TILE.height}px`;
  for (const tile of tiles.values()) tile.remove();
  tiles.clear();
  render();
}

function render() {
  const row = (pixels) => Math.floor(pixels / TILE.height);
  const first = Math.max(0, row(grid.scrollTop) - OVERSCAN) * columns;
  const end = (row(grid.scrollTop + grid.clientHeight) + 1 + OVERSCAN) * columns;
  const last = Math.min(view.length, end);
  for (const [position, tile] of tiles) {
    if (position >= first && position < last) continue;
    tile.remove();
    tiles.delete(position);
  }
  for (let position = first; position < last; position++) {
    if (!tiles.has(position)) addTile(position);
  }
}

function addTile(position) {
  const box = view[position];
  const tile = element("div", "tile");
  tile.id = `tile-${position}`;
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-setsize", view.length);
  tile.setAttribute("aria-posinset", position + 1);
  tile.style.left = `${(100 * (position % columns)) / columns}%`;
  tile.style.top = `${Math.floor(position / columns) * TILE.height}px`;
  tile.style.width = `${TILE.width - 4}px`;
  const name = element("div");
  name.append(element("span", "name", categories[boxes.category[box]]), element("span", "mark"));
  const figures = element("div", "figures");
  figures.append(element("span", "", `quality ${figure(boxes.quality[box])}`));
  if (boxes.iou) figures.append(element("span", "", `IoU ${figure(boxes.iou[box])}`));
  tile.append(thumbnail(box), name, figures);
  tile.addEventListener("click", () => moveTo(position));
  tile.addEventListener("dblclick", enlarge);
  tiles.set(position, tile);
  byId("sheet").append(tile);
  refresh(position);
}

/** Brings a tile up to its decision and to whether it is the current one. */
function refresh(position) {
  const tile = tiles.get(position);
  if (!tile) return;
  const box = view[position];
  const decision = DECISIONS[decisions[box]];
  const isCurrent = position === current;
  tile.className = `tile ${decision}${isCurrent ? " current" : ""}`;
  tile.querySelector(".mark").textContent = MARKS[decisions[box]];
  tile.setAttribute("aria-selected", isCurrent);
  const name = categories[boxes.category[box]];
  const iou = boxes.iou ? `, IoU ${figure(boxes.iou[box])}` : "";
  const label = `${name}, quality ${figure(boxes.quality[box])}${iou}, ${decision}`;
  tile.setAttribute("aria-label", label);
  if (isCurrent) grid.setAttribute("aria-activedescendant", tile.id);
}

/** The part of a sprite sheet that shows a box; its size is the style's --side. */
function thumbnail(box) {
  const place = box % (thumbs.grid * thumbs.grid);
  const sheet = String(Math.floor(box / (thumbs.grid * thumbs.grid))).padStart(5, "0");
  const percent = (index) => `${(100 * index) / (thumbs.grid - 1)}%`;
  const thumb = element("div", "thumb");
  thumb.style.backgroundImage = `url(sprites/${sheet}.jpg)`;
  thumb.style.backgroundSize = `${100 * thumbs.grid}%`;
  const column = place % thumbs.grid;
  const row = Math.floor(place / thumbs.grid);
  thumb.style.backgroundPosition = `${percent(column)} ${percent(row)}`;
  return thumb;
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// ---- moving about

const move = (steps) => moveTo(current + steps);

function moveTo(position) {
  if (!view.length) return;
  const before = current;
  current = Math.min(Math.max(position, 0), view.length - 1);
  const top = Math.floor(current / columns) * TILE.height;
  const bottom = top + TILE.height - grid.clientHeight;
  if (grid.scrollTop > top) grid.scrollTop = top;
  if (grid.scrollTop < bottom) grid.scrollTop = bottom;
  render();
  refresh(before);
  refresh(current);
  if (enlarged.open) showDetails();
}

function enlarge() {
  if (enlarged.open) return enlarged.close();
  if (!view.length) return;
  showDetails();
  enlarged.showModal();
  enlarged.focus(); // not the first button, which space would press
}

function showDetails() {
  const box = view[current];
  const rows = {
    category: categories[boxes.category[box]],
    quality: figure(boxes.quality[box]),
    ...(boxes.iou && { IoU: figure(boxes.iou[box]) }),
    "size of box": SIZES[boxes.size[box]],
    decision: `${MARKS[decisions[box]]} ${DECISIONS[decisions[box]]}`,
    annotation: String(boxes.id[box]),
    image: images[boxes.image[box]],
    shown: `${format(current + 1)} of ${format(view.length)}`,
  };
  byId("picture").replaceChildren(thumbnail(box));
  byId("details").replaceChildren(
    ...Object.entries(rows).flatMap(([name, text]) => [
      element("dt", "", name),
      element("dd", "", text),
    ]),
  );
}

const page = () => Math.max(1, Math.floor(grid.clientHeight / TILE.height)) * columns;
const DECIDE = { a: () => decide(1), r: () => decide(2), f: () => decide(3), u: () => decide(0) };
const ACTIONS = {
  ...DECIDE,
  arrowleft: () => move(-1),
  arrowright: () => move(1),
  arrowup: () => current >= columns && move(-columns),
  arrowdown: () => move(columns),
  pageup: () => move(-page()),
  pagedown: () => move(page()),
  home: () => moveTo(0),
  end: () => moveTo(view.length - 1),
  " ": enlarge,
  enter: enlarge,
};

function onKey(event) {
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(ACTIONS, key)) return;
  if (event.target.matches("input, select")) return;
  if (event.target.matches("button") && (key === " " || key === "enter")) return;
  event.preventDefault();
  // A key that is held down moves on, but does not decide box after box.
  if (event.repeat && !key.startsWith("arrow") && !key.startsWith("page")) return;
  ACTIONS[key]();
}

// ---- start

/** Fills a list of choices, each with its number of boxes; the first one leaves all. */
function fillChoices(id, names, column) {
  const numbers = new Uint32Array(names.length);
  if (column) for (const value of column) numbers[value]++;
  byId(id).append(new Option("all", ""));
  names.forEach((name, value) => {
    if (!column) byId(id).append(new Option(name, value));
    else if (numbers[value]) {
      byId(id).append(new Option(`${name} (${format(numbers[value])})`, value));
    }
  });
}

function start() {
  byId("name").textContent = labels.name;
  document.title = `Review of ${labels.name}`;
  document.documentElement.style.setProperty("--side", `${thumbs.size}px`);
  for (const order of Object.keys(ORDERS)) byId("sort").append(new Option(order));
  fillChoices("category", categories, boxes.category);
  fillChoices("size", SIZES, boxes.size);
  fillChoices("decision", DECISIONS);
  for (let bin = 0; bin < BINS; bin++) byId("histogram").append(element("i"));
  byId("quality").hidden = boxes.quality.every((quality) => quality === null);
  byId("low").addEventListener("input", () => {
    byId("high").value = Math.max(byId("high").value, byId("low").value);
  });
  byId("high").addEventListener("input", () => {
    byId("low").value = Math.min(byId("high").value, byId("low").value);
  });
  byId("filters").addEventListener("input", filter);
  byId("filters").addEventListener("reset", () => setTimeout(filter));
  byId("export").addEventListener("click", download);
  byId("import").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) importDecisions(await file.text());
    event.target.value = ""; // so that the same file can be chosen again
    grid.focus();
  });
  for (const button of byId("buttons").children) {
    button.addEventListener("click", () => ACTIONS[button.dataset.key]());
  }
  document.addEventListener("keydown", onKey);
  grid.addEventListener("scroll", render);
  new ResizeObserver(() => {
    layout();
    moveTo(current);
  }).observe(grid);
  restore();
  filter();
  grid.focus();
}

start();
