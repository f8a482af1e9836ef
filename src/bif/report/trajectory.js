"use strict";
(() => {
  const data = JSON.parse(document.getElementById("trajectory").textContent);
  const find = (id) => document.getElementById(id);
  const [querySelect, itemSelect, slider] = [find("query"), find("item"), find("at")];
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const write = (value) => value === null ? "–" : String(Number(Number(value).toPrecision(3))).replaceAll("-", "−");
  let row = data.rows[0], item = row.items[0];

  const element = (tag, text, parent) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const NS = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, parent, text) => {
    const made = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };

  // Ticks at round numbers.
  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough);
    const made = [];
    for (let t = Math.ceil(low / step) * step; t <= high + 1e-9 * step; t += step) made.push(Math.abs(t) < 1e-9 * step ? 0 : t);
    return made;
  };
  const range = (values) => {
    const known = values.filter((x) => x !== null);
    let [low, high] = [Math.min(...known), Math.max(...known)];
    if (!(high > low)) { low -= 1; high += 1; }
    const margin = 0.06 * (high - low);
    return [low - margin, high + margin];
  };

  const WIDE = 960, LEFT = 78, RIGHT = 16;
  const chart = () => {
    const wide = Math.max(360, Math.min(WIDE, find("chart").clientWidth || WIDE));
    const small = wide < 600, left = small ? 62 : LEFT, size = small ? 11 : 12;
    const svg = document.createElementNS(NS, "svg");
    const high = 430;
    svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
    svg.setAttribute("xmlns", NS);
    svg.setAttribute("font-family", "system-ui, sans-serif");
    svg.setAttribute("font-size", size);
    draw("rect", {width: wide, height: high, fill: colour("card")}, svg);
    const steps = data.steps, first = steps[0], last = steps[steps.length - 1];
    // Checkpoints at equal ratios are drawn at equal distances.
    const logarithmic = steps.length > 3 && last > 50 * Math.max(1, steps[1] - first);
    const place = (s) => logarithmic ? Math.log1p(s - first) / Math.log1p(last - first) : (s - first) / (last - first);
    const x = (s) => left + place(s) * (wide - left - RIGHT);
    const panel = (top, bottom, values, label) => {
      const [low, top_] = range(values), y = (v) => bottom - (v - low) / (top_ - low) * (bottom - top);
      for (const t of ticks(low, top_, 4)) {
        draw("line", {x1: left, x2: wide - RIGHT, y1: y(t), y2: y(t), stroke: colour("line")}, svg);
        draw("text", {x: left - 6, y: y(t) + 4, "text-anchor": "end", fill: colour("muted")}, svg, write(t));
      }
      draw("text", {x: left, y: top - 8, fill: colour("muted")}, svg, label);
      return y;
    };
    const line = (values, y, stroke, dash) => {
      const points = values.map((v, k) => v === null ? null : `${x(steps[k]).toFixed(1)},${y(v).toFixed(1)}`).filter(Boolean);
      draw("polyline", {points: points.join(" "), fill: "none", stroke, "stroke-width": 1.8, "stroke-dasharray": dash || "none"}, svg);
    };
    const losses = panel(30, 130, [...row.loss, ...data.train_loss], small ? `${row.observable} of the query; dashed: of training` : `${row.observable} of the query; dashed: mean loss of the training items`);
    line(data.train_loss, losses, colour("muted"), "5 4");
    line(row.loss, losses, colour("ink"));
    const ends = item.score.flatMap((v, k) => v === null || item.error[k] === null ? [v] : [v - item.error[k], v + item.error[k]]);
    const y = panel(180, 385, [0, ...ends], `influence of ${item.name} on ${row.query}${data.unit && `, ${data.unit}`}`);
    draw("line", {x1: left, x2: wide - RIGHT, y1: y(0), y2: y(0), stroke: colour("muted")}, svg);
    line(item.score, y, colour("muted"));
    item.score.forEach((v, k) => {
      if (v === null) return;
      const tone = colour(v < 0 ? "blue" : "orange"), at = x(steps[k]), e = item.error[k];
      if (e !== null) draw("line", {x1: at, x2: at, y1: y(v - e), y2: y(v + e), stroke: tone, "stroke-width": 1.5}, svg);
      const point = draw("circle", {cx: at, cy: y(v), r: 3.5, fill: data.trusted[k] ? tone : colour("card"), stroke: tone, "stroke-width": 1.5}, svg);
      draw("title", {}, point, `step ${steps[k].toLocaleString("en")}: ${write(v)} ± ${write(e)}`);
    });
    const here = x(steps[slider.value]);
    for (const [y1, y2] of [[30, 130], [180, 385]]) {
      draw("line", {x1: here, x2: here, y1, y2, stroke: colour("ink"), "stroke-dasharray": "2 3"}, svg);
    }
    const marks = logarithmic ? [...new Set(steps.filter((_, k) => k % Math.ceil(steps.length / 8) === 0).concat(last))] : ticks(first, last, small ? 4 : 8);
    let end = -1e9;
    for (const s of marks) {
      if (x(s) - end < 44) continue;
      end = x(s);
      draw("text", {x: Math.min(x(s), wide - RIGHT - 12), y: 404, "text-anchor": "middle", fill: colour("muted")}, svg, s.toLocaleString("en"));
    }
    draw("text", {x: wide - RIGHT, y: 423, "text-anchor": "end", fill: colour("muted")}, svg, "steps of training");
    find("chart").replaceChildren(svg);
    find("chart").setAttribute("aria-label", `Influence of ${item.name} on ${row.query} over training`);
  };

  const heat = () => {
    const table = find("heat"), largest = Math.max(...row.items.flatMap((i) => i.score.map((v) => Math.abs(v || 0)))) || 1;
    table.replaceChildren();
    // The steps, as far apart as their words are wide.
    const steps = data.steps, stride = Math.ceil(steps.length * 48 / Math.max(48, table.clientWidth - 110));
    const axis = element("tr", undefined, element("thead", undefined, table));
    element("th", "step", axis).scope = "row";
    for (let k = 0; k < steps.length; k += stride) {
      const head = element("th", steps[k].toLocaleString("en"), axis);
      head.scope = "col";
      head.colSpan = Math.min(stride, steps.length - k);
    }
    const body = element("tbody", undefined, table);
    const faint = steps.filter((_, k) => row.items.every((one) => Math.abs(one.score[k] || 0) < 0.01 * largest));
    find("heat-note").textContent = faint.length
      ? `Columns that look empty are so: at step ${faint.map((s) => s.toLocaleString("en")).join("; ")} every score here is below 1 % of the largest.`
      : "";
    for (const one of row.items) {
      const line = element("tr", undefined, body);
      line.className = one === item ? "chosen" : "";
      const button = element("button", one.name, element("th", undefined, line));
      button.type = "button";
      button.addEventListener("click", () => { item = one; fill(); });
      one.score.forEach((v, k) => {
        const cell = element("td", undefined, line), share = Math.round(100 * Math.min(1, Math.abs(v || 0) / largest) ** 0.7);
        cell.style.background = `color-mix(in srgb, ${colour(v < 0 ? "blue" : "orange")} ${share}%, ${colour("card")})`;
        cell.className = k === Number(slider.value) ? "here" : "";
        cell.title = `${one.name}, step ${data.steps[k].toLocaleString("en")}: ${write(v)} ± ${write(one.error[k])}`;
      });
    }
  };

  const ranking = () => {
    const k = Number(slider.value), box = find("ranking");
    const trusted = data.trusted[k] ? "" : ", not trusted";
    find("at-step").textContent = `step ${data.steps[k].toLocaleString("en")}${trusted}`;
    box.replaceChildren();
    for (const [title, tone, sign] of [["Helps most there", "blue", -1], ["Harms most there", "orange", 1]]) {
      const part = element("div", undefined, box);
      part.className = tone;
      element("h3", data.unit ? `${title}, ${data.unit}` : title, part);
      const list = element("ol", undefined, part);
      const found = row.items.filter((i) => sign * i.score[k] > 0).sort((a, b) => sign * (b.score[k] - a.score[k])).slice(0, 6);
      for (const one of found) {
        const line = element("li", undefined, list);
        element("span", one.name, line);
        element("span", `${write(one.score[k])} ± ${write(one.error[k])}`, line);
      }
      if (!found.length) element("li", "none of these items", list);
    }
  };

  const fill = () => {
    itemSelect.replaceChildren(...row.items.map((one) => {
      const option = element("option", one.name);
      option.selected = one === item;
      return option;
    }));
    chart(); heat(); ranking();
  };
  const pick = ({query, item: name, observable}) => {
    querySelect.selectedIndex = data.rows.findIndex((r) => r.query === query && r.observable === observable);
    row = data.rows[querySelect.selectedIndex];
    item = row.items.find((i) => i.name === name);
  };
  const choose = (index) => { row = data.rows[index]; item = row.items[0]; fill(); };

  for (const one of data.rows) element("option", data.observables > 1 ? `${one.query} (${one.observable})` : one.query, querySelect);
  slider.max = data.steps.length - 1;
  querySelect.addEventListener("change", () => choose(querySelect.selectedIndex));
  itemSelect.addEventListener("change", () => { item = row.items[itemSelect.selectedIndex]; fill(); });
  slider.addEventListener("input", () => { chart(); heat(); ranking(); });
  for (const button of document.querySelectorAll("#events button")) {
    button.addEventListener("click", () => {
      pick(button.dataset);
      fill();
      find("curves").scrollIntoView({behavior: "smooth"});
    });
  }

  const save = (name, address) => {
    const link = element("a");
    link.download = name;
    link.href = address;
    link.click();
  };
  const file = () => `${item.name} on ${row.query}`.replace(/[^\w.-]+/g, "-");
  const source = () => new XMLSerializer().serializeToString(find("chart").firstChild);
  const encoded = () => `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source())}`;
  find("save-svg").addEventListener("click", () => save(`${file()}.svg`, encoded()));
  find("save-png").addEventListener("click", () => {
    const image = new Image(), box = find("chart").firstChild.viewBox.baseVal;
    image.onload = () => {
      const canvas = element("canvas");
      [canvas.width, canvas.height] = [2 * box.width, 2 * box.height];
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      save(`${file()}.png`, canvas.toDataURL("image/png"));
    };
    image.width = 2 * box.width; image.height = 2 * box.height;
    image.src = encoded();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", fill);
  addEventListener("resize", chart);
  // At first the pair of the headline.
  const told = document.querySelector("#events button");
  if (told) pick(told.dataset);
  slider.value = item.score.reduce((best, v, k) => Math.abs(v || 0) > Math.abs(item.score[best] || 0) ? k : best, 0);
  fill();
})();
