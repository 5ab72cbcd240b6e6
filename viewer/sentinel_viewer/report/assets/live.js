"use strict";
// A page that follows its server: when that says that there is more, what is on the page is replaced.
(() => {
  const events = new EventSource(document.querySelector("main").dataset.events);

  // What a reader has opened, ticked, typed and chosen is as it was when the new content is there.
  const keyOf = (element) =>
    element.id || element.getAttribute("href") || `${element.localName} ${element.name ?? ""} ${element.value ?? ""}`;
  const remember = () => {
    const opened = [...document.querySelectorAll("details")].map((details) => details.open);
    const ticked = new Set([...document.querySelectorAll("input:checked")].map(keyOf));
    const typed = document.querySelector("input[type=search]")?.value;
    const active = document.activeElement === document.body ? null : keyOf(document.activeElement);
    return () => {
      document.querySelectorAll("details").forEach((details, place) => (details.open = opened[place] ?? false));
      document.querySelectorAll("input[type=checkbox]").forEach((box) => (box.checked = ticked.has(keyOf(box))));
      const search = document.querySelector("input[type=search]");
      if (search && typed !== undefined) search.value = typed;
      if (active === null) return;
      [...document.querySelectorAll("main a, main input, main button, main summary, main [tabindex]")]
        .find((element) => keyOf(element) === active)
        ?.focus({ preventScroll: true });
    };
  };

  const refresh = async () => {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    const restore = remember();
    Page.stop();
    const data = 'script[type="application/json"], script[type="application/octet-stream"]';
    document.querySelectorAll(data).forEach((old) => old.remove());
    document.querySelector("main").replaceWith(next.querySelector("main"));
    next.querySelectorAll(data).forEach((found) => document.body.append(found));
    await Page.start();
    restore();
  };

  // One at a time: a page that is large may take longer than the next event.
  let last = Promise.resolve();
  const follow = () => (last = last.then(refresh).catch(() => {}));
  events.addEventListener("changed", follow);
  events.addEventListener("ended", () => {
    events.close();
    follow();
  });
  const tell = () => document.documentElement.toggleAttribute("data-lost", events.readyState !== EventSource.OPEN);
  events.addEventListener("error", tell);
  events.addEventListener("open", tell);
})();
