"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const one = (id) => document.getElementById(id);
  const seconds = (t) => t.toFixed(1) + " s";

  /* Choosing a sentence: the table's row, the map and the timeline's heading go together. */
  const choose = one("choose");
  let chosen = 0;
  let repaint = () => {};
  function pick(index) {
    chosen = index;
    repaint();
    all("[data-query]").forEach((e) => e.classList.toggle("chosen", Number(e.dataset.query) === index));
    all("[data-pick]").forEach((e) => e.setAttribute("aria-pressed", String(Number(e.dataset.pick) === index)));
    all("[data-map]").forEach((e) => { e.hidden = Number(e.dataset.map) !== index; });
    if (choose) choose.value = String(index);
  }
  if (choose) choose.addEventListener("change", () => pick(Number(choose.value)));
  if (data.queries.length) pick(0);

  /* The line over the timelines, and the sentences whose best moment is now (with boxes: the chosen sentence). */
  const boxed = typeof boxesOf === "function";
  function tell(time) {
    one("head").style.left = (100 * Math.min(time / data.duration_s, 1)) + "%";
    const found = boxed ? data.queries.slice(chosen, chosen + 1)
      : data.queries.filter((q) => q.best && q.best[0] <= time && time < q.best[1]);
    one("now").textContent = found.map((q) => q.sentence).join(" · ");
  }

  let seek = null;
  if (data.film) seek = playerOf(data.film, tell);

  /* The player of frames, which are cut from one sheet. */
  if (data.video) {
    const video = data.video, times = video.times_s, last = data.duration_s;
    const screen = one("screen"), scrub = one("scrub"), clock = one("clock");
    const play = one("play"), pen = screen.getContext("2d");
    /* Boxes are drawn finer than the frames' pixels. */
    const boxes = boxed ? boxesOf(data, screen) : null;
    const zoom = boxes ? Math.max(1, Math.round(768 / video.width)) : 1;
    screen.width = video.width * zoom;
    screen.height = video.height * zoom;
    pen.imageSmoothingEnabled = zoom === 1;
    screen.classList.toggle("small", video.width <= 160);
    const sheet = new Image();
    let time = 0, shown = -1, stop = last, running = false, before = 0;

    function frameAt(t) {
      let low = 0, high = times.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (times[middle] <= t + 1e-6) low = middle; else high = middle - 1;
      }
      return low;
    }
    function show(t) {
      time = Math.min(Math.max(t, 0), last);
      const frame = frameAt(time);
      if (frame !== shown && sheet.complete && sheet.naturalWidth) {
        shown = frame;
        pen.drawImage(sheet, (frame % video.columns) * video.width, Math.floor(frame / video.columns) * video.height,
          video.width, video.height, 0, 0, screen.width, screen.height);
        if (boxes) boxes.paint(pen, frame, chosen);
      }
      scrub.value = String(time);
      scrub.setAttribute("aria-valuetext", seconds(time));
      clock.textContent = seconds(time) + " / " + seconds(last);
      tell(time);
    }
    function run(on) {
      running = on;
      play.classList.toggle("playing", on);
      play.setAttribute("aria-label", on ? "Pause" : "Play");
      if (on) {
        before = performance.now();
        requestAnimationFrame(step);
      }
    }
    function step(at) {
      if (!running) return;
      const next = time + Math.max(0, at - before) / 1000;
      before = at;
      show(Math.min(next, stop));
      if (next >= stop) run(false); else requestAnimationFrame(step);
    }
    play.addEventListener("click", () => {
      if (!running) {
        stop = last;
        if (time >= last) show(0);
      }
      run(!running);
    });
    scrub.addEventListener("input", () => { stop = last; show(Number(scrub.value)); });
    /* A span plays from its start to its end. */
    seek = (start, end) => {
      show(start);
      stop = Math.min(Math.max(end, start), last);
      if (!running) run(stop > start);
    };
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const idle = event.target === document.body || event.target === play || event.target === scrub;
      if (event.key === " " && idle && event.target !== play) {
        event.preventDefault();
        play.click();
      } else if (event.target === document.body && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
        stop = last;
        show(time + (event.key === "ArrowLeft" ? -0.5 : 0.5));
      }
    });
    repaint = () => { shown = -1; show(time); };
    if (boxes) boxes.watch(repaint);
    sheet.addEventListener("load", () => show(time));
    sheet.src = video.sheet;
    show(0);
  }

  function spanOf(element) {
    return [Number(element.dataset.seek), Number(element.dataset.end)];
  }
  document.addEventListener("click", (event) => {
    const row = event.target.closest("[data-query]");
    if (row) pick(Number(row.dataset.query));
    const target = event.target.closest("[data-seek]");
    if (target && seek) seek(...spanOf(target));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    const target = event.target.closest("svg [data-seek]");
    if (!target) return;
    event.preventDefault();
    pick(Number(target.closest("[data-query]").dataset.query));
    if (seek) seek(...spanOf(target));
  });

  /* The map tells the cell under the pointer; a click plays its moment. */
  const readout = one("cell"), hint = readout && readout.textContent;
  const plot = data.plot;
  all("[data-map]").forEach((box) => {
    const map = data.queries[Number(box.dataset.map)].map, svg = box.querySelector("svg");
    if (!map || !svg) return;
    const n = map.num_clips, bytes = atob(map.scores);
    function cellAt(event) {
      const area = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / area.width;
      const j = Math.floor(((event.clientX - area.left) * scale - plot.left) / plot.side * n);
      const i = Math.floor(((event.clientY - area.top) * scale - plot.top) / plot.side * n);
      if (i < 0 || j >= n || i > j) return null;
      const at = 2 * (i * n - i * (i - 1) / 2 + j - i);
      const step = bytes.charCodeAt(at) + 256 * bytes.charCodeAt(at + 1);
      const score = step === 65535 ? null : map.low + (map.high - map.low) * step / 65534;
      return { start: map.start_s + i * map.duration_s / n, end: map.start_s + (j + 1) * map.duration_s / n, score };
    }
    svg.addEventListener("pointermove", (event) => {
      const cell = cellAt(event);
      readout.textContent = !cell ? hint : cell.start.toFixed(1) + "–" + seconds(cell.end)
        + (cell.score === null ? " · not a proposal" : " · score " + cell.score.toFixed(3));
    });
    svg.addEventListener("pointerleave", () => { readout.textContent = hint; });
    svg.addEventListener("click", (event) => {
      const cell = cellAt(event);
      if (cell && cell.score !== null && seek) seek(cell.start, cell.end);
    });
  });
})();
