const data = JSON.parse(document.getElementById("data").textContent);
const strips = document.getElementById("strips").textContent.trim().split("\n");
const SMALL = 96;  // images up to this size are shown pixel by pixel
const points = data.columns.map(() => 0);  // the chosen point of each column: of a sweep there are several
const gallery = document.querySelector(".gallery"), dialog = document.querySelector("dialog");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Images: a row's strip is decoded while the row is near, and its tiles are drawn on canvases.
const decoded = new Map();
function strip(row) {
  if (!decoded.has(row)) {
    const image = new Image();
    image.src = `data:image/webp;base64,${strips[row]}`;
    decoded.set(row, image.decode().then(() => image));
  }
  return decoded.get(row);
}
async function paint(canvas, row, index) {
  const image = await strip(row), size = image.naturalHeight;
  canvas.width = canvas.height = size;
  canvas.classList.toggle("small", size <= SMALL);
  canvas.getContext("2d").drawImage(image, index * size, 0, size, size, 0, 0, size, size);
}
const indexOf = new Map(data.names.map((name, index) => [name, index]));
const nameAt = column => data.columns[column].names[points[column]];
const cellOf = (row, name) => data.rows[row].cells[indexOf.get(name)];

function shot(row, column) {
  const name = nameAt(column), cell = cellOf(row, name);
  if (!cell) return make("span", { className: "missing", textContent: "missing" });
  const own = cell.own === null ? "–" : cell.own.toFixed(2), canvas = make("canvas");
  const button = make("button", { type: "button", className: "shot", ariaLabel: `${name}, similarity ${own}` }, canvas);
  if (cell.own !== null) button.append(make("i", { className: "bar", style: `--s: ${Math.max(0, cell.own)}` }));
  button.append(make("span", {}, make("b", { textContent: own }), `CLIP ${cell.clip}`));
  Object.assign(button.dataset, { row, column, name });
  paint(canvas, row, indexOf.get(name) + 1);
  return button;
}

// Rows: each holds its caption from the start, its images only while it is near what is seen.
const lines = data.rows.map((row, index) => {
  const frame = row.training ? make("div", { className: "frame" }) : make("span", { className: "missing", textContent: "missing" });
  const about = make("div", {}, make("p", { title: row.prompt, textContent: row.prompt }), make("small", { textContent: `sample ${row.sample}` }));
  const line = make("tr", {}, make("th", { scope: "row" }, make("div", { className: "source" }, frame, about)));
  line.dataset.row = index;
  return line;
});
function fill(line, index) {
  if (line.cells.length > 1) return;
  const frame = line.querySelector(".frame");
  if (frame) paint(frame.appendChild(make("canvas")), index, 0);
  line.append(...data.columns.map((_, column) => make("td", {}, shot(index, column))));
}
function empty(line, index) {
  line.querySelector(".frame")?.replaceChildren();
  while (line.cells.length > 1) line.lastChild.remove();
  decoded.delete(index);
}
gallery.querySelector("tbody").append(...lines);
const observer = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) (isIntersecting ? fill : empty)(target, Number(target.dataset.row));
}, { root: gallery, rootMargin: "600px 0px" });
for (const line of lines) observer.observe(line);

document.querySelector("[type=search]").addEventListener("input", event => {
  const typed = event.target.value.trim(), wanted = typed.toLowerCase(), nothing = document.querySelector(".nothing");
  data.rows.forEach((row, index) => { lines[index].hidden = !row.prompt.toLowerCase().includes(wanted); });
  const left = lines.filter(line => !line.hidden).length;
  document.querySelector(".tools output").textContent = wanted ? `${left} of ${lines.length} rows` : `${lines.length} rows`;
  gallery.hidden = !left;
  nothing.hidden = Boolean(left);
  nothing.textContent = left ? "" : `no prompt holds '${typed}'`;
});

// A sweep is one column; its point is chosen in the column's head, for all rows, or in the dialog.
function choose(column, point) {
  const { option, values } = data.columns[column], head = gallery.querySelector(`[data-sweep="${column}"]`);
  points[column] = head.value = point;
  head.nextElementSibling.textContent = `${option} ${values[point]}`;
  for (const line of lines)
    if (line.cells.length > 1) line.cells[column + 1].replaceChildren(shot(Number(line.dataset.row), column));
}
for (const slider of gallery.querySelectorAll("[data-sweep]")) {
  const column = Number(slider.dataset.sweep);
  slider.addEventListener("input", () => choose(column, Number(slider.value)));
  choose(column, slider.max >> 1);
}

