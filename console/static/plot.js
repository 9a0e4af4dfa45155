// What all curves share: colours, numbers, axes.
"use strict";
const Plot = (() => {
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const mixed = (colour, percent) => `color-mix(in srgb, ${colour} ${percent}%, transparent)`;
  // Numbers and times, as console/views.py writes them.
  const number = (v) => {
    if (v == null) return "-";
    if (Number.isInteger(v) || Math.abs(v) >= 1000) return Math.round(v).toLocaleString("en");
    const short = Number(v.toPrecision(3));
    return Math.abs(short) < .001 ? short.toExponential() : String(short);
  };
  const duration = (s) => {
    const minutes = Math.round(s / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
    if (s < 60) return `${Math.round(s)} s`;
    if (days) return `${days} d ${hours % 24} h`;
    return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
  };
  function smooth(values) { // a running mean, that follows within some points
    const width = Math.max(3, Math.round(values.length / 40));
    let mean = null;
    return values.map((v) => {
      if (v == null) return null;
      mean = mean == null ? v : mean + (v - mean) * 2 / (width + 1);
      return mean;
    });
  }

  function axes(named) {
    const axis = {
      stroke: style("--muted"), font: `11px ${style("--font")}`, grid: {stroke: style("--rule"), width: 1}, ticks: {show: false},
    };
    return [
      {...axis, size: 28, gap: 6, space: 70, values: (_, ticks) => ticks.map(named)},
      {...axis, size: 52, gap: 6, space: 34, values: (_, ticks) => ticks.map(number)},
    ];
  }

  return {style, mixed, number, duration, smooth, axes};
})();
