// Groups by keyboard, addresses without empty filters, and the large drawing of one completion.
"use strict";
(() => {
  const first = (query) => document.querySelector(query);

  document.addEventListener("htmx:configRequest", (event) => {
    const asked = event.detail.parameters;
    for (const [name, value] of Object.entries(asked)) if (value === "") delete asked[name];
  });

  // A choice holds at once; a text when Enter is pressed.
  document.addEventListener("change", (event) => {
    if (event.target.matches(".filters[method=get] select")) event.target.form.requestSubmit();
  });

  // The link of the group, or of the completion, that comes before or after the one in focus.
  function step(links, by) {
    const here = links.findIndex((link) => link === document.activeElement || link.getAttribute("aria-current"));
    return links[here < 0 ? 0 : Math.min(Math.max(here + by, 0), links.length - 1)];
  }

  function move(by) {
    const groups = [...document.querySelectorAll(".group .open")];
    if (groups.length) {
      const link = step(groups, by);
      link.focus({ preventScroll: true });
      link.closest(".group").scrollIntoView({ block: "nearest" });
    } else step([...document.querySelectorAll(".strip a")], by)?.click();
  }

  const KEYS = {
    j: () => move(1), k: () => move(-1),
    n: () => first("[rel=next]")?.click(),
    "/": () => first("input[name=text]")?.focus(),
    Escape: () => first("a.back")?.click(),
    l: () => first("#show-labels")?.click(),
    1: () => first("[value=difference]")?.click(),
    2: () => first("[value=completion]")?.click(),
    3: () => first("[value=reference]")?.click(),
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (!KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  // The first mark is of the run as the page shows it.
  let mark = null;
  document.addEventListener("htmx:sseMessage", (event) => {
    const newer = first(".newer .button");
    if (!newer || event.detail.type !== "steps") return;
    newer.hidden = mark === null || mark === event.detail.data;
    mark ??= event.detail.data;
  });

  document.addEventListener("DOMContentLoaded", () => {
    const [opened, strip] = [first(".strip [aria-current]"), first(".strip")];
    if (opened) strip.scrollLeft = opened.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
    if (first("#drawn")) drawChosen(first("#drawn"));
  });
})();

const GRAPH_WORDS = {
  difference: ["Difference", { hit: "Hit", near: "Near miss", miss: "Missed", hallucination: "Hallucinated" }],
  completion: ["Completion", { hit: "Hit", near: "Near miss", hallucination: "Hallucinated", drawn: "Relations" }],
  reference: ["Reference", { hit: "Found", miss: "Missed" }],
};

// Draws one of the graphs that a place has as its data, with a switch between them.
function drawChosen(place) {
  const data = JSON.parse(place.dataset.graphs);
  const names = Object.keys(data.graphs);
  let chosen = names[0];

  function draw() {
    const [title, words] = GRAPH_WORDS[chosen];
    const element = panel(data, title, "", data.graphs[chosen], words);
    element.querySelector("h3").hidden = names.length > 1;
    place.replaceChildren(element);
    element.fill();
  }

  const options = names.map((name) => {
    const radio = html("input", { type: "radio", name: "graph", value: name });
    radio.checked = name === chosen;
    radio.addEventListener("change", () => ((chosen = name), draw()));
    return html("label", {}, radio, ` ${GRAPH_WORDS[name][0]}`);
  });
  document.getElementById("switch").replaceChildren(...(names.length > 1 ? options : []), toggle("labels", "labels", "l"));
  draw();
  if (data.picture && !data.picture.startsWith("data:")) {
    const probe = new Image();
    probe.addEventListener("error", () => (document.querySelector(".picture-gone").hidden = false));
    probe.src = data.picture;
  }
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) draw();
    width = innerWidth;
  });
}
