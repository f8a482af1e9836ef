// The page is complete without this: it narrows the view to one query and one observable, and
// unpacks the queries that are not there from the beginning.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const links = all(".chooser a");
  const shelf = document.querySelector(".articles");
  const select = document.querySelector(".step select");
  const buttons = all(".switch button");
  let shown = "0";
  const show = (number) => {
    shown = number;
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.show === number)));
    if (!buttons.length) return;
    all("[data-observable]").forEach((part) =>
      part.classList.toggle("off", part.dataset.observable !== number),
    );
  };
  let more = null;
  const unpack = async () => {
    const block = document.querySelector("#more-queries");
    if (!block) return { articles: {}, pictures: [] };
    const bytes = Uint8Array.from(atob(block.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const fetched = async (id) => {
    if (document.getElementById(id)) return;
    more ??= unpack();
    const { articles, pictures } = await more;
    if (document.getElementById(id) || !articles[id]) return;
    shelf.insertAdjacentHTML("beforeend", articles[id]);
    all("[data-picture]", shelf.lastElementChild).forEach((image) => {
      image.src = pictures[Number(image.dataset.picture)];
    });
    show(shown);
  };
  let wanted = null;
  const choose = async (id) => {
    wanted = id;
    if (select) select.value = id;
    links.forEach((link) => {
      if (link.hash === "#" + id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    const place = document.querySelector(".step .place");
    if (place) place.textContent = String(select.selectedIndex + 1);
    if (!document.getElementById(id)) {
      // A browser that cannot unpack keeps what is there.
      try { await fetched(id); } catch { return; }
    }
    if (wanted !== id || !document.getElementById(id)) return;
    all(".query").forEach((query) => query.classList.toggle("off", query.id !== id));
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
    const ids = [...select.options].map((option) => option.value);
    const step = (by) => name(ids[(select.selectedIndex + by + ids.length) % ids.length]);
    document.querySelector(".step .previous").addEventListener("click", () => step(-1));
    document.querySelector(".step .next").addEventListener("click", () => step(1));
    select.addEventListener("change", () => name(select.value));
    document.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.target.closest && event.target.closest("select, .scroll")) return;
      event.preventDefault();
      step(by);
    });
    const named = location.hash.slice(1);
    choose(ids.includes(named) ? named : ids[0]);
  }
  buttons.forEach((b) => b.addEventListener("click", () => show(b.dataset.show)));
  show("0");
  const toolbar = document.querySelector(".toolbar");
  if (toolbar) toolbar.hidden = false;
})();
