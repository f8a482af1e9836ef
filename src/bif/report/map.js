// The controls, which come last: they start the page.
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
  const exact = found.find((i) => low(data.ids[i]) === wanted);
  list(found, `match “${find("find").value.trim()}”`, exact);
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
