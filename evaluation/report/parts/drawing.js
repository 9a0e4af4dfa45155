// A graph over its picture: boxes, arrows from subject to object, labels where there is room.
const LABEL_HEIGHT = 15;
const MAX_HEIGHT = 620;
const measure = document.createElement("canvas").getContext("2d");
measure.font = `600 11px ${getComputedStyle(document.body).fontFamily}`;

function svg(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// A group of one item. A verdict has its colour in the style sheet, an item may have one of its own;
// set as a property, which a page's policy allows where it forbids style attributes.
function itemGroup(kind, { verdict, colour }) {
  const group = svg("g", { class: `${kind} ${verdict}` });
  if (colour) group.style.setProperty("--stroke", colour);
  return group;
}

// An item's own label, or its name, with a number where an image has several of it.
function objectLabels(objects) {
  const total = {}, seen = {};
  for (const { name } of objects) total[name] = (total[name] ?? 0) + 1;
  return objects.map(({ name, label }) => {
    if (label !== undefined) return label;
    seen[name] = (seen[name] ?? 0) + 1;
    return total[name] > 1 ? `${name} ${seen[name]}` : name;
  });
}

// Draws a graph whose items have a `verdict`; `width` is the room in CSS pixels.
// Returns the svg element, and the elements of each relation with those of its two objects.
function drawGraph(image, graph, width) {
  const scale = Math.min(width / image.width, MAX_HEIGHT / image.height);
  const size = { width: image.width * scale, height: image.height * scale };
  const root = svg("svg", { ...size, viewBox: `0 0 ${size.width} ${size.height}`, class: "drawing" });
  if (image.picture) root.append(svg("image", { ...size, href: image.picture }));
  const names = objectLabels(graph.objects);
  const boxes = graph.objects.map(({ box }) => box?.map((side) => side * scale));
  const labels = svg("g", { class: "on" });
  const taken = [];
  const objects = graph.objects.map((item, i) => drawObject(item, boxes[i]));
  const arrows = graph.relations.map((item, k) => drawArrow(item, boxes, bendOf(graph, k)));
  root.append(...objects, ...arrows.map((arrow) => arrow.group));
  const predicates = graph.relations.map((item, k) =>
    placeLabel(item.predicate, itemGroup("label predicate", item), arrows[k].places, taken, size),
  );
  const titles = graph.objects.map((item, i) =>
    placeLabel(names[i], itemGroup("label", item), boxes[i] && names[i] ? titlePlaces(boxes[i], names[i]) : [], taken, size),
  );
  labels.append(...titles, ...predicates);
  root.append(labels);
  const parts = graph.relations.map((item, k) => [
    arrows[k].group, predicates[k],
    ...[item.subject, item.object].flatMap((i) => [objects[i], titles[i]]),
  ]);
  return { root, parts, arrows: arrows.map((arrow) => arrow.group) };
}

function drawObject(item, box) {
  const group = itemGroup("object", item);
  if (!box) return group;
  const [x1, y1, x2, y2] = box;
  const rect = {
    x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1),
  };
  group.append(svg("rect", { ...rect, class: "casing" }), svg("rect", { ...rect, class: "line" }));
  return group;
}

// Arrows of the same ordered pair bend apart.
function bendOf(graph, k) {
  const { subject, object } = graph.relations[k];
  const before = graph.relations.slice(0, k);
  return before.filter((r) => r.subject === subject && r.object === object).length;
}

function drawArrow(item, boxes, bend) {
  const group = itemGroup("relation", item);
  const [from, to] = [boxes[item.subject], boxes[item.object]];
  if (!from || !to) return { group, places: [] };
  const curve = curveBetween(middle(from), middle(to), bend);
  const path = `M${curve.start} Q${curve.control} ${curve.end}`;
  group.append(
    svg("path", { d: path, class: "casing" }),
    svg("path", { d: path, class: "line" }),
    svg("circle", { cx: curve.start[0], cy: curve.start[1], r: 2.6, class: "tip" }),
    svg("path", { d: tip(curve), class: "tip" }),
  );
  return { group, places: [0.5, 0.38, 0.62, 0.28, 0.72, 0.2].map((t) => along(curve, t)) };
}

function middle([x1, y1, x2, y2]) {
  return [(x1 + x2) / 2, (y1 + y2) / 2];
}

// A quadratic curve that bows to its left, so that two opposite arrows stay apart.
function curveBetween([x1, y1], [x2, y2], bend) {
  if (Math.hypot(x2 - x1, y2 - y1) < 12) [x1, x2] = [x1 - 14, x2 + 14];
  const length = Math.hypot(x2 - x1, y2 - y1);
  const bow = Math.min(0.12 * length + 6, 30) + 18 * bend + (length < 40 ? 22 : 0);
  const control = [(x1 + x2) / 2 + (bow * (y2 - y1)) / length, (y1 + y2) / 2 - (bow * (x2 - x1)) / length];
  return { start: [x1, y1], control, end: [x2, y2] };
}

function along({ start, control, end }, t) {
  return [0, 1].map((i) => (1 - t) ** 2 * start[i] + 2 * t * (1 - t) * control[i] + t * t * end[i]);
}

function tip({ control, end }) {
  const angle = Math.atan2(end[1] - control[1], end[0] - control[0]);
  const corner = (turn) => [end[0] - 9 * Math.cos(angle + turn), end[1] - 9 * Math.sin(angle + turn)];
  return `M${end} L${corner(0.42)} L${corner(-0.42)} Z`;
}

// Middles of a box's name: above its corners, then inside them.
function titlePlaces([x1, y1, x2, y2], name) {
  const half = labelWidth(name) / 2;
  const rise = LABEL_HEIGHT / 2;
  return [
    [x1 + half, y1 - rise], [x1 + half, y1 + rise], [x2 - half, y1 - rise], [x2 - half, y1 + rise],
    [x1 + half, y2 - rise], [x1 + half, y2 + rise], [x2 - half, y2 - rise],
  ];
}

function labelWidth(text) {
  return measure.measureText(text).width + 8;
}

// The first place that is free and inside; without one the label waits until it is pointed at.
function placeLabel(text, group, places, taken, size) {
  if (places.length === 0) return group;
  const width = labelWidth(text);
  const areas = places.map(([x, y]) => ({
    x: Math.max(0, Math.min(x - width / 2, size.width - width)),
    y: Math.max(0, Math.min(y - LABEL_HEIGHT / 2, size.height - LABEL_HEIGHT)),
  }));
  const overlaps = (a, b) =>
    a.x < b.x + b.width && b.x < a.x + width && a.y < b.y + LABEL_HEIGHT && b.y < a.y + LABEL_HEIGHT;
  const free = areas.find((area) => !taken.some((other) => overlaps(area, other)));
  const { x, y } = free ?? areas[0];
  if (free) taken.push({ x, y, width });
  else group.classList.add("crowded-out");
  group.append(
    svg("rect", { x, y, width, height: LABEL_HEIGHT, rx: 2, class: "chip" }),
    svg("text", { x: x + 4, y: y + 11 }, text),
  );
  return group;
}
