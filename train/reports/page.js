"use strict";
// Draws the curves of a report. Texts of a run are set as text, never as HTML.
(() => {
  const { charts } = JSON.parse(document.getElementById("data").textContent);
  const slider = document.getElementById("smoothing"), axis = document.getElementById("axis");
  const HEIGHT = 190, LEFT = 46, RIGHT = 8, TOP = 10, BOTTOM = 22, COLORS = 8;

  function svg(parent, name, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    parent.append(element);
    return element;
  }

  const color = (line) => `c${(line.color || 0) % COLORS}` + (line.color >= COLORS ? " again" : "");
  const there = (value) => value !== null && value !== undefined;

  function short(value) {
    const size = Math.abs(value);
    if (size >= 1e13 || (size && size < 1e-3)) return value.toExponential(1).replace("e+", "e");
    for (const [least, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]])
      if (size >= least) return +(value / (unit === "k" ? 1e3 : least)).toPrecision(4) + unit;
    return String(+value.toPrecision(4));
  }

  // Exponential moving average from one point to the next, with the bias to its beginning at zero taken out.
  function smoothed(values, weight) {
    let sum = 0, total = 0;
    return values.map((value) => {
      if (!there(value)) return null;
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((times) => times * power >= rough) * power;
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  }

  function path(xs, ys, px, py) {
    let text = "", pen = false;
    xs.forEach((x, i) => {
      if (there(ys[i])) text += `${pen ? "L" : "M"}${px(x).toFixed(1)} ${py(ys[i]).toFixed(1)}`;
      pen = there(ys[i]);
    });
    return text;
  }

  function band(xs, low, high, px, py) {
    const known = xs.map((_, i) => i).filter((i) => there(low[i]) && there(high[i]));
    const side = (order, ys) => order.map((i) => `${px(xs[i]).toFixed(1)} ${py(ys[i]).toFixed(1)}`);
    return known.length ? `M${[...side(known, high), ...side([...known].reverse(), low)].join("L")}Z` : "";
  }

  function extent(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) if (there(value)) { low = Math.min(low, value); high = Math.max(high, value); }
    const room = high > low ? 0.04 * (high - low) : 0.1 * Math.abs(high) || 1;
    return [low - room, high + room];
  }

  function draw(figure) {
    const chart = charts[figure.dataset.chart], width = figure.clientWidth - 20;
    if (width < 60) return;
    figure.querySelector("svg")?.remove();
    figure.querySelector(".tip")?.remove();
    const weight = chart.smooth ? +slider.value : 0, hours = axis?.value === "hours";
    const lines = chart.lines.map((line) => ({
      ...line,
      x: hours && line.t ? line.t : line.x,
      mid: smoothed(line.y, weight),
      low: line.low && smoothed(line.low, weight),
      high: line.high && smoothed(line.high, weight),
    }));
    const [left, right] = extent(lines.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]));
    const [bottom, top] = extent(lines.flatMap((line) => [...line.mid, ...(line.low || []), ...(line.high || [])]));
    const px = (x) => LEFT + ((x - left) / (right - left)) * (width - LEFT - RIGHT);
    const py = (y) => HEIGHT - BOTTOM - ((y - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
    const root = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    root.setAttribute("role", "img");
    root.setAttribute("aria-label", chart.name);
    for (const y of ticks(bottom, top, 4)) {
      svg(root, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: py(y), y2: py(y) });
      svg(root, "text", { x: LEFT - 5, y: py(y) + 4, "text-anchor": "end" }).textContent = short(y);
    }
    for (const x of ticks(left, right, Math.max(2, width / 60)))
      if (px(x) > LEFT + 6 && x >= 0)
        svg(root, "text", { x: Math.min(px(x), width - 16), y: HEIGHT - 6, "text-anchor": "middle" }).textContent =
          short(x) + (hours ? " h" : "");
    const clip = `clip${figure.dataset.chart}`;
    svg(svg(root, "clipPath", { id: clip }), "rect", {
      x: LEFT, y: TOP - 4, width: width - LEFT - RIGHT + 4, height: HEIGHT - TOP - BOTTOM + 8,
    });
    const plot = svg(root, "g", { "clip-path": `url(#${clip})` });
    for (const line of lines) {
      if (line.low) svg(plot, "path", { class: `band ${color(line)}`, d: band(line.x, line.low, line.high, px, py) });
      if (weight && !line.low) svg(plot, "path", { class: `raw ${color(line)}`, d: path(line.x, line.y, px, py) });
      svg(plot, "path", { class: `line ${color(line)}`, d: path(line.x, line.mid, px, py) });
      if (line.x.length < 25)
        line.x.forEach((x, i) => {
          if (there(line.mid[i])) svg(plot, "circle", { class: `dot ${color(line)}`, cx: px(x), cy: py(line.mid[i]), r: 2.5 });
        });
    }
    figure.append(root);
    hover(figure, root, lines, px, py, (x) => left + ((x - LEFT) / (width - LEFT - RIGHT)) * (right - left), hours);
  }

  function hover(figure, root, lines, px, py, at, hours) {
    const marks = svg(root, "g", {}), tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    const leave = () => { marks.replaceChildren(); tip.hidden = true; };
    root.addEventListener("pointerleave", leave);
    const move = (event) => {
      const x = at(event.clientX - root.getBoundingClientRect().left);
      marks.replaceChildren();
      tip.replaceChildren();
      for (const line of lines) {
        const known = line.x.map((_, i) => i).filter((i) => there(line.mid[i]));
        const i = known.reduce((a, b) => (Math.abs(line.x[b] - x) < Math.abs(line.x[a] - x) ? b : a), known[0]);
        if (i === undefined) continue;
        const place = px(line.x[i]);
        if (!marks.childNodes.length) {
          svg(marks, "line", { class: "cursor", x1: place, x2: place, y1: TOP, y2: HEIGHT - BOTTOM });
          tip.append(hours ? `${short(line.x[i])} h` : `${line.x[i].toLocaleString("en")} steps`);
        }
        svg(marks, "circle", { class: `dot ${color(line)}`, cx: place, cy: py(line.mid[i]), r: 4 });
        const row = document.createElement("div"), key = document.createElement("span");
        key.className = `key ${color(line)}`;
        const ends = line.low && there(line.low[i]) ? ` (${short(line.low[i])} to ${short(line.high[i])})` : "";
        row.append(key, `${short(line.mid[i])}${ends} ${line.label}`);
        tip.append(row);
      }
      tip.hidden = !marks.childNodes.length;
      const mouse = event.clientX - figure.getBoundingClientRect().left, leftwards = mouse > figure.clientWidth / 2;
      tip.style.left = leftwards ? "" : `${mouse + 14}px`;
      tip.style.right = leftwards ? `${figure.clientWidth - mouse + 14}px` : "";
      tip.style.top = "34px";
    };
    root.addEventListener("pointermove", move);
    root.addEventListener("pointerdown", move);
  }

  const figures = [...document.querySelectorAll(".chart")];
  // Tells of a width at first, and when a window or a folded part changes, so that only what is to be seen is drawn.
  const widths = new Map();
  const seen = new ResizeObserver((entries) =>
    requestAnimationFrame(() => {
      for (const { target } of entries)
        if (widths.get(target) !== target.clientWidth) {
          widths.set(target, target.clientWidth);
          draw(target);
        }
    }),
  );
  figures.forEach((figure) => seen.observe(figure));
  const all = () => figures.forEach(draw);
  slider?.addEventListener("input", () => { document.getElementById("weight").value = (+slider.value).toFixed(2); all(); });
  axis?.addEventListener("change", all);
})();
