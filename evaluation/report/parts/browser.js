// The browser of images: a grid, and one image large. What it shows is in #browser-data.
const data = JSON.parse(document.getElementById("browser-data").textContent);
const control = (id) => document.getElementById(id);
const viewer = control("viewer");
const grid = control("grid");
const VERDICT_RULE = "strict, every prediction counted";

// The side by which images are filtered, sorted and the reference is marked.
const judged = (image) => image.sides[Number(control("judge").value) || 0];
const statusWords = (status) => status.replaceAll("_", " ");
const percent = (value) => (value === null ? "–" : (100 * value).toFixed(1));
const address = (id) => `#${new URLSearchParams({ image: id })}`;

function counts(image, side) {
  const hits = side.predicted.relations.filter((r) => r.hit).length;
  const found = side.found.relations.filter(Boolean).length;
  return {
    hits, missed: image.reference.relations.length - found,
    hallucinated: side.predicted.relations.length - hits,
  };
}

const PREDICATE_ROLES = {
  reference: (image) => image.reference.relations,
  predicted: (image, side) => side.predicted.relations,
  found: (image, side) => image.reference.relations.filter((_, k) => side.found.relations[k]),
  missed: (image, side) => image.reference.relations.filter((_, k) => !side.found.relations[k]),
  hallucinated: (image, side) => side.predicted.relations.filter((r) => !r.hit),
  any: (image, side) => [...(image.reference?.relations ?? []), ...side.predicted.relations],
};

const worst = (value) => value ?? 2; // images without a score come last
const gain = (image) => (image.sides[1].f1 ?? 0) - (image.sides[0].f1 ?? 0);
const ORDERS = {
  given: () => 0,
  "recall-up": (a, b) => worst(judged(a).recall) - worst(judged(b).recall),
  "recall-down": (a, b) => (judged(b).recall ?? -1) - (judged(a).recall ?? -1),
  "f1-up": (a, b) => worst(judged(a).f1) - worst(judged(b).f1),
  "f1-down": (a, b) => (judged(b).f1 ?? -1) - (judged(a).f1 ?? -1),
  gain: (a, b) => gain(b) - gain(a),
  loss: (a, b) => gain(a) - gain(b),
  hallucinations: (a, b) => counts(b, judged(b)).hallucinated - counts(a, judged(a)).hallucinated,
};

function selected() {
  const text = control("search").value.trim().toLowerCase();
  const [status, predicate] = [control("status").value, control("predicate").value];
  const role = PREDICATE_ROLES[control("role").value];
  return data.images
    .filter((image) => image.id.toLowerCase().includes(text))
    .filter((image) => !status || (status === "failed" ? judged(image).status !== "ok" : judged(image).status === status))
    .filter((image) => !predicate || role(image, judged(image)).some((r) => r.predicate === predicate))
    .sort(ORDERS[control("order").value]);
}

function score(image, side) {
  if (side.status !== "ok") return html("span", { class: "verdict failure" }, statusWords(side.status));
  if (!data.judged) return sizeWords(side.predicted);
  const { hits, missed, hallucinated } = counts(image, side);
  const part = (verdict, count) => html("span", { class: `verdict ${verdict}` }, `${VERDICTS[verdict]} ${count} `);
  const parts = [part("hit", hits), part("miss", missed), part("hallucination", hallucinated)];
  return html("span", { title: `hits, missed, hallucinated relations: ${VERDICT_RULE}` }, ...parts);
}

const numberOf = (items, word) => `${items.length} ${word}${items.length === 1 ? "" : "s"}`;
const sizeWords = ({ objects, relations }) => `${numberOf(objects, "object")}, ${numberOf(relations, "relation")}`;

function card(image) {
  const thumb = image.picture
    ? html("img", { class: "thumb", src: image.picture, alt: "", decoding: "async" })
    : html("span", { class: "thumb" }, "no picture");
  const sides = image.sides.map((side, i) => {
    const name = data.sides.length > 1 ? `${"AB"[i]}: ` : "";
    if (!data.judged) return html("div", {}, score(image, side));
    const lines = [`${name}${data.recall} ${percent(side.recall)}`, `strict F1 ${percent(side.f1)}`, score(image, side)];
    return html("div", {}, ...lines.map((line) => html("div", {}, line)));
  });
  return html("li", {}, html("a", { href: address(image.id) }, thumb, html("b", {}, image.id), ...sides));
}

function graphWithVerdicts(graph, found, wrong) {
  const judge = (item, hit) => ({ ...item, verdict: hit ? "hit" : wrong });
  return {
    objects: graph.objects.map((item, i) => judge(item, found ? found.objects[i] : item.hit)),
    relations: graph.relations.map((item, k) => judge(item, found ? found.relations[k] : item.hit)),
  };
}

// Without a reference objects have colours, and relations those of their subjects.
function graphWithColours(graph) {
  const colour = (i) => `hsl(${(210 + i * 222.5) % 360} 85% 66%)`;
  return {
    objects: graph.objects.map((item, i) => ({ ...item, verdict: "drawn", colour: colour(i) })),
    relations: graph.relations.map((item) => ({ ...item, verdict: "drawn", colour: colour(item.subject) })),
  };
}

function referencePanel(image) {
  const side = judged(image);
  const graph = graphWithVerdicts(image.reference, side.found, "miss");
  const found = side.found.objects.filter(Boolean).length;
  const by = data.sides.length > 1 ? `, marked by ${data.sides[image.sides.indexOf(side)]}` : "";
  const relations = side.found.relations.filter(Boolean).length;
  const note = `${found} of ${graph.objects.length} objects and ${relations} of ${graph.relations.length} relations found${by} (${VERDICT_RULE})`;
  return panel(image, "Reference", note, graph, { hit: "Found", miss: "Missed" });
}

