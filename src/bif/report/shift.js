"use strict";
(() => {
  const data = JSON.parse(document.getElementById("shifts").textContent);
  const find = (id) => document.getElementById(id);
  const {values, sizes, shifts} = data, checked = "retrained" in values;
  const ORDERS = {first: "first order", second: "second order", reweighted: "re-weighted"};
  const [observable, queries, upTo, size] = [find("observable"), find("queries"), find("up-to"), find("size")];
  const write = (x, signed = true, digits = 3) => {
    if (x === null) return "–";
    const text = String(Number(x.toPrecision(digits)));
    return (signed && x > 0 ? "+" : "") + text.replaceAll("-", "−");
  };
  // To the second digit of its interval.
  const rounded = (x, half, signed = true) => {
    if (x === null || !half) return write(x, signed);
    const text = x.toFixed(Math.min(12, Math.max(0, 1 - Math.floor(Math.log10(half)))));
    return (signed && x >= 0 ? "+" : "") + text.replace("-", "−");
  };
  const element = (tag, text, parent) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const draw = (tag, attributes, parent, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const options = (select, names) => names.forEach((name, i) => { element("option", name, select).value = i; });
  const of = (name, p) => values[name][observable.value][queries.value][p];
  const isShown = (z) => Math.abs(sizes[z]) <= Number(upTo.value);
  const hasFew = (p, z) => data.draws[p][z] !== null && data.draws[p][z] < data.few;

  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough), made = [];
    for (let t = Math.ceil(low / step) * step; t <= high + 1e-9 * step; t += step) made.push(Math.abs(t) < 1e-9 * step ? 0 : t);
    return made;
  };
  // One scale for all charts, by what can be believed: series run out of it where they run wild.
  const range = () => {
    const known = [0];
    shifts.slice(0, data.charts).forEach((_, p) => sizes.forEach((_, z) => {
      if (!isShown(z)) return;
      known.push(of("first", p)[z]);
      if (!hasFew(p, z)) for (const name of ["second", "reweighted"]) known.push(of(name, p)[z]);
      if (checked) known.push(of("low", p)[z], of("high", p)[z]);
    }));
    const found = known.filter((x) => x !== null);
    let [low, high] = [Math.min(...found), Math.max(...found)];
    if (!(high > low)) { low -= 1; high += 1; }
    const margin = 0.08 * (high - low);
    return [low - margin, high + margin];
  };

  const WIDE = 320, HIGH = 222, LEFT = 50, RIGHT = 8, TOP = 24, BOTTOM = 180;
  const chart = (p, [low, high]) => {
    const figure = element("figure"), svg = draw("svg", {viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img"}, figure);
    figure.prepend(element("h3", shifts[p]));
    const shown = sizes.filter((_, z) => isShown(z));
    const [first, last] = [Math.min(0, ...shown), Math.max(0, ...shown)];
    const x = (s) => LEFT + 6 + (s - first) / (last - first) * (WIDE - LEFT - RIGHT - 12);
    const y = (v) => BOTTOM - (v - low) / (high - low) * (BOTTOM - TOP);
    for (const t of ticks(low, high, 4)) {
      draw("line", {x1: LEFT, x2: WIDE - RIGHT, y1: y(t), y2: y(t), class: t === 0 ? "zero" : "rule"}, svg);
      draw("text", {x: LEFT - 6, y: y(t) + 4, "text-anchor": "end"}, svg, write(t, false));
    }
    for (const t of ticks(first, last, 4)) draw("text", {x: x(t), y: BOTTOM + 18, "text-anchor": "middle"}, svg, write(t, false));
    draw("text", {x: WIDE - RIGHT, y: HIGH - 6, "text-anchor": "end"}, svg, "size of the shift");
    draw("text", {x: 2, y: 11}, svg, `change of the mean ${data.observables[observable.value]}`);
    const clip = draw("clipPath", {id: `clip-${p}`}, svg);
    draw("rect", {x: LEFT, y: TOP - 4, width: WIDE - LEFT - RIGHT + 4, height: BOTTOM - TOP + 8}, clip);
    const order = sizes.map((_, z) => z).filter(isShown).sort((a, b) => sizes[a] - sizes[b]);
    const told = [];
    for (const name of Object.keys(ORDERS)) {
      const row = of(name, p), half = of(`${name}_half`, p);
      const series = draw("g", {class: `series ${name}`, "clip-path": `url(#clip-${p})`}, svg);
      const points = order.filter((z) => row[z] !== null).map((z) => [sizes[z], row[z]]);
      points.push([0, 0]);
      points.sort((a, b) => a[0] - b[0]);
      draw("polyline", {points: points.map(([s, v]) => `${x(s).toFixed(1)},${y(v).toFixed(1)}`).join(" ")}, series);
      for (const z of order) {
        if (row[z] === null) continue;
        if (half[z] !== null) draw("line", {x1: x(sizes[z]), x2: x(sizes[z]), y1: y(row[z] - half[z]), y2: y(row[z] + half[z])}, series);
        const few = name !== "first" && hasFew(p, z);
        const point = draw("circle", {cx: x(sizes[z]), cy: y(row[z]), r: 2.4, class: few ? "few" : ""}, series);
        draw("title", {}, point, `${ORDERS[name]}, size ${write(sizes[z])}: ${write(row[z])} ± ${write(half[z], false)}`);
      }
    }
    if (checked) {
      const series = draw("g", {class: "series retrained", "clip-path": `url(#clip-${p})`}, svg), row = of("retrained", p);
      for (const z of order) {
        if (row[z] === null) continue;
        const [at, to] = [x(sizes[z]), y(row[z])];
        draw("line", {x1: at, x2: at, y1: y(of("low", p)[z]), y2: y(of("high", p)[z])}, series);
        const point = draw("path", {d: `M${at} ${to - 5}L${at + 5} ${to}L${at} ${to + 5}L${at - 5} ${to}Z`}, series);
        draw("title", {}, point, `retrained, size ${write(sizes[z])}: ${write(row[z])}, from ${write(of("low", p)[z])} to ${write(of("high", p)[z])}`);
      }
    }
    for (const z of order.filter((z) => z === order[0] || z === order[order.length - 1])) told.push(`at size ${write(sizes[z])} ${write(of("second", p)[z])}`);
    svg.setAttribute("aria-label", `${shifts[p]}: second order, ${told.join(", ")}`);
    return figure;
  };

  const table = () => {
    const z = Number(size.value), made = element("table");
    const head = element("tr", undefined, element("thead", undefined, made));
    const names = ["group", ...Object.values(ORDERS), "draws that count"];
    if (checked) names.push("retrained", "range of seeds");
    for (const name of names) element("th", name, head).scope = "col";
    const body = element("tbody", undefined, made);
    shifts.forEach((name, p) => {
      const row = element("tr", undefined, body);
      element("th", name, row).scope = "row";
      for (const one of Object.keys(ORDERS)) {
        const half = of(`${one}_half`, p)[z], cell = element("td", rounded(of(one, p)[z], half), row);
        element("small", ` ± ${half === null ? "–" : rounded(half, half, false)}`, cell);
      }
      const draws = data.draws[p][z];
      element("td", draws === null ? "–" : Math.round(draws).toLocaleString("en") + (hasFew(p, z) ? ", few" : ""), row);
      if (!checked) return;
      element("td", write(of("retrained", p)[z]), row);
      element("td", `${write(of("low", p)[z])} to ${write(of("high", p)[z])}`, row);
    });
    find("rows").replaceChildren(...made.children);
  };
  const fill = () => {
    const scale = range();
    find("grid").replaceChildren(...shifts.slice(0, data.charts).map((_, p) => chart(p, scale)));
    table();
  };
  options(observable, data.observables);
  options(queries, data.queries);
  const steps = [...new Set(sizes.map(Math.abs))].sort((a, b) => a - b);
  for (const step of steps) element("option", `up to ${step}`, upTo).value = step;
  // At first as far as half of the groups have draws enough: beyond, series run wild.
  const believed = steps.filter((step) => {
    const at = sizes.map((_, z) => z).filter((z) => Math.abs(sizes[z]) === step);
    return 2 * shifts.filter((_, p) => at.some((z) => hasFew(p, z))).length <= shifts.length;
  });
  upTo.value = Math.max(steps[0], ...believed);
  options(size, sizes.map((s) => write(s) + (s === -1 ? " (removed)" : s === 1 ? " (doubled)" : "")));
  size.value = sizes.indexOf(checked ? Math.min(...sizes) : Math.min(...sizes.filter((_, z) => isShown(z))));
  for (const select of [observable, queries, upTo]) select.addEventListener("change", fill);
  size.addEventListener("change", table);
  fill();
})();
