"use strict";
// One uPlot for each chart; they share the time that is shown and the place of the pointer.
const Charts = (() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (series) => css(series.role === "run" ? `--run-${series.run % 8}` : `--${series.colour}`);
  const reduced = (text, digits) =>
    Number(text)
      .toPrecision(digits)
      .replace(/(\.\d*?)0+$/, "$1")
      .replace(/\.$/, "");

  const sized = (value, units, step) => {
    let unit = 0;
    while (value >= step * 0.9995 && unit < units.length - 1) {
      value /= step;
      unit++;
    }
    return `${value >= 100 ? value.toFixed(0) : reduced(value, 3)} ${units[unit]}`;
  };

  const formats = {
    cores: (value) => `${value.toFixed(2)} cores`,
    GPUs: (value) => `${value.toFixed(2)} GPUs`,
    MiB: (value) => sized(value, ["MiB", "GiB", "TiB"], 1024),
    "bytes/s": (value) => sized(value, ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"], 1000),
  };
  const shortFormats = { cores: (value) => reduced(value, 3), GPUs: (value) => reduced(value, 3) };
  const format = (unit, value) => (value === null || value === undefined ? "–" : (formats[unit] || String)(value));

  const pad = (number) => String(number).padStart(2, "0");
  const elapsed = (seconds) => {
    const sign = seconds < 0 ? "-" : "";
    const whole = Math.round(Math.abs(seconds));
    return `${sign}${Math.floor(whole / 3600)}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}`;
  };
  const clock = (stamp) => {
    const date = new Date(stamp * 1000);
    const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
    return `${day} ${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  };

  // A day, or a time of day; the first of a day is the day.
  const tick = (step) => (stamp, place, splits) => {
    const [day, time] = clock(stamp).split(" ");
    if (step >= 86400 || (place > 0 && clock(splits[place - 1]).split(" ")[0] !== day)) return day;
    return step >= 60 ? time.slice(0, 5) : time;
  };
  const spans = [0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 14400, 28800, 86400, 604800];
  // Steps of memory are powers of two.
  const powers = Array.from({ length: 40 }, (_, power) => 2 ** (power - 6));

  // Values of a series at the run's rows; a gap gets a row of its own that knows nothing, so that no line crosses it.
  const seriesOf = (series, run, columns) => {
    const times = columns.timestamp;
    const values = columns[series.column];
    if (!series.rate) return values;
    return values.map((value, row) => {
      if (value === null) return null;
      const length = run.lengths[row] ?? (row ? times[row] - times[row - 1] : run.interval);
      return length > 0 ? value / length : null;
    });
  };

  const tableOf = (chart, runIndex, runs, data, isOverlay) => {
    const run = runs[runIndex];
    const columns = data[runIndex];
    const chosen = chart.series.filter((series) => series.run === runIndex);
    const lists = chosen.map((series) => seriesOf(series, run, columns));
    const shift = isOverlay ? run.start : 0;
    const x = [];
    const ys = lists.map(() => []);
    let gap = 0;
    columns.timestamp.forEach((time, row) => {
      while (gap < run.gaps.length && run.gaps[gap][0] < time) {
        if (row) {
          x.push((run.gaps[gap][0] + run.gaps[gap][1]) / 2 - shift);
          ys.forEach((y) => y.push(null));
        }
        gap++;
      }
      x.push(time - shift);
      ys.forEach((y, index) => y.push(lists[index][row]));
    });
    return [x, ...ys];
  };

  const yRange = (chart) => (u, low, high) => {
    let top = high > 0 ? high : 1;
    // A limit far above everything would press the lines to the floor: then it is only told.
    for (const line of chart.lines) if (line.value <= top * 2.5) top = Math.max(top, line.value);
    return [0, top * 1.06];
  };

  const drawGaps = (u, bands) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.fillStyle = css("--gap");
    for (const [from, to] of bands) {
      const left = Math.max(bbox.left, u.valToPos(from, "x", true));
      const right = Math.min(bbox.left + bbox.width, u.valToPos(to, "x", true));
      if (right > bbox.left && left < bbox.left + bbox.width)
        ctx.fillRect(left, bbox.top, Math.max(right - left, devicePixelRatio), bbox.height);
    }
    ctx.restore();
  };

  // Text that can be read whatever is drawn below it.
  const drawLabel = (ctx, text, x, y) => {
    ctx.save();
    ctx.strokeStyle = css("--card");
    ctx.lineWidth = 4 * devicePixelRatio;
    ctx.lineJoin = "round";
    ctx.setLineDash([]);
    ctx.strokeText(text, x, y);
    ctx.fillText(text, x, y);
    ctx.restore();
  };

  const drawLines = (u, chart) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.lineWidth = devicePixelRatio;
    let off = 0;
    for (const line of chart.lines) {
      const y = Math.round(u.valToPos(line.value, "y", true)) + 0.5;
      const above = 5 * devicePixelRatio;
      ctx.strokeStyle = ctx.fillStyle = css(`--${line.colour}`);
      if (y < bbox.top - 1) {
        ctx.textAlign = "left";
        drawLabel(ctx, `↑ ${line.label}`, bbox.left + off, bbox.top - above);
        off += ctx.measureText(`↑ ${line.label}`).width + 16 * devicePixelRatio;
        continue;
      }
      ctx.textAlign = "right";
      ctx.setLineDash(line.dashed ? [6 * devicePixelRatio, 4 * devicePixelRatio] : []);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      drawLabel(ctx, line.label, bbox.left + bbox.width, y - above);
    }
    ctx.restore();
  };

  const seriesOptions = (chart) =>
    chart.series.map((series) => ({
      label: series.label,
      show: !series.hidden,
      scale: "y",
      width: series.role === "host" ? 1 : 1.5,
      stroke: () => colour(series),
      fill: series.filled ? () => colour(series) + (series.role === "host" ? "26" : "4d") : undefined,
      dash: series.role === "host" && !series.filled ? [3, 3] : undefined,
      points: { show: (u) => u.data[0].length < 3 },
      value: (u, value) => format(chart.unit, value),
    }));

  const axisOptions = (chart, isOverlay) => {
    const common = {
      stroke: () => css("--axis"),
      grid: { stroke: () => css("--grid"), width: 1 },
      ticks: { show: false },
    };
    const x = {
      ...common,
      space: 60,
      size: 30,
      values: (u, splits, axis, space, step) => splits.map(isOverlay ? elapsed : tick(step)),
    };
    if (isOverlay) x.incrs = spans;
    const short = shortFormats[chart.unit] || formats[chart.unit];
    return [
      x,
      {
        ...common,
        scale: "y",
        size: 76,
        values: (u, splits) => splits.map((value) => short(value)),
        ...(chart.unit === "MiB" && { incrs: powers }),
      },
    ];
  };

  const build = (chart, target, runs, data, isOverlay, events) => {
    const tables = runs.map((_, index) => tableOf(chart, index, runs, data, isOverlay));
    const joined = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const bands = isOverlay ? [] : runs[0].gaps;
    // Runs have rows at different times. `join` leaves a hole where a run has no row, and uPlot draws across holes.
    const options = {
      width: target.clientWidth,
      height: 220,
      padding: [18, 28, 0, 0],
      cursor: {
        sync: {
          key: "runs",
          scales: ["x", null],
          filters: { pub: (type) => type.startsWith("mousem") || type === "mouseleave" },
        },
        drag: { x: true, y: false },
        points: { size: 7 },
        bind: {
          mousedown: (u, element, handler) => (event) => (event.shiftKey ? events.startPan(u, event) : handler(event)),
        },
      },
      scales: { x: { time: !isOverlay }, y: { range: yRange(chart) } },
      axes: axisOptions(chart, isOverlay),
      series: [
        {
          label: isOverlay ? "since start" : "time",
          value: (u, value) => (value === null ? "–" : isOverlay ? elapsed(value) : clock(value)),
        },
        ...seriesOptions(chart),
      ],
      hooks: {
        drawClear: [(u) => drawGaps(u, bands)],
        draw: [(u) => drawLines(u, chart)],
        setScale: [(u, key) => key === "x" && events.zoomed(u)],
        ready: [events.ready],
      },
    };
    return new uPlot(options, joined, target);
  };

  return { build, elapsed, clock, format };
})();
