"use strict";
(() => {
  const STEP = 100;
  const one = (id) => document.getElementById(id);
  const rows = JSON.parse(one("data").textContent).rows.map(([video, sentence, duration, truth, moments, iou]) =>
    ({ video, sentence, duration, truth, moments, iou, text: (sentence + "\n" + video).toLowerCase() }));
  const body = one("rows"), more = one("more"), count = one("count"), search = one("search"), only = one("only");

  const keys = {
    query: (r) => r.sentence.toLowerCase(),
    predicted: (r) => (r.moments.length ? r.moments[0][0] : Infinity),
    true: (r) => (r.truth.length ? r.truth[0][0] : Infinity),
    iou: (r) => r.iou,
    score: (r) => (r.moments.length ? r.moments[0][2] : -Infinity),
  };
  let key = "iou", down = false, found = rows, shown = 0;

  function make(name, kind, words) {
    const element = document.createElement(name);
    if (kind) element.className = kind;
    if (words !== undefined) element.textContent = words;
    return element;
  }
  const figure = (x) => (x === null || x === undefined ? "–" : x.toFixed(2));
  const span = (start, end) => start.toFixed(1) + "–" + end.toFixed(1) + " s";

  function bar(lanes, kind, start, end, duration, words) {
    const element = make("i", kind);
    const from = Math.min(Math.max(start / duration, 0), 1), to = Math.min(Math.max(end / duration, from), 1);
    element.style.left = 100 * from + "%";
    element.style.width = 100 * (to - from) + "%";
    element.title = words;
    lanes.append(element);
  }
  function line(r) {
    const row = make("tr"), query = make("td", "query", r.sentence), first = r.moments[0];
    query.append(make("small", "", r.video));
    const predicted = make("td"), truth = make("td"), lane = make("td"), lanes = make("div", "lanes");
    predicted.append(first ? make("span", "span pred", span(first[0], first[1])) : "none");
    r.truth.forEach((t) => {
      truth.append(make("span", "span true", span(t[0], t[1])), " ");
      bar(lanes, "t", t[0], t[1], r.duration, "true: " + span(t[0], t[1]));
    });
    r.moments.forEach((m, rank) => bar(lanes, rank ? "q" : "p", m[0], m[1], r.duration,
      "rank " + (rank + 1) + ": " + span(m[0], m[1]) + ", score " + figure(m[2])));
    lanes.setAttribute("role", "img");
    lanes.setAttribute("aria-label", "Spans within " + r.duration.toFixed(1) + " s");
    lane.append(lanes);
    const iou = make("td", "num", r.iou.toFixed(2)), meter = make("i", "meter");
    meter.style.setProperty("--v", r.iou);
    iou.append(meter);
    row.append(query, predicted, truth, lane, iou, make("td", "num", figure(first && first[2])));
    return row;
  }
  function add() {
    const block = document.createDocumentFragment(), next = Math.min(shown + STEP, found.length);
    for (; shown < next; shown++) block.append(line(found[shown]));
    body.append(block);
    more.hidden = shown >= found.length;
    count.textContent = shown + " of " + found.length + " shown"
      + (found.length === rows.length ? "" : " (" + rows.length + " in all)");
  }
  function refresh() {
    const wanted = search.value.trim().toLowerCase();
    found = rows.filter((r) => (!wanted || r.text.includes(wanted))
      && (only.value === "all" || (r.iou < 0.5) === (only.value === "failed")));
    if (key !== "iou" || down) {
      const by = keys[key], sign = down ? -1 : 1;
      found.sort((a, b) => { const x = by(a), y = by(b); return x < y ? -sign : x > y ? sign : 0; });
    }
    document.querySelectorAll("#columns [data-key]").forEach((head) => {
      if (head.dataset.key === key) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    body.replaceChildren();
    shown = 0;
    add();
  }
  one("columns").addEventListener("click", (event) => {
    if (!event.target.closest(".sort")) return;
    const chosen = event.target.closest("[data-key]").dataset.key;
    down = chosen === key ? !down : chosen === "score";
    key = chosen;
    refresh();
  });
  search.addEventListener("input", refresh);
  only.addEventListener("change", refresh);
  more.addEventListener("click", add);
  if ("IntersectionObserver" in window) {
    new IntersectionObserver((entries) => {
      if (entries.some((e) => e.isIntersecting) && !more.hidden) add();
    }, { rootMargin: "600px" }).observe(more);
  }
  refresh();
})();
