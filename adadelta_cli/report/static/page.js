"use strict";
// Tables, charts and the grid of the page. The numbers are in the element #data.
const DATA = JSON.parse(document.getElementById("data").textContent);
const FIRST_ROWS = 50; // of a table, before "show more"
const MORE_ROWS = 500;
const FIRST_CURVES = 6;

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null)); // texts stay texts
  return made;
}

// --- cells ---------------------------------------------------------------------------------------

const LEVELS = {
  passed: "good", FASTER: "good", SAME: "good", finished: "good", true: "good",
  FAILED: "bad", "no result": "bad", missed: "bad", diverged: "bad", SLOWER: "bad", false: "bad",
  UNCLEAR: "doubtful", interrupted: "doubtful",
};
const UNITS = [[1, "s"], [1e-3, "ms"], [1e-6, "us"], [0, "ns"]];

function number(value) {
  if (typeof value !== "number") return value === null ? "" : String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e6) return String(Number(value.toPrecision(4)));
  return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
}

function seconds(value) {
  if (typeof value !== "number") return "";
  const [scale, unit] = UNITS.find(([least]) => value >= least) ?? UNITS[3];
  return `${Number((value / (scale || 1e-9)).toPrecision(3))} ${unit}`;
}

function copyButton(text) {
  return make("button", { type: "button", className: "copy", onclick: copied, ariaLabel: `copy: ${text}` }, "copy");
  function copied(event) { copy(text, event.target); }
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from disk may not use the clipboard: the old way works there
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "copied";
}

function shown(value, kind) {
  if (value === null || value === "") return "";
  if (kind === "number" || kind === "setting") return number(value);
  if (kind === "seconds") return seconds(value);
  if (kind === "verdict") return make("span", { className: LEVELS[value] ?? "" }, String(value));
  if (kind === "command") return make("span", {}, copyButton(value), " ", make("code", {}, value));
  return String(value);
}

// --- tables --------------------------------------------------------------------------------------

class Table {
  constructor(place, { columns, rows }) {
    this.columns = columns;
    this.rows = rows;
    this.words = rows.map((row) => row.join(" ").toLowerCase());
    this.wanted = new Map(); // column number to the value that is wanted there
    this.order = null;
    this.most = FIRST_ROWS;
    this.select = "select" in place.dataset ? new Set() : null;
    this.build(place, place.dataset.caption);
    this.update();
  }

