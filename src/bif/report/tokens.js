// The page is complete without this: it lets a reader choose whose influence the shading shows.
(() => {
  const STRONGEST = 45, FULL = 32767;
  const all = (root, selector) => [...root.querySelectorAll(selector)];
  const reader = document.querySelector(".reader");
  if (!reader) return;
  const helpful = Number(reader.dataset.helpful);
  let view = "influence";
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const shown = (x) => (x < 0 ? "−" : "+") + Number(Math.abs(x).toPrecision(3));
  const unpacked = (passage) => ({
    ...passage,
    influence: new Int16Array(bytes(passage.influence).buffer),
    correlation: new Int8Array(bytes(passage.correlation).buffer),
    certain: bytes(passage.certain),
  });
  // One score of a pair of tokens: [value, whether its sign is certain].
  const pair = (p, row, column) => {
    const at = row * p.columns + column;
    const value = view === "influence" ? (p.influence[at] / FULL) * p.scale : p.correlation[at] / 127;
    return [value, (p.certain[at >> 3] >> (at & 7)) & 1];
  };
  const single = (list, i) => [list[view][i], list.certain[i]];
  const shade = (spans, scores, largest) =>
    spans.forEach((span) => {
      const [value, certain] = scores(Number(span.dataset.i));
      span.classList.toggle("blue", value * helpful > 0);
      span.classList.toggle("orange", value * helpful < 0);
      span.classList.toggle("sure", Boolean(certain));
      span.style.setProperty("--s", Math.round((STRONGEST * Math.abs(value)) / (largest || 1)) + "%");
      span.title = `${view} ${shown(value)}${certain ? "" : ", sign not certain"}`;
    });
  const largestOf = (groups) =>
    Math.max(0, ...groups.flatMap(([spans, scores]) => spans.map((s) => Math.abs(scores(Number(s.dataset.i))[0]))));
  const largestText = (count, value) => (count ? `; largest score ${Number(value.toPrecision(2))}` : "");
  const quoted = (span) => `“${span.textContent.trim() || "␣"}”`;

  const updates = all(reader, ".reading").map((article) => {
    const data = JSON.parse(article.querySelector('script[type="application/json"]').textContent).map(unpacked);
    const query = article.querySelector('.text[data-side="query"]');
    const passages = all(article, ".passage");
    const querySpans = all(query, ".t");
    const passageSpans = passages.map((p) => all(p, ".t"));
    const status = (side) => article.querySelector(`.status[data-side="${side}"] span`);
    // What the shading is of: a query token (or null), a passage, a token of it (or null).
    let target = null, source = 0, token = null;
    const update = () => {
      const groups = passageSpans.map((spans, p) => [
        spans,
        target === null ? (i) => single(data[p].train, i) : (i) => pair(data[p], target, i),
      ]);
      const largest = largestOf(groups);
      groups.forEach(([spans, scores]) => shade(spans, scores, largest));
      if (data.length) {
        const p = data[source];
        const scores = token === null ? (i) => single(p.query, i) : (i) => pair(p, i, token);
        const most = largestOf([[querySpans, scores]]);
        shade(querySpans, scores, most);
        const name = passages[source].querySelector(".whole").textContent;
        const chosen = token === null ? null : passageSpans[source].find((s) => Number(s.dataset.i) === token);
        status("query").textContent = `${chosen ? quoted(chosen) + " in " : ""}${name}${largestText(querySpans.length, most)}`;
      }
      const asked = querySpans.find((s) => Number(s.dataset.i) === target);
      status("train").textContent = `${asked ? quoted(asked) : "the whole query"}${largestText(passageSpans.flat().length, largest)}`;
      querySpans.forEach((s) => s.classList.toggle("chosen", s === asked));
      passageSpans.forEach((spans, p) =>
        spans.forEach((s) => s.classList.toggle("chosen", p === source && Number(s.dataset.i) === token)));
      passages.forEach((passage, p) =>
        passage.querySelector(".whole").setAttribute("aria-pressed", String(p === source && token === null)));
    };
    const chooseTarget = (i) => { target = target === i ? null : i; update(); };
    const chooseToken = (p, i) => {
      token = source === p && token === i ? null : i;
      source = p;
      update();
    };
    // A click on a token, or the arrow keys in a text; Escape lets go.
    const listen = (text, spans, current, choose) => {
      text.addEventListener("click", (event) => {
        const span = event.target.closest(".t");
        if (span) choose(Number(span.dataset.i));
      });
      text.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        const now = current();
        if (step && spans.length) {
          event.preventDefault();
          const next = now === null ? (step > 0 ? 0 : spans.length - 1) : now + step;
          if (next >= 0 && next < spans.length) choose(next);
          spans[Math.max(0, Math.min(next, spans.length - 1))].scrollIntoView({ block: "nearest" });
        } else if (event.key === "Escape" && now !== null) choose(now);
      });
    };
    listen(query, querySpans, () => target, chooseTarget);
    passages.forEach((passage, p) => {
      listen(passage.querySelector(".text"), passageSpans[p], () => (source === p ? token : null), (i) => chooseToken(p, i));
      passage.querySelector(".whole").addEventListener("click", () => { source = p; token = null; update(); });
    });
    update();
    return update;
  });

  const buttons = all(reader, ".views button");
  buttons.forEach((button) =>
    button.addEventListener("click", () => {
      view = button.dataset.view;
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
      updates.forEach((update) => update());
    }),
  );
  const articles = all(reader, ".reading"), links = all(reader, ".chooser a");
  const select = document.querySelector(".step select");
  const choose = (id) => {
    if (select) {
      select.value = id;
      document.querySelector(".step .place").textContent = String(select.selectedIndex + 1);
    }
    articles.forEach((article) => article.classList.toggle("off", article.id !== id));
    links.forEach((link) => (link.hash === "#" + id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  };
  const name = (id) => {
    choose(id);
    try { history.replaceState(null, "", "#" + id); } catch { /* embedded pages have no address */ }
  };
  links.forEach((link) =>
    link.addEventListener("click", (event) => {
      event.preventDefault();
      name(link.hash.slice(1));
    }),
  );
  if (select) {
    const step = (by) => name(articles[(select.selectedIndex + by + articles.length) % articles.length].id);
    document.querySelector(".step .previous").addEventListener("click", () => step(-1));
    document.querySelector(".step .next").addEventListener("click", () => step(1));
    select.addEventListener("change", () => name(select.value));
    document.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.target.closest && event.target.closest("select, .scroll, .text, nav")) return;
      event.preventDefault();
      step(by);
    });
  }
  const nav = links.length ? links[0].closest("nav") : null;
  if (nav) nav.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const now = links.indexOf(event.target.closest("a"));
    if (!by || now < 0) return;
    event.preventDefault();
    const next = links[(now + by + links.length) % links.length];
    next.focus();
    next.click();
  });
  if (links.length) {
    const named = articles.find((article) => "#" + article.id === location.hash);
    choose((named || articles[0]).id);
  }
  reader.classList.add("ready");
  reader.querySelector(".toolbar").hidden = false;
})();
