"use strict";
// What a reader does with the page: zoom, pan, move along the rows, change the colours, print, take the rows away.
// `stop` lets go of everything, so that `start` can begin anew when the page's content was replaced.
const Page = (() => {
  const root = document.documentElement;
  let plots = [];
  let zoomed = null;
  let listening = new AbortController();

  const stop = () => {
    listening.abort();
    plots.forEach((plot) => plot.destroy());
    plots = [];
  };

  const start = async () => {
    listening = new AbortController();
    const signal = { signal: listening.signal };
    const settings = JSON.parse(document.getElementById("settings").textContent);
    let isFollowing = false;

    const failed = (error) => {
      const note = document.getElementById("trouble");
      note.hidden = false;
      note.textContent = `The charts cannot be drawn in this browser (${error}); the tables below each of them can be read.`;
    };

    let data;
    try {
      data = [];
      for (const run of settings.runs) data.push(await Rows.unpack(run));
    } catch (error) {
      failed(error);
      return;
    }

    // The colours can be changed on every page, whether it has charts or not.
    const redraw = () => plots.forEach((plot) => plot.redraw(false, true));
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", redraw, signal);
    const button = document.getElementById("theme");
    button.hidden = false;
    button.addEventListener("click", () => {
      const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
      root.dataset.theme = isDark ? "light" : "dark";
      redraw();
    });
    document.querySelectorAll("time").forEach((time) => {
      time.textContent = Charts.clock(Date.parse(time.dateTime) / 1000);
    });
    document.querySelectorAll(".zone").forEach((zone) => {
      zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
    });
    if (!settings.charts.length) {
      root.dataset.ready = "yes";
      return;
    }

    const extent = () => {
      const starts = settings.runs.map((run, index) => data[index].timestamp[0] - (settings.overlay ? run.start : 0));
      const ends = settings.runs.map(
        (run, index) => data[index].timestamp[run.rows - 1] - (settings.overlay ? run.start : 0),
      );
      return [Math.min(...starts), Math.max(...ends)];
    };
    const [first, last] = extent();

    const show = (min, max) => {
      const length = Math.min(Math.max(max - min, 1), Math.max(last - first, 1));
      min = Math.min(Math.max(min, first), last - length);
      if (plots.length) plots[0].setScale("x", { min, max: min + length });
    };
    const showAll = () => show(first, last);
    const shown = (u) => [u.scales.x.min, u.scales.x.max];

    const zoom = (u, factor, centre) => {
      const [min, max] = shown(u);
      const at = centre ?? (min + max) / 2;
      show(at - (at - min) * factor, at + (max - at) * factor);
    };
    const pan = (u, share) => {
      const [min, max] = shown(u);
      show(min + (max - min) * share, max + (max - min) * share);
    };

    const events = {
      // One chart's time is every chart's time.
      zoomed(u) {
        const [min, max] = shown(u);
        u.root.parentElement.dataset.shown = `${min} ${max}`;
        if (isFollowing) return;
        isFollowing = true;
        for (const other of plots) if (other !== u && min !== null) other.setScale("x", { min, max });
        isFollowing = false;
        zoomed = min <= first && max >= last ? null : [min, max];
        document.getElementById("reset").disabled = zoomed === null;
      },
      startPan(u, event) {
        const [min, max] = shown(u);
        const perPixel = (max - min) / u.over.clientWidth;
        const move = (moved) => {
          const way = (event.clientX - moved.clientX) * perPixel;
          show(min + way, max + way);
        };
        const end = () => {
          document.removeEventListener("mousemove", move);
          document.removeEventListener("mouseup", end);
        };
        document.addEventListener("mousemove", move);
        document.addEventListener("mouseup", end);
      },
      ready(u) {
        u.over.addEventListener(
          "wheel",
          (event) => {
            if (!event.ctrlKey && !event.shiftKey) return;
            event.preventDefault();
            if (event.shiftKey) pan(u, Math.sign(event.deltaY || event.deltaX) * 0.1);
            else zoom(u, event.deltaY > 0 ? 1.25 : 0.8, u.posToVal(event.offsetX, "x"));
          },
          { passive: false },
        );
      },
    };

    const live = document.getElementById("live");
    const say = (u, chart, index) => {
      const x = u.data[0][index];
      const when = settings.overlay ? Charts.elapsed(x) : Charts.clock(x);
      const values = chart.series.map((series, place) =>
        u.series[place + 1].show ? `${series.label} ${Charts.format(chart.unit, u.data[place + 1][index])}` : "",
      );
      live.textContent = `${when}: ${values.filter(Boolean).join(", ")}`;
    };

    const step = (u, chart, by) => {
      const at = u.cursor.idx ?? (by > 0 ? u.valToIdx(shown(u)[0]) - 1 : u.valToIdx(shown(u)[1]) + 1);
      const index = Math.min(Math.max(at + by, 0), u.data[0].length - 1);
      const [min, max] = shown(u);
      if (u.data[0][index] > max || u.data[0][index] < min) pan(u, by > 0 ? 0.5 : -0.5);
      u.setCursor({ left: u.valToPos(u.data[0][index], "x"), top: u.over.clientHeight / 2 });
      say(u, chart, index);
    };

    const keys = (u, chart) => (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const actions = {
        ArrowLeft: () => (event.shiftKey ? pan(u, -0.2) : step(u, chart, -1)),
        ArrowRight: () => (event.shiftKey ? pan(u, 0.2) : step(u, chart, 1)),
        PageUp: () => step(u, chart, -60),
        PageDown: () => step(u, chart, 60),
        "+": () => zoom(u, 0.6, u.cursor.idx === null ? null : u.data[0][u.cursor.idx]),
        "=": () => zoom(u, 0.6),
        "-": () => zoom(u, 1 / 0.6),
        0: showAll,
        Escape: showAll,
        Home: () => step(u, chart, -u.data[0].length),
        End: () => step(u, chart, u.data[0].length),
      };
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
    };

    try {
      for (const chart of settings.charts) {
        const target = document.getElementById(chart.id);
        const plot = Charts.build(chart, target, settings.runs, data, settings.overlay, events);
        plots.push(plot);
        target.addEventListener("keydown", keys(plot, chart));
        plot.over.addEventListener("dblclick", showAll);
      }
    } catch (error) {
      failed(error);
      return;
    }

    // A canvas keeps its size on paper: on A4 and Letter there is room for this.
    const paperWidth = 620;
    const fit = () =>
      plots.forEach((plot) => {
        const width = root.dataset.printing ? paperWidth : plot.root.parentElement.clientWidth;
        plot.setSize({ width, height: 220 });
      });
    const observer = new ResizeObserver(fit);
    observer.observe(document.querySelector("main"));
    listening.signal.addEventListener("abort", () => observer.disconnect());

    addEventListener(
      "beforeprint",
      () => {
        root.dataset.printing = "yes";
        fit();
        redraw();
      },
      signal,
    );
    addEventListener(
      "afterprint",
      () => {
        delete root.dataset.printing;
        fit();
        redraw();
      },
      signal,
    );

    document.getElementById("reset").addEventListener("click", showAll);
    document.querySelectorAll("button[data-run]").forEach((download) => {
      download.hidden = false;
      download.addEventListener("click", () => {
        const run = settings.runs[Number(download.dataset.run)];
        const blob = new Blob([Rows.csv(run, data[Number(download.dataset.run)])], { type: "text/csv" });
        const link = document.createElement("a");
        link.href = URL.createObjectURL(blob);
        link.download = `${run.file}.csv`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      });
    });
    // A reader who looks at a part keeps it; one who looks at everything sees what has come.
    if (zoomed) show(...zoomed);
    root.dataset.ready = "yes";
  };

  return { start, stop };
})();
Page.start();