  build(place, caption) {
    this.search = make("input", { type: "search", oninput: () => this.filtered() });
    this.count = make("span", { role: "status" });
    this.body = make("tbody");
    this.more = make("button", { type: "button", onclick: () => { this.most += MORE_ROWS; this.update(); } });
    this.heads = this.columns.map((column, k) => this.head(column, k));
    const mark = this.select ? make("th", { scope: "col" }, make("span", {}, "curve")) : null;
    const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: caption },
      make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, mark, ...this.heads)), this.body));
    const many = this.rows.length > 5;
    const tools = make("div", { className: "tools" }, make("label", {}, "filter ", this.search), ...this.facets(), this.count);
    tools.hidden = !many;
    if (!many) tools.style.display = "none";
    place.append(make("h3", {}, caption), tools, scroll, this.more);
  }

  head(column, k) {
    const button = make("button", { type: "button", onclick: () => this.sort(k) }, column.name);
    return make("th", { scope: "col", className: this.look(column), ariaSort: "none" }, button);
  }

  look(column) {
    if (column.kind === "setting" || column.kind === "verdict") return column.kind;
    return this.isNumber(column) ? "number" : "";
  }

  isNumber(column) {
    return column.kind === "number" || column.kind === "seconds";
  }

  facets() {
    return this.columns.flatMap((column, k) => {
      const values = [...new Set(this.rows.map((row) => row[k]))];
      if (!column.facet || values.length < 2 || values.length > 40) return [];
      const every = make("option", { value: "" }, "all");
      const options = values.map((value, i) => make("option", { value: String(i + 1) }, number(value) || "(none)"));
      const choice = make("select", {}, every, ...options);
      choice.onchange = () => {
        if (choice.value) this.wanted.set(k, values[Number(choice.value) - 1]);
        else this.wanted.delete(k);
        this.filtered();
      };
      return [make("label", {}, `${column.name} `, choice)];
    });
  }

  filtered() {
    this.most = FIRST_ROWS;
    this.update();
  }

  sort(k) {
    const down = this.order?.k === k && this.order.sign === 1;
    this.order = { k, sign: down ? -1 : 1 };
    this.heads.forEach((head, i) => { head.ariaSort = i === k ? (down ? "descending" : "ascending") : "none"; });
    this.update();
  }

  get listed() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = [...this.wanted];
    const found = [...this.rows.keys()].filter((row) =>
      words.every((word) => this.words[row].includes(word)) && wanted.every(([k, value]) => this.rows[row][k] === value));
    if (this.order) found.sort((a, b) => this.compare(a, b));
    return found;
  }

  compare(a, b) {
    const { k, sign } = this.order;
    const [x, y] = [this.rows[a][k], this.rows[b][k]];
    const empty = (value) => value === null || value === "";
    if (empty(x) || empty(y)) return empty(x) - empty(y); // empty cells are last, both ways
    if (typeof x === "number" && typeof y === "number") return sign * (x - y);
    return sign * String(x).localeCompare(String(y), "en", { numeric: true });
  }

  update() {
    const listed = this.listed;
    this.body.replaceChildren(...listed.slice(0, this.most).map((row) => this.line(row)));
    const left = listed.length - this.most;
    this.more.hidden = left <= 0;
    this.more.textContent = `show ${Math.min(left, MORE_ROWS)} more of ${left.toLocaleString("en")}`;
    this.count.textContent = `${listed.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} rows`;
  }

  line(row) {
    const cells = this.rows[row].map((value, k) => {
      const { kind } = this.columns[k];
      const long = typeof value === "string" && value.length > 40 && kind !== "command" ? "long" : "";
      return make("td", { className: this.look(this.columns[k]) || long }, shown(value, kind));
    });
    return make("tr", {}, this.select ? make("td", {}, this.box(row)) : null, ...cells);
  }

  box(row) {
    const box = make("input", { type: "checkbox", checked: this.select.has(row), ariaLabel: `curve of ${this.rows[row][0]}` });
    box.onchange = () => {
      if (box.checked) this.select.add(row);
      else this.select.delete(row);
      this.onselect();
    };
    return box;
  }
}

// --- charts --------------------------------------------------------------------------------------

const DARK = matchMedia("(prefers-color-scheme: dark)");
const DRAWN = new Map(); // element to its layout
let printing = false;

function theme() {
  const dark = DARK.matches && !printing;
  const [text, grid] = dark ? ["#e6e9ed", "#3a414b"] : ["#1a1d21", "#d5d9df"];
  const axis = { exponentformat: "power", gridcolor: grid, zerolinecolor: grid, linecolor: grid };
  const hover = dark ? "#1d2127" : "#fff";
  return { text, axis, hover };
}

function themed(layout) {
  const { text, axis, hover } = theme();
  return {
    height: 380, margin: { l: 60, r: 15, t: 30, b: 45 }, ...layout,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, size: 12 }, hoverlabel: { bgcolor: hover, font: { color: text } },
    legend: { orientation: "h", y: -0.2 }, hovermode: "closest",
    xaxis: { automargin: true, ...layout.xaxis, ...axis }, yaxis: { automargin: true, ...layout.yaxis, ...axis },
  };
}

function draw(place, data, layout) {
  DRAWN.set(place, layout);
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  Plotly.react(place, data, themed(layout), config).then(() => { // caption and table say the same
    place.querySelectorAll("svg.main-svg").forEach((picture) => { picture.ariaHidden = "true"; });
  });
}

function redraw() {
  for (const [place, layout] of DRAWN) Plotly.relayout(place, themed(layout));
}

function drawOnceVisible(figure) {
  const { data, layout } = DATA.charts[figure.dataset.chart];
  const place = figure.querySelector(".plot");
  place.style.minHeight = `${layout.height ?? 380}px`;
  const watch = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      watch.disconnect();
      draw(place, data, layout);
    }
  }, { rootMargin: "400px" });
  watch.observe(figure);
  addEventListener("beforeprint", () => { if (!DRAWN.has(place) && figure.offsetParent) draw(place, data, layout); });
}

// --- curves of the runs --------------------------------------------------------------------------

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

