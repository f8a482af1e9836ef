"use strict";
// What the page holds, and how it is written and coloured.
const find = (id) => document.getElementById(id);
const data = JSON.parse(find("map-data").textContent), N = data.ids.length;
const LISTED = 200, NAMED = 60, PICTURED = 250, SIDE = 38, dark = matchMedia("(prefers-color-scheme: dark)");
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const whole = (text) => (N > 65535 ? new Uint32Array(bytes(text)) : new Uint16Array(bytes(text)));
const write = (value) => {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value), rounded = Number(value.toPrecision(3));
  const text = size && (size < 1e-3 || size >= 1e6) ? rounded.toExponential() : String(rounded);
  return text.replaceAll("-", "−");
};
const many = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const element = (tag, settings = {}, parent = null) => {
  const made = Object.assign(document.createElement(tag), settings);
  if (parent) parent.append(made);
  return made;
};
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const channels = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
const packed = ([r, g, b]) => (b << 16 | g << 8 | r) >>> 0;

// ---- What is held
const frames = data.frames.map((f) => ({
  ...f,
  places: f.places.map((text) => {
    const flat = new Int16Array(bytes(text)), x = new Float32Array(N), y = new Float32Array(N);
    for (let i = 0; i < N; i++) [x[i], y[i]] = [flat[2 * i] / 32767, flat[2 * i + 1] / 32767];
    return [x, y];
  }),
  neighbours: whole(f.neighbours), similarity: new Int16Array(bytes(f.similarity)),
  loss: new Float32Array(bytes(f.loss)), variance: new Float32Array(bytes(f.variance)),
  kept: new Float32Array(bytes(f.kept)), stable: new Uint8Array(bytes(f.stable)),
}));
const labels = data.labels.map((l) => ({...l, codes: whole(l.codes)}));
const others = data.others.map((o) => ({...o, neighbours: whole(o.neighbours)}));
const classes = data.by === null ? null : labels[data.by];
const quantities = [
  {name: "mean loss", of: (f) => f.loss},
  {name: "self-influence (loss variance)", of: (f) => f.variance},
  {name: "trust: neighbours kept", of: (f) => f.kept, plain: true},
];
if (data.settled) {
  const since = Float32Array.from(whole(data.settled));
  quantities.push({name: "checkpoint since which neighbours stay", of: () => since, plain: true, names: frames.map((f) => f.name)});
}
const state = {
  frame: frames.length - 1, layout: 0, colour: null, grey: true, only: new Set(), listed: null,
  chosen: -1, hovered: -1, measure: 0,
};
const frame = () => frames[state.frame];
const measures = () => [
  {name: "kernel", neighbours: frame().neighbours, count: data.count, similarity: frame().similarity}, ...others];
const nearestOf = (measure, i) => Array.from(measure.neighbours.subarray(i * measure.count, (i + 1) * measure.count));
const classOf = (i) => (classes ? classes.names[classes.codes[i]] : "");

// ---- Pictures: sheets are decoded when one of them is first asked for
const sheets = new Map(), decoded = new Map();
const sheet = (k) => {
  if (!sheets.has(k)) {
    const image = new Image();
    image.src = find(`sheet-${k}`).textContent;
    sheets.set(k, image.decode().then(() => { decoded.set(k, image); return image; }));
  }
  return sheets.get(k);
};
const hasPictures = Boolean(data.sprites && data.sprites.sheets);
const drawPicture = (pen, image, i, x, y, wide, high) => {
  const s = data.sprites, at = i % s.perSheet;
  pen.drawImage(image, at % s.columns * s.width, Math.floor(at / s.columns) * s.height, s.width, s.height, x, y, wide, high);
};
const picture = (i, parent) => {
  if (!hasPictures) return null;
  const {width, height, perSheet} = data.sprites, canvas = element("canvas", {width, height}, parent);
  canvas.setAttribute("aria-hidden", "true");
  sheet(Math.floor(i / perSheet)).then((image) => drawPicture(canvas.getContext("2d"), image, i, 0, 0, width, height));
  return canvas;
};

// ---- Colours
const order = (() => {  // at random, so that no class lies above another
  const made = Uint32Array.from({length: N}, (_, i) => i);
  let seed = 1;
  for (let i = N - 1; i > 0; i--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = seed % (i + 1);
    [made[i], made[j]] = [made[j], made[i]];
  }
  return made;
})();
const ramp = () => (dark.matches ? data.quantity.slice(1) : data.quantity).map(channels);
const shade = (stops, share) => {
  const at = Math.max(0, Math.min(1, share)) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(at));
  return stops[k].map((c, j) => Math.round(c + (at - k) * (stops[k + 1][j] - c)));
};
const ranks = (values) => {
  const places = Uint32Array.from(values.keys()).sort((a, b) => values[a] - values[b]), found = new Float32Array(N);
  for (let k = 0; k < N;) {
    let end = k;
    while (end < N && values[places[end]] === values[places[k]]) end++;
    for (let j = k; j < end; j++) found[places[j]] = N > 1 ? (k + end - 1) / 2 / (N - 1) : 0;
    k = end;
  }
  return {found, at: (share) => values[places[Math.round(share * (N - 1))]]};
};
const isGrey = (i) => state.grey && !frame().stable[i];
// By the classes that are shown, else by the items' own; none where these are too many for colours.
const classColour = (i) => {
  const of = state.colour.codes ? state.colour : classes;
  return of && of.colours ? (isGrey(i) ? data.unstable : of.colours[of.codes[i]]) : null;
};
const hidden = (i) => (state.listed ? !state.listed.member[i] : Boolean(state.only.size && state.colour.codes && !state.only.has(state.colour.codes[i])));
const rgb = (colour) => (colour.startsWith("#") ? channels(colour) : [255, 255, 255]);
