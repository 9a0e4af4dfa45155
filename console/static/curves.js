// The curves of a run: one cursor over all, healthy ranges behind them, events as marks.
"use strict";
(() => {
  const run = document.getElementById("run");
  const {style, mixed, number, duration, smooth, axes} = Plot;
  let along = new URLSearchParams(location.search).get("along") === "time" ? "time" : "step";
  let data = null; // what curves.json has said so far
  let charts = [];
  let moving = false; // while one chart's zoom is given to the others

  const place = (x) => along === "time" ? `after ${duration(x)}` : `step ${number(Math.round(x))}`;

  const first = (table) => table.mean.time?.find((t) => t != null) ?? Infinity;
  function start() { // an evaluation may come before the first step
    const at = Math.min(first(data.steps), first(data.evaluations));
    return at === Infinity ? 0 : at;
  }
  function xs(table) {
    const found = table.mean[along] ?? [];
    let last = 0; // of a row that says no time
    return along === "time" ? found.map((t) => last = t == null ? last : t - start()) : found;
  }

  function whole() { // what all curves together reach over
    const all = [data.steps, data.evaluations].flatMap(xs).filter((x) => x != null);
    const min = all.reduce((a, b) => Math.min(a, b), Infinity), max = all.reduce((a, b) => Math.max(a, b), -Infinity);
    return all.length ? {min, max: max > min ? max : min + 1} : {min: 0, max: 1};
  }

  class Chart {
    constructor(figure, index) {
      const set = figure.dataset;
      this.figure = figure;
      this.index = index;
      this.keys = JSON.parse(set.keys);
      this.source = set.source;
      this.stacked = set.kind === "stacked";
      this.lone = this.keys.length === 1 && this.source === "steps";
      this.bound = ["low", "high", "healthyLow", "healthyHigh"].reduce((all, name) =>
        ({...all, [name]: set[name] === undefined ? null : Number(set[name])}), {});
      this.hidden = new Set();
      this.plot = null;
      this.makeLegend();
      figure.querySelector(".plot").addEventListener("keydown", (event) => this.key(event));
    }

    colour(i) { return style(`--s${i % 8 + 1}`); }

    makeLegend() {
      this.values = [];
      this.said = document.createElement("output");
      this.figure.querySelector("h3").after(this.said);
      const list = document.createElement("ul");
      list.className = "legend";
      this.keys.forEach((key, i) => {
        const item = document.createElement("li"), button = document.createElement("button");
        const mark = document.createElement("i"), value = document.createElement("b");
        button.type = "button";
        button.setAttribute("aria-pressed", "true");
        mark.className = `mark s${i % 8 + 1}`;
        button.append(mark, key.split("/").pop().replaceAll("_", " "), value);
        button.addEventListener("click", () => this.toggle(i, button));
        this.values.push(value);
        item.append(button);
        list.append(item);
      });
      this.figure.append(list);
    }

    toggle(i, button) {
      this.hidden.has(i) ? this.hidden.delete(i) : this.hidden.add(i);
      button.setAttribute("aria-pressed", String(!this.hidden.has(i)));
      this.draw(); // what is stacked stands on what is left
    }

    raw(key) { return data[this.source].mean[key] ?? []; }

    columns() { // for each key: lines draws raw and smooth, stacked the sum so far
      const table = data[this.source], x = xs(table), none = x.map(() => null);
      let below = x.map(() => 0);
      const columns = this.keys.flatMap((key, i) => {
        const values = this.raw(key);
        if (this.source === "evaluations") return [values, ...this.interval(key, x)];
        if (!this.stacked) return [values, smooth(values)];
        if (!this.hidden.has(i)) below = below.map((sum, at) => sum + (values[at] ?? 0));
        return [below];
      });
      const [key] = this.keys, bounds = this.lone ? [table.low[key] ?? none, table.high[key] ?? none] : [];
      return [x, ...columns, ...bounds];
    }

    interval(key, x) {
      const none = x.map(() => null);
      return ["low", "high"].map((end) => this.raw(`intervals/${key}/${end}`)).map((v) => v.length ? v : none);
    }

    series() {
      const line = (stroke, more = {}) => ({stroke, width: 1.6, points: {show: false}, spanGaps: true, ...more});
      const hollow = {show: true, size: 6, fill: style("--card"), width: 1.6};
      const series = this.keys.flatMap((_, i) => {
        const show = !this.hidden.has(i), colour = this.colour(i);
        if (this.stacked) return [line(colour, {show, width: 1, fill: i ? undefined : this.tint(0)})];
        if (this.source === "evaluations") {
          return [line(colour, {show, points: hollow}), line("transparent", {show}), line("transparent", {show})];
        }
        return [line(mixed(colour, this.keys.length > 1 ? 16 : 32), {show, width: 1}), line(colour, {show, width: 1.8})];
      });
      return [{}, ...series, ...(this.lone ? [line("transparent"), line("transparent")] : [])];
    }

    tint(i) { return mixed(this.colour(i), 45); }

    bands() {
      if (this.lone) return [{series: [4, 3], fill: mixed(this.colour(0), 14)}];
      if (this.source === "evaluations") {
        return this.keys.map((_, i) => ({series: [3 * i + 3, 3 * i + 2], fill: mixed(this.colour(i), 14)}));
      }
      return this.stacked ? this.keys.slice(1).map((_, i) => ({series: [i + 2, i + 1], fill: this.tint(i + 1)})) : [];
    }

    range(low, high) {
      const {low: least, high: most, healthyLow, healthyHigh} = this.bound;
      if (low == null || high == null) return [least ?? 0, most ?? 1];
      low = Math.min(low, least ?? low);
      high = Math.max(high, most ?? high);
      if (low === 0 && high === 0) high = 1;
      const spread = high - low || Math.abs(high) || 1; // a bound that is near is shown
      if (healthyHigh != null && healthyHigh > high && healthyHigh - high < spread * .5) high = healthyHigh;
      if (healthyLow != null && healthyLow < low && low - healthyLow < spread * .5) low = healthyLow;
      const pad = (high - low || Math.abs(high) || 1) * .06;
      return [least === low ? low : low - pad, most === high ? high : high + pad];
    }

    healthy(u) { // the range that the documentation calls healthy
      const {healthyLow, healthyHigh} = this.bound;
      if (healthyLow == null && healthyHigh == null) return;
      const {left, top, width, height} = u.bbox, {min, max} = u.scales.y;
      const at = (v) => u.valToPos(Math.min(max, Math.max(min, v)), "y", true);
      const upper = healthyHigh == null ? top : at(healthyHigh), lower = healthyLow == null ? top + height : at(healthyLow);
      u.ctx.save();
      u.ctx.fillStyle = mixed(style("--healthy"), 9);
      u.ctx.fillRect(left, upper, width, lower - upper);
      u.ctx.strokeStyle = mixed(style("--healthy"), 45);
      u.ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
      for (const [bound, y] of [[healthyHigh, upper], [healthyLow, lower]]) {
        if (bound == null || bound <= min || bound >= max) continue;
        u.ctx.beginPath();
        u.ctx.moveTo(left, y);
        u.ctx.lineTo(left + width, y);
        u.ctx.stroke();
      }
      u.ctx.restore();
    }

    marks(u) {
      const {left, top, width, height} = u.bbox;
      u.ctx.save();
      for (const event of shownEvents(u)) {
        const x = u.valToPos(eventX(event), "x", true);
        u.ctx.fillStyle = u.ctx.strokeStyle = style(event.bad ? "--wrong" : "--muted");
        u.ctx.globalAlpha = .35;
        u.ctx.fillRect(x - devicePixelRatio / 2, top, devicePixelRatio, height);
        u.ctx.globalAlpha = .9;
        u.ctx.beginPath();
        u.ctx.arc(x, top + 3 * devicePixelRatio, 2.5 * devicePixelRatio, 0, 7);
        u.ctx.fill();
      }
      u.ctx.restore();
    }

    draw() {
      const plot = this.figure.querySelector(".plot");
      this.plot?.destroy();
      this.plot = new uPlot({
        width: plot.clientWidth, height: 200, padding: [8, 14, 0, 0], legend: {show: false},
        cursor: {sync: {key: "run", scales: ["x", null]}, y: false, drag: {x: true, y: false, dist: 6}, points: {size: 6, fill: (u, i) => u.series[i].stroke(u, i)}, bind: {dblclick: () => showAll}},
        scales: {x: {time: false}, y: {range: (_, low, high) => this.range(low, high)}},
        axes: axes(along === "time" ? duration : number),
        series: this.series(), bands: this.bands(),
        hooks: {
          drawAxes: [(u) => this.healthy(u)],
          draw: [(u) => this.marks(u)],
          setCursor: [(u) => this.say(u.cursor.idx)],
          setScale: [(u, key) => key === "x" && share(this, u)],
        },
      }, this.columns(), plot);
      this.show(zoom ?? whole());
      this.say(null);
    }

    update() {
      if (!this.plot) return this.draw();
      this.plot.setData(this.columns(), false);
      this.show(zoom ?? whole());
      this.say(this.plot.cursor.idx);
    }

    show({min, max}) { this.plot.setScale("x", {min, max}); }

    say(at) {
      const x = this.plot?.data[0] ?? [];
      const event = at == null ? null : near(this.plot, at);
      this.said.textContent = event ? event.text : at == null ? "" : place(x[at]);
      this.keys.forEach((key, i) => {
        const values = this.raw(key);
        const value = at == null ? values.findLast((v) => v != null) : values[at];
        this.values[i].textContent = number(value);
      });
    }

    key(event) {
      const step = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity}[event.key];
      if (step === undefined || !this.plot) return;
      event.preventDefault();
      const x = this.plot.data[0], last = x.length - 1, from = this.plot.cursor.idx ?? last;
      const at = Math.min(last, Math.max(0, from + step * (event.shiftKey ? 10 : 1)));
      this.plot.setCursor({left: this.plot.valToPos(x[at], "x"), top: 10}, true, true);
    }
  }

  const eventX = (event) => along === "time" ? event.time - start() : event.step;
  function shownEvents(u) { // kinds that come with every step would hide all others
    const {min, max} = u.scales.x;
    const inside = data.events.filter((event) => eventX(event) >= min && eventX(event) <= max);
    const counts = Object.groupBy(inside, (event) => event.kind);
    const points = u.data[0].filter((x) => x >= min && x <= max).length;
    const most = Math.max(1, Math.min(40, points / 3));
    return inside.filter((event) => event.bad || counts[event.kind].length <= most);
  }
  function near(u, at) {
    const x = u.valToPos(u.data[0][at], "x");
    return shownEvents(u).findLast((event) => Math.abs(u.valToPos(eventX(event), "x") - x) < 5);
  }

  let zoom = null;
  function showAll() {
    zoom = null;
    for (const chart of charts) if (chart.plot) chart.show(whole());
  }
  function share(from, u) {
    if (moving || !from.plot) return;
    const {min, max} = u.scales.x, all = whole();
    if (min == null) return;
    zoom = min <= all.min && max >= all.max ? null : {min, max};
    moving = true;
    for (const chart of charts) if (chart !== from && chart.plot) chart.show({min, max});
    moving = false;
  }

  function merge(news) {
    if (!data || news.steps.start === 0) {
      data = news;
      return;
    }
    for (const part of ["mean", "low", "high"]) {
      const olds = data.steps[part];
      for (const [key, values] of Object.entries(news.steps[part])) {
        olds[key] = [...(olds[key] ?? Array(news.steps.start).fill(null)).slice(0, news.steps.start), ...values];
      }
    }
    data = {...news, steps: data.steps};
  }

  let asking = false, again = false;
  async function refresh() {
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    try {
      const copy = document.getElementById("curves"); // in a copy, which has no server to ask
      const asked = copy ?? await fetch(`${run.dataset.curves}?since=${data?.mark ?? ""}`);
      if (copy || asked.ok) {
        merge(copy ? JSON.parse(copy.textContent) : await asked.json());
        if (!charts.length && data.steps.mean.step) location.reload(); // the first step has come
        moving = true;
        for (const chart of charts) chart.update();
        moving = false;
      }
    } finally {
      asking = false;
    }
    if (again) {
      again = false;
      refresh();
    }
  }

  function redraw() {
    if (!data) return;
    moving = true;
    for (const chart of charts) chart.draw();
    moving = false;
  }

  charts = [...document.querySelectorAll("figure[data-keys]")].map((figure, i) => new Chart(figure, i));
  for (const choice of document.querySelectorAll("input[name=along]")) {
    choice.checked = choice.value === along;
    choice.addEventListener("change", () => {
      along = choice.value;
      zoom = null;
      // A browser lets no page from disk change its address.
      if (location.protocol !== "file:") history.replaceState(null, "", along === "time" ? "?along=time" : location.pathname);
      redraw();
    });
  }
  const watcher = new ResizeObserver((entries) => {
    for (const {target} of entries) {
      const chart = charts.find((each) => each.figure === target.closest("figure"));
      if (chart?.plot && target.clientWidth) chart.plot.setSize({width: target.clientWidth, height: 200});
    }
  });
  for (const chart of charts) watcher.observe(chart.figure.querySelector(".plot"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.addEventListener("htmx:sseOpen", (event) => {
    event.detail.source.addEventListener("steps", (message) => message.data !== data?.mark && refresh());
  });
  refresh();
})();