function showCurves(table) {
  const figure = document.getElementById("curves");
  const place = figure.querySelector(".plot");
  const metric = document.getElementById("curves-metric");
  const log = document.getElementById("curves-log");
  const names = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.series)))].filter((name) => name !== "epoch");
  metric.append(...names.map((name) => make("option", { value: name }, name)));

  const chosen = () => [...table.select].sort((a, b) => a - b);
  const update = () => {
    const having = chosen().filter((k) => DATA.runs[k].series[metric.value]);
    const data = having.map((k, i) => ({
      name: DATA.runs[k].label, x: DATA.runs[k].steps, y: DATA.runs[k].series[metric.value], mode: "lines",
      line: { color: COLOURS[i % 6], dash: DASHES[Math.floor(i / 6) % 5], width: 2 },
    }));
    const layout = {
      height: 430, showlegend: having.length <= 30,
      xaxis: { title: { text: "step" } },
      yaxis: { type: log.checked ? "log" : "linear", title: { text: metric.value } },
    };
    draw(place, data, layout);
    document.getElementById("curves-status").textContent =
      `${having.length} of ${DATA.runs.length} runs drawn` + (having.length < chosen().length ? `; ${chosen().length - having.length} chosen without ${metric.value}` : "");
  };
  const choose = (rows) => { table.select = new Set(rows); table.update(); update(); };
  table.onselect = update;
  metric.onchange = log.onchange = update;
  document.getElementById("curves-all").onclick = () => choose(table.listed);
  document.getElementById("curves-none").onclick = () => choose([]);
  choose(table.listed.slice(0, FIRST_CURVES));
}

// --- the grid of verify --------------------------------------------------------------------------

function showGrid(grid) {
  const { columns, rows } = DATA.tables[grid.dataset.rows];
  const detail = document.getElementById(grid.dataset.detail);
  const column = Object.fromEntries(columns.map(({ name }, k) => [name, k]));
  const first = grid.querySelector("button.failed") ?? grid.querySelector("button");

  function choose(button) {
    grid.querySelectorAll("button[aria-pressed=true], button[tabindex='0']").forEach((each) => {
      each.tabIndex = -1;
      each.removeAttribute("aria-pressed");
    });
    button.tabIndex = 0;
    button.ariaPressed = "true";
    const cell = (name) => rows[Number(button.dataset.row)][column[name]];
    const error = cell("largest ULP") === null ? "no error measured" : `largest error ${number(cell("largest ULP"))} ULP (bound: ${number(cell("bound")) || "none"})`;
    const differ = cell("differ") === null ? "" : `, ${number(cell("differ"))} of ${number(cell("numbers"))} numbers differ in a bit`;
    detail.replaceChildren(
      make("p", {}, make("strong", {}, cell("case")), `: ${cell("check")} of ${cell("implementation")}, ${cell("dtype")}${cell("tensor") ? `, worst in ${cell("tensor")}` : ""}: `, shown(cell("verdict"), "verdict")),
      make("p", {}, error + differ), make("p", {}, cell("note") ?? ""),
      make("p", {}, shown(cell("repeat it"), "command")),
    );
  }

  if (first) choose(first); // the grid is one stop of the Tab key; arrows move inside
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  grid.addEventListener("click", (event) => {
    if (event.target.dataset.row) choose(event.target);
  });
  grid.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || !event.target.dataset.row) return;
    event.preventDefault();
    let [y, x] = [event.target.closest("tr").rowIndex, event.target.parentElement.cellIndex];
    for (;;) { // over places without a square
      [y, x] = [y + move[0], x + move[1]];
      const cell = grid.rows[y]?.cells[x];
      if (!cell) return;
      const button = cell.querySelector("button");
      if (button) {
        choose(button);
        button.focus();
        return;
      }
    }
  });
}

// --- all of it -----------------------------------------------------------------------------------

for (const place of document.querySelectorAll("[data-table]")) {
  const table = new Table(place, DATA.tables[place.dataset.table]);
  if (table.select) showCurves(table);
}
document.querySelectorAll("[data-chart]").forEach(drawOnceVisible);
document.querySelectorAll(".grid").forEach(showGrid);
document.querySelectorAll("[data-copy]").forEach((button) => { button.onclick = () => copy(button.dataset.copy, button); });
document.querySelectorAll("select.groups").forEach((choice) => {
  choice.onchange = () => {
    for (const option of choice.options) document.getElementById(option.value).hidden = !option.selected;
  };
});
DARK.addEventListener("change", redraw);
addEventListener("beforeprint", () => { printing = true; redraw(); });
addEventListener("afterprint", () => { printing = false; redraw(); });
document.documentElement.dataset.ready = "";
