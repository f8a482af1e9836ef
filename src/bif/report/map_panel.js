// What is said of items: in the tip, beside the map, and in lists.
// ---- Words about an item
const words = (i, parent) => {
  if (data.texts) element("div", {className: "words", dir: "auto", textContent: data.texts[i]}, parent);
};
const swatch = (i, parent) => {
  const colour = classColour(i);
  if (colour) element("span", {className: "swatch"}, parent).style.background = colour;
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
  const sorted = items.length > 1 ? "With their mean loss, the largest first" : "With its mean loss";
  element("p", {textContent: `${sorted}.`}, panel);
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
const list = (some, title = "", first = -1) => {
  state.listed = null;
  if (some) {
    const {loss} = frame(), items = some.sort((a, b) => (b === first) - (a === first) || loss[b] - loss[a]);
    const member = new Uint8Array(N);
    for (const i of items) member[i] = 1;
    state.listed = {items, title, member};
    state.chosen = items.length === 1 ? items[0] : -1;
    find("said").textContent = `${many(items.length, "item")} ${title}.`;
  }
  showPanel();
  paint();
};
