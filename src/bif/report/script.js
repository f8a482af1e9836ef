// The page is complete without this: it only narrows the view to one query and one observable.
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const queries = all(".query");
  const links = all(".chooser a");
  const every = document.querySelector(".toolbar .all");
  const choose = (id) => {
    const known = queries.some((query) => query.id === id);
    queries.forEach((query) => query.classList.toggle("off", known && query.id !== id));
    links.forEach((link) => {
      if (known && link.hash === "#" + id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    if (every) every.setAttribute("aria-pressed", String(!known));
  };
  links.forEach((link) =>
    link.addEventListener("click", (event) => {
      event.preventDefault();
      choose(link.hash.slice(1));
      try { history.replaceState(null, "", link.hash); } catch { /* embedded pages have no address */ }
    }),
  );
  if (queries.length > 1) {
    const named = queries.find((query) => "#" + query.id === location.hash);
    choose((named || queries[0]).id);
    every.addEventListener("click", () =>
      choose(every.getAttribute("aria-pressed") === "true" ? queries[0].id : null),
    );
  }
  const buttons = all(".switch button");
  const show = (number) => {
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.show === number)));
    all("[data-observable]").forEach((part) =>
      part.classList.toggle("off", part.dataset.observable !== number),
    );
  };
  buttons.forEach((b) => b.addEventListener("click", () => show(b.dataset.show)));
  if (buttons.length) show("0");
  const toolbar = document.querySelector(".toolbar");
  if (toolbar) toolbar.hidden = false;
  if (every) every.hidden = queries.length < 2;
})();
