// A drawing with its title and the lists of its relations: pointing at the one brings out the other.
const VERDICTS = { hit: "✓", near: "≈", miss: "○", hallucination: "✕", drawn: "" };
const shown = { labels: true, hits: true, wrong: true };

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true || typeof value === "string") element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function panel(image, title, note, graph, words) {
  const place = html("div");
  const lists = html("div");
  const element = html("section", { class: "panel" }, html("h3", {}, title), html("p", { class: "muted" }, note), place, lists);
  element.fill = () => {
    const { root, parts, arrows } = drawGraph(image, graph, place.clientWidth);
    root.setAttribute("role", "img");
    root.setAttribute("aria-label", `${title}: ${graph.objects.length} objects, ${graph.relations.length} relations; listed below`);
    place.replaceChildren(root);
    const buttons = tripletButtons(graph, (k, on) => point(root, parts[k], on));
    arrows.forEach((arrow, k) => {
      arrow.addEventListener("pointerenter", () => (point(root, parts[k], true), buttons[k].classList.add("on")));
      arrow.addEventListener("pointerleave", () => (point(root, parts[k], false), buttons[k].classList.remove("on")));
    });
    lists.replaceChildren(...tripletLists(graph, buttons, words));
    applyShown(root);
  };
  return element;
}

function point(root, parts, on) {
  root.classList.toggle("pointed", on);
  for (const part of parts) part.classList.toggle("on", on);
}

function tripletButtons(graph, pointAt) {
  const names = objectLabels(graph.objects).map((label, i) => label || graph.objects[i].name);
  return graph.relations.map((item, k) => {
    const events = Object.fromEntries(
      [["onpointerenter", true], ["onpointerleave", false], ["onfocus", true], ["onblur", false]]
        .map(([event, on]) => [event, () => pointAt(k, on)]),
    );
    const symbol = html("span", { class: `verdict ${item.verdict}`, "aria-hidden": "true" }, VERDICTS[item.verdict] && `${VERDICTS[item.verdict]} `);
    const predicate = html("i", {}, ` ${item.predicate} `);
    const words = [names[item.subject], predicate, names[item.object]];
    if (item.why) words.push(html("small", {}, `: ${item.why}`));
    return html("button", { type: "button", ...events }, symbol, ...words);
  });
}

function tripletLists(graph, buttons, words) {
  return Object.entries(words).flatMap(([verdict, word]) => {
    const chosen = buttons.filter((_, k) => graph.relations[k].verdict === verdict);
    if (chosen.length === 0) return [];
    const list = html("ul", { class: "triplets" }, ...chosen.map((button) => html("li", {}, button)));
    return [html("h4", {}, `${word} (${chosen.length} of ${buttons.length})`), list];
  });
}

function applyShown(root) {
  root.classList.toggle("no-labels", !shown.labels);
  root.classList.toggle("hide-hit", !shown.hits);
  root.classList.toggle("hide-wrong", !shown.wrong);
}

function toggle(key, text, keyName) {
  const box = html("input", { type: "checkbox", id: `show-${key}`, "aria-keyshortcuts": keyName ?? "" });
  box.checked = shown[key];
  box.addEventListener("change", () => {
    shown[key] = box.checked;
    document.querySelectorAll(".panel .drawing").forEach(applyShown);
  });
  return html("label", {}, box, ` ${text}`);
}

