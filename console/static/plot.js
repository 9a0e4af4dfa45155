// What all curves share: colours, numbers, axes.
"use strict";
const Plot = (() => {
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const mixed = (colour, percent) => `color-mix(in srgb, ${colour} ${percent}%, transparent)`;
  // Numbers and times, as console/views.py writes them.
  const number = (v) => {
    if (v == null) return "-";
    if (Math.abs(v) >= 1e15) return v.toExponential(3);
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

  const wholes = [...Array(15).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));

  const digitsOf = (apart) => { // after the point, for multiples of it to be told apart
    const first = Math.max(0, -Math.floor(Math.log10(apart) + 1e-9));
    const shifted = apart * 10 ** first;
    return Math.min(20, first + (Math.abs(shifted - Math.round(shifted)) > 1e-6));
  };
  function ticked(ticks, apart) { // values at an axis: as many digits as their distance needs
    const largest = Math.max(...ticks.map(Math.abs));
    if (!ticks.length || !(apart > 0)) return ticks.map(number);
    if (largest < .001 || largest >= 1e15) {
      const unit = 10 ** Math.floor(Math.log10(largest)), digits = digitsOf(apart / unit);
      return ticks.map((v) => v ? v.toExponential(digits) : "0");
    }
    const digits = digitsOf(apart);
    return ticks.map((v) => v.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits}));
  }

  const clocked = (s, apart) => // a time at an axis
    apart < MINUTE && s >= MINUTE ? `${Math.floor(s / MINUTE)} min ${Math.round(s % MINUTE)} s` : duration(s);

  function axes(named) {
    const axis = {
      stroke: style("--muted"), font: `11px ${style("--font")}`, grid: {stroke: style("--rule"), width: 1}, ticks: {show: false},
    };
    return [
      {
        ...axis, size: 28, gap: 6, space: 70, incrs: named === duration ? spans : wholes,
        values: (_, ticks, axis, space, apart) => ticks.map((x) => named === duration ? clocked(x, apart) : named(x)),
      },
      {
        ...axis, gap: 6, space: 34,
        size: (_, values) => Math.max(52, 14 + 6 * Math.max(0, ...(values ?? []).map((value) => value.length))),
        values: (_, ticks, axis, space, apart) => ticked(ticks, apart),
      },
    ];
  }

  return {style, mixed, number, duration, smooth, axes};
})();
