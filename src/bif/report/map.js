(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("map-data").textContent), N = data.ids.length;
  const LISTED = 200, NAMED = 60, dark = matchMedia("(prefers-color-scheme: dark)");
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
  const sheets = new Map();
  const sheet = (k) => {
    if (!sheets.has(k)) {
      const image = new Image();
      image.src = find(`sheet-${k}`).textContent;
      sheets.set(k, image.decode().then(() => image));
    }
    return sheets.get(k);
  };
  const picture = (i, parent) => {
    const s = data.sprites;
    if (!s || !s.sheets) return null;
    const canvas = element("canvas", {width: s.width, height: s.height}, parent), at = i % s.perSheet;
    canvas.setAttribute("aria-hidden", "true");
    sheet(Math.floor(i / s.perSheet)).then((image) => canvas.getContext("2d").drawImage(
      image, at % s.columns * s.width, Math.floor(at / s.columns) * s.height, s.width, s.height, 0, 0, s.width, s.height));
    return canvas;
  };
  const hasPictures = Boolean(data.sprites && data.sprites.sheets);

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
  const hidden = (i) => (state.listed ? !state.listed.member[i] : Boolean(state.only.size && state.colour.codes && !state.only.has(state.colour.codes[i])));
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
  const rgb = (colour) => (colour.startsWith("#") ? channels(colour) : [255, 255, 255]);

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

  // ---- Words about an item
  const words = (i, parent) => {
    if (data.texts) element("div", {className: "words", dir: "auto", textContent: data.texts[i]}, parent);
  };
  const swatch = (i, parent) => {
    const of = state.colour.codes ? state.colour : classes;
    if (!of) return;
    element("span", {className: "swatch"}, parent).style.background = isGrey(i) ? data.unstable : of.colours[of.codes[i]];
  };
  const tip = find("tip");
  const hover = (i, [px, py]) => {
    if (i !== state.hovered) {
      state.hovered = i;
      tip.replaceChildren();
      tip.hidden = i < 0;
      stage.request();
      if (i >= 0) {
        picture(i, tip);
        const body = element("div", {}, tip), head = element("div", {}, body);
        swatch(i, head);
        element("b", {textContent: classOf(i), dir: "auto"}, head);
        element("div", {className: "id facts", dir: "auto", textContent: data.ids[i]}, body);
        words(i, body);
        element("div", {className: "facts", textContent: `mean loss ${write(frame().loss[i])}`}, body);
        if (!frame().stable[i]) element("div", {className: "facts", textContent: "no stable neighbours"}, body);
      }
    }
    if (i >= 0) {
      const [w, h] = [tip.offsetWidth, tip.offsetHeight], box = over.getBoundingClientRect();
      const left = px + 16 + w > box.width ? px - 16 - w : px + 16, top = py + 16 + h > box.height ? py - 16 - h : py + 16;
      tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
    }
  };
  const tile = (i, note, parent) => {
    const button = element("button", {type: "button", className: "tile"}, element("li", {}, parent));
    button.dataset.item = i;
    button.title = data.ids[i];
    picture(i, button);
    const name = element("span", {}, button);
    swatch(i, name);
    element("span", {className: "id", dir: "auto", textContent: classes ? classOf(i) : data.ids[i]}, name);
    if (classes && !hasPictures) element("i", {className: "id", textContent: ` ${data.ids[i]}`}, name);
    element("i", {textContent: note}, button);
    words(i, button);
    button.addEventListener("click", () => choose(i, true));
  };
  const tiles = (parent) => element("ol", {className: hasPictures ? "tiles" : "tiles rows"}, parent);

  const panel = find("panel");
  const showItem = () => {
    const i = state.chosen, f = frame();
    const card = element("div", {className: "card"}, panel), before = picture(i, card), body = element("div", {}, card);
    if (before) before.style.maxWidth = "45%";
    const head = element("h2", {}, body);
    swatch(i, head);
    element("span", {className: "id", dir: "auto", textContent: data.ids[i]}, head);
    const facts = element("dl", {}, body);
    const fact = (name, value) => { element("dt", {textContent: name}, facts); element("dd", {textContent: value, dir: "auto"}, facts); };
    for (const l of labels) fact(l.name, l.names[l.codes[i]]);
    fact("mean loss", write(f.loss[i]));
    fact("loss variance", write(f.variance[i]));
    fact("kept", `${Math.round(100 * f.kept[i])} % of its neighbours${f.stable[i] ? "" : ", no more than by chance"}`);
    words(i, body);
    const own = new Set(nearestOf(measures()[0], i));
    measures().forEach((m, k) => {
      const near = nearestOf(m, i), title = element("h3", {textContent: `Nearest by ${m.name}`}, panel);
      const shared = near.filter((j) => own.has(j)).length;
      if (others.length) {
        const show = element("button", {type: "button", className: "toggle", textContent: "on the map"}, title);
        show.setAttribute("aria-pressed", String(k === state.measure));
        show.addEventListener("click", () => { state.measure = k; showPanel(); stage.request(); });
      }
      if (k) element("p", {className: "under", textContent: `${shared} of ${near.length} are among the nearest by kernel.`}, panel);
      const list = tiles(panel);
      near.forEach((j, r) => tile(j, m.similarity ? write(m.similarity[i * m.count + r] / 32767) : `${r + 1}.`, list));
    });
  };
  const showList = () => {
    const {items, title} = state.listed, counts = new Map();
    element("h2", {textContent: `${many(items.length, "item")} ${title}`}, panel);
    for (const i of items) if (classes) counts.set(classOf(i), (counts.get(classOf(i)) || 0) + 1);
    const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 6).map(([name, n]) => `\u2068${name}\u2069 ${n.toLocaleString("en")}`);
    if (most.length) element("p", {textContent: `${most.join(", ")}${counts.size > 6 ? ", …" : ""}`}, panel);
    const actions = element("div", {className: "actions"}, panel);
    const copy = element("button", {type: "button", id: "copy", textContent: "Copy ids"}, actions);
    const clear = element("button", {type: "button", id: "clear", textContent: "Clear"}, actions);
    clear.addEventListener("click", () => { find("find").value = ""; list(null); over.focus(); });
    const held = element("details", {}, panel);
    element("summary", {textContent: "Ids as text"}, held);
    const area = element("textarea", {id: "ids", readOnly: true, value: items.map((i) => data.ids[i]).join("\n")}, held);
    area.setAttribute("aria-label", "Ids of the listed items");
    copy.addEventListener("click", () => {
      const done = () => { copy.textContent = "Copied"; };
      const by_hand = () => { held.open = true; area.select(); if (document.execCommand("copy")) done(); };
      if (navigator.clipboard) navigator.clipboard.writeText(area.value).then(done, by_hand); else by_hand();
    });
    const rows = tiles(panel);
    for (const i of items.slice(0, LISTED)) tile(i, write(frame().loss[i]), rows);
    if (items.length > LISTED) element("p", {textContent: `The first ${LISTED} are shown.`}, panel);
  };
  const showPanel = () => {
    panel.replaceChildren();
    panel.scrollTop = 0;
    if (state.chosen >= 0) showItem();
    if (state.listed) {
      if (state.chosen >= 0) element("hr", {}, panel);
      showList();
    }
    if (state.chosen < 0 && !state.listed) panel.append(find("hint").content.cloneNode(true));
  };
  const choose = (i, go = false) => {
    state.chosen = i;
    if (i >= 0 && go) {
      const [x, y] = frame().places[state.layout], [px, py] = stage.toScreen(x[i], y[i]), box = over.getBoundingClientRect();
      if (px < 0 || py < 0 || px > box.width || py > box.height) stage.centre(i);
    }
    showPanel();
    find("said").textContent = i < 0 ? "No item chosen." : `Item ${data.ids[i]} chosen, ${classOf(i)}.`;
    stage.request();
  };
  const list = (items, title = "") => {
    state.listed = null;
    if (items) {
      const member = new Uint8Array(N);
      for (const i of items) member[i] = 1;
      state.listed = {items, title, member};
      state.chosen = items.length === 1 ? items[0] : -1;
      find("said").textContent = `${many(items.length, "item")} ${title}.`;
    }
    showPanel();
    paint();
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
        element("span", {textContent: name, dir: "auto"}, button);
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

  // ---- Controls
  const over = find("over");
  const rest = `${many(N, "item")}`;
  const stage = makeStage(find("points"), over, {
    ink: () => variable("ink"), drawn: drawOver, hover, pick: (i) => choose(i), lasso: (items) => list(items, "in the lasso"),
    thinned: (step) => { find("status").textContent = step > 1 ? `While moving, 1 of ${step} items is drawn` : rest; },
  });
  const place = () => { stage.setPlaces(...frame().places[state.layout]); nameClasses(); };
  const colours = [...labels.filter((l) => l.colours), ...quantities], chooser = find("colour");
  colours.forEach((c, k) => element("option", {value: k, textContent: c.name}, chooser));
  state.colour = (classes && classes.colours && classes) || colours[0];
  chooser.value = colours.indexOf(state.colour);
  chooser.addEventListener("change", () => {
    [state.colour, state.only] = [colours[chooser.value], new Set()];
    nameClasses();
    paint();
    showPanel();
  });
  const layouts = find("layouts");
  data.layouts.forEach((name, k) => {
    const button = element("button", {type: "button", textContent: name.toUpperCase()}, layouts);
    button.setAttribute("aria-pressed", String(k === 0));
    button.addEventListener("click", () => {
      state.layout = k;
      [...layouts.children].forEach((b, j) => b.setAttribute("aria-pressed", String(j === k)));
      place();
    });
  });
  layouts.parentElement.hidden = data.layouts.length < 2;
  const slider = find("at");
  find("at-slider").hidden = frames.length < 2;
  [slider.max, slider.value] = [frames.length - 1, state.frame];
  const sayFrame = () => { find("at-name").textContent = frame().name; };
  slider.addEventListener("input", () => {
    state.frame = Number(slider.value);
    sayFrame();
    place();
    paint();
    showPanel();
  });
  find("grey").addEventListener("change", (event) => { state.grey = event.target.checked; paint(); showPanel(); });
  const lassoButton = find("lasso");
  lassoButton.addEventListener("click", () => {
    const on = lassoButton.getAttribute("aria-pressed") !== "true";
    lassoButton.setAttribute("aria-pressed", String(on));
    stage.setLasso(on);
  });
  find("in").addEventListener("click", () => stage.zoom(1.5));
  find("out").addEventListener("click", () => stage.zoom(1 / 1.5));
  find("fit").addEventListener("click", () => stage.fit());
  let waiting;
  const low = (text) => text.normalize("NFC").toLowerCase();
  const search = () => {
    const wanted = low(find("find").value.trim());
    if (!wanted) { list(null); return; }
    const fits = labels.map((l) => l.names.map((name) => low(name).includes(wanted))), found = [];
    for (let i = 0; i < N; i++) {
      if (low(data.ids[i]).includes(wanted) || labels.some((l, k) => fits[k][l.codes[i]]) || (data.texts && low(data.texts[i]).includes(wanted))) found.push(i);
    }
    const exact = found.findIndex((i) => low(data.ids[i]) === wanted);
    if (exact > 0) found.unshift(...found.splice(exact, 1));
    list(found, `match “${find("find").value.trim()}”`);
  };
  find("find").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 200); });
  find("find").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    clearTimeout(waiting);
    search();
    if (state.listed && state.listed.items.length) { choose(state.listed.items[0], true); stage.centre(state.chosen); }
  });
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
    if (event.key === "/" && !typing) { event.preventDefault(); find("find").focus(); }
    if (event.key === "l" && !typing && !event.ctrlKey && !event.metaKey) lassoButton.click();
    if (event.key === "Escape") { find("find").value = ""; state.chosen = -1; state.only = new Set(); list(null); }
  });
  dark.addEventListener("change", paint);
  find("map-tool").hidden = false;
  find("status").textContent = rest;
  sayFrame();
  place();
  paint();
  showPanel();
})();
