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
    if (days) return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
    if (!hours) return `${minutes} min`;
    return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  };
  const FEW = 30; // of so few points each is seen
  function smooth(values) { // a running mean, that follows within some points
    if (values.length < FEW) return values;
    const width = Math.max(3, Math.round(values.length / 40));
    let mean = null;
    return values.map((v) => {
      if (v == null) return null;
      mean = mean == null ? v : mean + (v - mean) * 2 / (width + 1);
      return mean;
    });
  }

  const MINUTE = 60, HOUR = 3600, DAY = 86400;
  const spans = [1, 5, 10, 30, MINUTE, 5 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR, 12 * HOUR, DAY,
    2 * DAY, 7 * DAY, 28 * DAY];

  function axes(named) {
    const axis = {
      stroke: style("--muted"), font: `11px ${style("--font")}`, grid: {stroke: style("--rule"), width: 1}, ticks: {show: false},
    };
    return [
      {...axis, size: 28, gap: 6, space: 70, ...(named === duration ? {incrs: spans} : {}), values: (_, ticks) => ticks.map(named)},
      {...axis, size: 52, gap: 6, space: 34, values: (_, ticks) => ticks.map(number)},
    ];
  }

  return {style, mixed, number, duration, smooth, axes};
})();
