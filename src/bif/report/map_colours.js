// Colours of the items, their legend, and what is drawn above them.
const paint = () => {
  const shades = new Uint32Array(N), strength = new Uint16Array(N), {colour} = state;
  const unstable = packed(channels(data.unstable)), solid = N > 3000 ? 215 : 240;
  if (colour.codes) {
    const own = colour.colours.map((c) => packed(channels(c)));
    for (let i = 0; i < N; i++) shades[i] = own[colour.codes[i]];
  } else {
    const values = colour.of(frame()), stops = ramp(), top = colour.names ? frames.length - 1 : 1;
    const share = colour.plain ? Float32Array.from(values, (v) => v / top) : ranks(values).found;
    for (let i = 0; i < N; i++) shades[i] = packed(shade(stops, share[i]));
  }
  const layers = [[], [], []];
  for (const i of order) {
    const back = hidden(i), grey = isGrey(i);
    if (grey) shades[i] = unstable;
    strength[i] = back ? 30 : grey ? 150 : solid;
    layers[back ? 0 : grey ? 1 : 2].push(i);
  }
  stage.setShades(shades, strength, Uint32Array.from(layers.flat()), rgb(variable("card")));
  legend();
};

// ---- Legend
const legend = () => {
  const place = find("legend"), {colour} = state;
  place.replaceChildren();
  element("h2", {textContent: colour.name}, place);
  if (colour.codes) {
    const counts = new Uint32Array(colour.names.length), items = element("ul", {}, place);
    for (const c of colour.codes) counts[c]++;
    colour.names.forEach((name, c) => {
      const button = element("button", {type: "button", title: name}, element("li", {}, items));
      element("span", {className: "swatch"}, button).style.background = colour.colours[c];
      element("span", {textContent: name.trim() ? name : "(no name)", dir: "auto"}, button);
      element("i", {textContent: counts[c].toLocaleString("en")}, button);
      button.setAttribute("aria-pressed", String(state.only.has(c)));
      button.addEventListener("click", () => {
        if (!state.only.delete(c)) state.only.add(c);
        paint();
        find("legend").querySelectorAll("ul button")[c].focus();
      });
    });
  } else {
    const values = colour.of(frame()), stops = ramp().map((c) => `rgb(${c})`);
    element("div", {id: "ramp"}, place).style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    const ticks = element("div", {className: "ticks"}, place), r = colour.plain ? null : ranks(values);
    const said = colour.names ? [colour.names[0], colour.names.at(-1)] : [0, 0.25, 0.5, 0.75, 1].map((s) => (r ? write(r.at(s)) : `${100 * s} %`));
    for (const text of said) element("span", {textContent: text}, ticks);
    if (r) element("p", {className: "grey-note", textContent: "By rank: a quarter of the items lies between two numbers."}, place);
  }
  const grey = frame().stable.reduce((sum, s) => sum + !s, 0);
  if (grey) {
    const note = element("p", {className: "grey-note"}, place);
    element("span", {className: "swatch"}, note).style.background = data.unstable;
    note.append(`${many(grey, "item")} without stable neighbours${state.grey ? "" : " (shown in colour)"}`);
  }
};

// ---- Names of classes at the median of their items
let named = [];
const nameClasses = () => {
  const of = state.colour.codes ? state.colour : classes;
  named = [];
  if (!of || of.names.length > 4 * NAMED) return;
  const [x, y] = frame().places[state.layout], members = of.names.map(() => []);
  for (let i = 0; i < N; i++) members[of.codes[i]].push(i);
  const median = (some, values) => Float32Array.from(some, (i) => values[i]).sort()[some.length >> 1];
  named = members.map((some, c) => ({name: of.names[c], code: c, of, size: some.length, x: median(some, x), y: median(some, y)}))
    .filter((n) => n.size).sort((a, b) => b.size - a.size).slice(0, NAMED);
};
const drawNames = (pen, view) => {
  const taken = [];
  pen.font = "600 13px system-ui, sans-serif";
  [pen.textAlign, pen.textBaseline, pen.lineJoin] = ["center", "middle", "round"];
  for (const n of named) {
    if (state.only.size && n.of === state.colour && !state.only.has(n.code)) continue;
    const [px, py] = view.at(n.x, n.y), text = `\u2068${n.name.length > 28 ? `${n.name.slice(0, 27)}…` : n.name}\u2069`;
    const half = pen.measureText(text).width / 2 + 4;
    const box = [px - half, py - 10, px + half, py + 10];
    if (taken.some((t) => box[0] < t[2] && box[2] > t[0] && box[1] < t[3] && box[3] > t[1])) continue;
    taken.push(box);
    [pen.lineWidth, pen.strokeStyle, pen.fillStyle] = [4, variable("card"), variable("ink")];
    pen.strokeText(text, px, py);
    pen.fillText(text, px, py);
  }
};
// Where few items are in view, their pictures, framed in their colour; none above another.
const drawPictures = (pen, at, room) => {
  const some = hasPictures ? stage.within(Math.min(PICTURED, Math.floor(0.4 * room / SIDE ** 2))) : null;
  if (!some) return;
  const {width, height, perSheet} = data.sprites, scale = SIDE / Math.max(width, height), [w, h] = [width * scale, height * scale];
  const taken = [];
  pen.imageSmoothingEnabled = false;
  pen.lineWidth = 2;
  for (const i of some) {
    const [x, y] = at(i), sheetOf = Math.floor(i / perSheet), image = decoded.get(sheetOf);
    if (hidden(i) || taken.some(([a, b]) => Math.abs(a - x) < w + 4 && Math.abs(b - y) < h + 4)) continue;
    taken.push([x, y]);
    if (!image) { sheet(sheetOf).then(stage.request); continue; }
    drawPicture(pen, image, i, x - w / 2, y - h / 2, w, h);
    pen.strokeStyle = classColour(i) ?? data.unstable;
    pen.strokeRect(x - w / 2 - 1, y - h / 2 - 1, w + 2, h + 2);
  }
};
const ring = (pen, [x, y], r, colour, line) => {
  pen.beginPath();
  pen.arc(x, y, r, 0, 2 * Math.PI);
  [pen.lineWidth, pen.strokeStyle] = [line + 2, variable("card")];
  pen.stroke();
  [pen.lineWidth, pen.strokeStyle] = [line, colour];
  pen.stroke();
};
const drawOver = (pen, view) => {
  const [x, y] = frame().places[state.layout];
  const at = (i) => view.at(x[i], y[i]);
  drawPictures(pen, at, view.room);
  if (state.chosen >= 0) {
    const from = at(state.chosen), near = nearestOf(measures()[state.measure], state.chosen);
    pen.globalAlpha = 0.75;
    [pen.strokeStyle, pen.lineWidth] = [variable("orange"), 1.2];
    pen.beginPath();
    for (const j of near) { pen.moveTo(...from); pen.lineTo(...at(j)); }
    pen.stroke();
    pen.globalAlpha = 1;
    for (const j of near) ring(pen, at(j), view.radius + 2, variable("orange"), 1.5);
  }
  drawNames(pen, view);
  if (state.chosen >= 0) ring(pen, at(state.chosen), view.radius + 4, variable("ink"), 2.5);
  if (state.hovered >= 0) ring(pen, at(state.hovered), view.radius + 2.5, variable("ink"), 1.5);
};
