// The small charts of the dialog, as SVG in the page's colours.
function draw(parent, tag, attributes, text) {
  const element = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function clear(svg) {
  svg.replaceChildren();
  const { width, height } = svg.getBoundingClientRect();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return [width, height];
}

// magnitudes come as bytes of their maximum; 255 where none was measured
function magnitudes(trace) {
  return [...atob(trace.size)].map(letter => {
    const byte = letter.charCodeAt(0);
    return byte === 255 ? null : byte / 254 * trace.max;
  });
}

function path(points) {
  let gap = true, d = "";
  for (const [x, y] of points) {
    if (y !== null) d += `${gap ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    gap = y === null;
  }
  return d;
}

// The difference between the predictions over the timesteps, that without mitigation, and the guidance scale.
function drawTrace(svg, cell, color, name, reference) {
  const [width, height] = clear(svg), left = 38, right = width - 12, top = 22, floor = height - 86, base = height - 22;
  const times = data.timesteps[cell.trace.times];
  const first = Math.max(...times) || 1;
  const x = time => left + (1 - time / first) * (right - left);
  const highest = Math.max(cell.trace.max, reference ? reference.trace.max : 0) || 1;
  const y = size => floor - size / highest * (floor - top);
  const line = (trace, options) => draw(svg, "path", {
    d: path(magnitudes(trace).map((size, i) => {
      const time = data.timesteps[trace.times][i];
      return [x(time), size === null || time === null ? null : y(size)];
    })),
    fill: "none", "stroke-linejoin": "round", ...options,
  });
  for (const level of [top, floor]) draw(svg, "line", { x1: left, x2: right, y1: level, y2: level, stroke: "var(--line)" });
  draw(svg, "text", { x: left - 6, y: top + 4, "text-anchor": "end" }, Number(highest.toPrecision(2)));
  draw(svg, "text", { x: left - 6, y: floor + 4, "text-anchor": "end" }, 0);
  const title = draw(svg, "text", { x: left, y: 12 }, "conditional − unconditional prediction: ");
  draw(title, "tspan", { style: `fill: ${color}; font-weight: 600` }, name);
  if (reference) {
    draw(title, "tspan", {}, " (thin: none)");
    line(reference.trace, { stroke: "var(--soft)", "stroke-width": 1 });
  }
  line(cell.trace, { stroke: color, "stroke-width": 2 });

  const scales = cell.trace.scale, values = scales.map(change => change[1] ?? 0);  // null: not a number
  const low = Math.min(0, ...values), high = Math.max(0, ...values) || 1;
  const level = scale => base - 8 - (scale - low) / (high - low) * (base - floor - 44);
  draw(svg, "text", { x: left, y: floor + 16 }, "guidance scale");
  draw(svg, "line", { x1: left, x2: right, y1: level(0), y2: level(0), stroke: "var(--line)" });
  let steps = "", gap = true, free = -Infinity;
  scales.forEach(([step, scale], i) => {
    gap ||= scale === null;
    if (scale === null) return;
    const from = x(times[step]), to = i + 1 < scales.length ? x(times[scales[i + 1][0]]) : right;
    steps += `${gap ? "M" : "L"}${from} ${level(scale)}L${to} ${level(scale)}`;
    gap = false;
    if (from < free) return;  // a scale that changes at each step has no room for its every value
    draw(svg, "text", { x: from + 4, y: level(scale) - 4 }, Number(scale.toPrecision(3)));
    free = from + 40;
  });
  draw(svg, "path", { d: steps, fill: "none", stroke: color, "stroke-width": 2 });

  if (cell.transition !== null) {
    const at = x(cell.transition), before = at > (left + right) / 2;
    draw(svg, "line", { x1: at, x2: at, y1: top, y2: base, stroke: "var(--ink)", "stroke-dasharray": "3 3", class: "transition" });
    draw(svg, "text", { x: at + (before ? -5 : 5), y: floor - 5, "text-anchor": before ? "end" : "start", style: "fill: var(--ink)" }, `transition ${cell.transition}`);
  }
  for (let time = 0; time <= first; time += 200)
    draw(svg, "text", { x: x(time), y: height - 6, "text-anchor": "middle" }, time);
}

// The similarity at each point of a sweep, above the slider's stops.
function drawPoints(svg, cells, color, chosen) {
  const [width, height] = clear(svg), inset = 8;  // half of the slider's thumb
  const x = i => inset + i / (cells.length - 1) * (width - 2 * inset);
  const y = own => height - 8 - Math.max(0, Math.min(1, own)) * (height - 20);
  for (const own of [0, data.threshold, 1])
    draw(svg, "line", { x1: 0, x2: width, y1: y(own), y2: y(own), stroke: "var(--line)", "stroke-dasharray": own === data.threshold ? "2 3" : "none" });
  const owns = cells.map(cell => cell?.own ?? null);
  draw(svg, "path", { d: path(owns.map((own, i) => [x(i), own === null ? null : y(own)])), fill: "none", stroke: color, "stroke-width": 1.5 });
  owns.forEach((own, i) => {
    if (own !== null) draw(svg, "circle", { cx: x(i), cy: y(own), r: i === chosen ? 5 : 2.5, fill: color, stroke: "var(--card)" });
  });
}