// The dialog
let shown;
function full(canvas, row, index, file) {
  const current = shown;
  paint(canvas, row, index).then(() => {
    if (!data.rows[row].scaled) return;
    const image = new Image();  // the file itself, if the page still lies beside it
    image.onload = () => {
      if (shown !== current) return;
      const size = canvas.width = canvas.height = Math.max(image.naturalWidth, image.naturalHeight);
      canvas.classList.toggle("small", size <= SMALL);
      canvas.getContext("2d").drawImage(image, (size - image.naturalWidth) / 2, (size - image.naturalHeight) / 2);
    };
    image.src = file;
  });
}
function show(row, column) {
  shown = { row, column };
  if (!dialog.open) dialog.showModal();
  const { prompt, training, file } = data.rows[row], { option, values, names, color } = data.columns[column];
  const name = nameAt(column), cell = cellOf(row, name), [left, right] = dialog.querySelectorAll("figure");
  dialog.querySelector("p").textContent = prompt;
  left.hidden = !training;
  if (training) full(left.querySelector("canvas"), row, 0, file);
  right.querySelector("figcaption").textContent = name;
  right.hidden = !cell;
  const sweep = dialog.querySelector(".sweep"), slider = sweep.querySelector("input");
  sweep.hidden = !option;
  if (option) {
    slider.max = names.length - 1;
    slider.value = points[column];
    slider.ariaLabel = option;
    sweep.querySelector("span").textContent = `similarity to own image, for each ${option}`;
    sweep.querySelector("output").textContent = `${option} ${values[points[column]]}`;
    drawPoints(sweep.querySelector("svg"), names.map(point => cellOf(row, point)), color, points[column]);
  }
  const facts = cell ? cell.facts.map((fact, i) => [data.facts[i], fact]).filter(fact => fact[1] !== "–") : [["image", "missing"]];
  dialog.querySelector("dl").replaceChildren(...facts.map(([label, fact]) =>
    make("div", {}, make("dt", { textContent: label }), make("dd", { textContent: fact }))));
  const chart = dialog.querySelector(".trace"), link = dialog.querySelector("nav a");
  chart.toggleAttribute("hidden", !cell?.trace);
  link.hidden = !cell;
  if (!cell) return;
  const canvas = right.querySelector("canvas");
  canvas.ariaLabel = name;
  full(canvas, row, indexOf.get(name) + 1, cell.file);
  link.href = cell.file;
  const none = name !== "none" && indexOf.has("none") && cellOf(row, "none");
  if (cell.trace) drawTrace(chart, cell, color, name, none?.trace ? none : null);
}

function go(key) {
  if (key === "close") return dialog.close();
  const { row, column } = shown, there = (row, column) => cellOf(row, nameAt(column));
  const columns = data.columns.map((_, index) => index).filter(index => there(row, index) || index === column);
  const rows = data.rows.map((_, index) => index)
    .filter(index => index === row || (!lines[index].hidden && data.columns.some((_, other) => there(index, other))));
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[key];
  if (!step) return false;
  const across = key === "ArrowLeft" || key === "ArrowRight", list = across ? columns : rows;
  const next = list[list.indexOf(across ? column : row) + step];
  if (next === undefined) return false;
  if (across) show(row, next);
  else show(next, there(next, column) ? column : data.columns.findIndex((_, other) => there(next, other)));
  return true;
}
gallery.addEventListener("click", event => {
  const line = event.target.closest("tbody tr"), button = event.target.closest(".shot");
  const wanted = button ?? (event.target.matches(".frame canvas") && line.querySelector(".shot"));
  if (wanted) show(Number(wanted.dataset.row), Number(wanted.dataset.column));
});
dialog.addEventListener("keydown", event => {
  const sliding = event.target.type === "range" && /Left|Right/.test(event.key);
  if (!sliding && go(event.key)) event.preventDefault();
});
dialog.addEventListener("click", event => {
  if (event.target === dialog) dialog.close();
  if (event.target.dataset.go) go(event.target.dataset.go);
});
dialog.addEventListener("close", () => {
  lines[shown.row].scrollIntoView({ block: "nearest" });
  lines[shown.row].cells[shown.column + 1]?.querySelector(".shot")?.focus({ preventScroll: true });
});
dialog.querySelector(".sweep input").addEventListener("input", event => {
  choose(shown.column, Number(event.target.value));
  show(shown.row, shown.column);
});
window.addEventListener("resize", () => { if (dialog.open) show(shown.row, shown.column); });

// The table: over which prompts, which columns, and sweeps folded
document.querySelector("form.tools").addEventListener("change", event => {
  const { name, checked } = event.target, main = document.querySelector("main");
  if (name === "every") main.classList.toggle("every", checked);
  else if (name === "plain") main.classList.toggle("plain", !checked);
  else for (const part of document.querySelectorAll("[data-of]")) part.hidden = part.dataset.of !== event.target.value;
});
for (const button of document.querySelectorAll(".fold button"))
  button.addEventListener("click", () => {
    const rows = button.closest("tbody").nextElementSibling;
    rows.hidden = !rows.hidden;
    button.ariaExpanded = String(!rows.hidden);
  });
