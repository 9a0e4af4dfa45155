// Runs over each other: each figure draws one number, each run has its colour.
"use strict";
(async () => {
  const {style, number, smooth, mixed, axes} = Plot;
  const runs = [...document.querySelectorAll("[data-curves]")].map((link) => link.dataset.curves);
  const copy = document.getElementById("curves"); // in a copy, which has no server to ask
  const answers = copy ? JSON.parse(copy.textContent) : await Promise.all(runs.map(async (url) => (await fetch(url)).json()));
  const figures = [...document.querySelectorAll("figure[data-key]")];
  const colour = (i) => style(`--s${i % 8 + 1}`);

  function tables(figure) { // of each run: steps, the number, and its running mean
    return answers.map((answer) => {
      const {mean} = answer[figure.dataset.source], values = mean[figure.dataset.key] ?? [];
      const steps = values.length ? mean.step : [];
      return [steps, values, figure.dataset.source === "steps" ? smooth(values) : values];
    });
  }

  function series(figure) {
    const points = figure.dataset.source === "evaluations" ? {show: true, size: 6, fill: style("--card")} : {show: false};
    return [{}, ...runs.flatMap((_, i) => [
      {stroke: mixed(colour(i), 22), width: 1, points: {show: false}, spanGaps: true},
      {stroke: colour(i), width: 1.8, points, spanGaps: true},
    ])];
  }

  function draw(figure) {
    const plot = figure.querySelector(".plot"), found = tables(figure);
    figure.hidden = found.every(([, values]) => values.every((v) => v == null));
    if (figure.hidden) return;
    plot.replaceChildren();
    const said = [...figure.querySelectorAll(".legend b")];
    new uPlot({
      width: plot.clientWidth, height: 200, padding: [8, 14, 0, 0], legend: {show: false},
      cursor: {sync: {key: "runs", scales: ["x", null]}, y: false, points: {size: 6}},
      scales: {x: {time: false}}, axes: axes(number), series: series(figure),
      hooks: {setCursor: [(u) => runs.forEach((_, i) => {
        said[i].textContent = u.cursor.idx == null ? "" : number(u.data[2 * i + 1][u.cursor.idx]);
      })]},
    }, uPlot.join(found), plot);
  }

  const redraw = () => figures.forEach(draw);
  redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("resize", redraw);
})();