function plainPanel(image, side) {
  const more = side.confidence === null ? "" : `, mean log-probability ${side.confidence.toFixed(3)}`;
  const note = `${side.status === "ok" ? sizeWords(side.predicted) : `no graph: ${statusWords(side.status)}`}${more}`;
  return withText(panel(image, "Prediction", note, graphWithColours(side.predicted), { drawn: "Relations" }), side);
}

function withText(element, side) {
  if (side.text !== null) {
    const parts = [html("summary", {}, "What the model wrote"), html("pre", {}, side.text)];
    element.append(html("details", { open: side.status !== "ok" }, ...parts));
  }
  return element;
}

function predictionPanel(image, side, i) {
  const graph = graphWithVerdicts(side.predicted, null, "hallucination");
  const title = data.sides.length > 1 ? `${"AB"[i]}: ${data.sides[i]}` : "Prediction";
  const tokens = side.tokens === null ? "" : `, ${side.tokens} tokens`;
  const right = graph.objects.filter((item) => item.verdict === "hit").length;
  const note = side.status === "ok"
    ? `${data.recall} ${percent(side.recall)}, strict F1 ${percent(side.f1)}; ${right} of ${graph.objects.length} objects right (${VERDICT_RULE})${tokens}`
    : `no graph: ${statusWords(side.status)}${tokens}`;
  return withText(panel(image, title, note, graph, { hit: "Hits", hallucination: "Hallucinations" }), side);
}

function viewerBar(image, images) {
  const place = images.indexOf(image);
  const step = (by, text, key) => {
    const next = images[place + by];
    const button = html("button", { type: "button", "aria-keyshortcuts": key, onclick: () => (location.hash = address(next.id)) }, text);
    button.disabled = !next;
    return button;
  };
  const where = place < 0 ? "outside the filter" : `${place + 1} of ${images.length}`;
  return html(
    "div", { class: "viewer-bar" },
    html("h3", { tabindex: "-1" }, `Image ${image.id} `, html("small", {}, where)),
    toggle("labels", "labels", "l"),
    ...(data.judged ? [toggle("hits", "✓ hits"), toggle("wrong", "○ misses, ✕ hallucinations")] : []),
    step(-1, "← previous", "ArrowLeft"), step(1, "next →", "ArrowRight"),
    html("button", { type: "button", "aria-keyshortcuts": "Escape", onclick: () => (location.hash = "#images") }, "all images"),
  );
}

function openImage(image, images) {
  const panels = data.judged
    ? [referencePanel(image), ...image.sides.map((side, i) => predictionPanel(image, side, i))]
    : image.sides.map((side) => plainPanel(image, side));
  viewer.replaceChildren(viewerBar(image, images), html("div", { class: "panels" }, ...panels));
  viewer.hidden = false;
  grid.hidden = true;
  for (const element of panels) element.fill();
}

const wanted = () => new URLSearchParams(location.hash.slice(1)).get("image");

function render() {
  const images = selected();
  control("shown").textContent = `${images.length} of ${data.images.length} images`;
  const id = wanted();
  const image = data.images.find((item) => item.id === id);
  if (image) return openImage(image, images);
  viewer.hidden = id === null;
  viewer.replaceChildren(...(id === null ? [] : [html("p", {}, `Image ${id} is not among the images of this page.`)]));
  grid.hidden = false;
  return grid.replaceChildren(...images.map(card));
}

function follow() {
  render();
  if (wanted() === null) return;
  control("images").scrollIntoView();
  viewer.querySelector("h3")?.focus({ preventScroll: true });
}

function fillSelect(id, options) {
  control(id).replaceChildren(...options.map(([value, text]) => html("option", { value }, text)));
}

function counted(values) {
  const total = new Map();
  for (const value of values) total.set(value, (total.get(value) ?? 0) + 1);
  return [...total].sort(([a], [b]) => (a < b ? -1 : 1));
}

function fillFilters() {
  const statuses = counted(data.images.flatMap((image) => [...new Set(image.sides.map((side) => side.status))]));
  const predicates = counted(data.images.flatMap((image) =>
    [...new Set(image.sides.flatMap((side) => PREDICATE_ROLES.any(image, side).map((r) => r.predicate)))]));
  fillSelect("status", [["", "any"], ["failed", "any failure"], ...statuses.map(([s, n]) => [s, `${statusWords(s)} (${n})`])]);
  fillSelect("predicate", [["", "any"], ...predicates.map(([p, n]) => [p, `${p} (${n})`])]);
  fillSelect("judge", data.sides.map((name, i) => [String(i), `${"AB"[i]}: ${name}`]));
  if (data.sides.length > 1) {
    control("order").append(html("option", { value: "gain" }, "gained most F1"), html("option", { value: "loss" }, "lost most F1"));
  }
  if (data.order) control("order").value = data.order;
  control("judge").value = String(data.sides.length - 1);
  control("judge-label").hidden = data.sides.length < 2;
}

function onKey(event) {
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || viewer.hidden) return;
  const press = (query) => viewer.querySelector(query)?.click();
  if (event.key === "Escape") location.hash = "#images";
  else if (event.key === "ArrowLeft" || event.key === "ArrowRight") press(`[aria-keyshortcuts="${event.key}"]`);
  else if (event.key === "l") press("#show-labels");
  else return;
  event.preventDefault();
}

fillFilters();
control("filters").addEventListener("input", render);
addEventListener("hashchange", follow);
addEventListener("keydown", onKey);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width && !viewer.hidden) render();
  width = innerWidth;
});
follow();
