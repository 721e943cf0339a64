"use strict";
/* Boxes over the video: the predicted tube in a solid line, the true one in a dashed line, each with its word. */
const boxesOf = (data, screen) => {
  const others = document.getElementById("others"), said = document.getElementById("boxes");
  const ground = "#000", looks = {
    predicted: { colour: "#7db4ff", ink: "#04122b", dash: [], above: true },
    true: { colour: "#ffb547", ink: "#1e1200", dash: [9, 7], above: false },
  };

  function boxAt(tube, number) {
    const at = 4 * (number - tube.first);
    return at >= 0 && at < tube.boxes.length ? tube.boxes.slice(at, at + 4) : null;
  }
  /* Pixels of the canvas per pixel of the page. */
  function unit() {
    const area = screen.getBoundingClientRect();
    const scale = Math.min(area.width / screen.width, area.height / screen.height);
    return scale > 0 ? 1 / scale : 1;
  }
  function placed(box) {
    const x = screen.width / data.box_size[0], y = screen.height / data.box_size[1];
    return [box[0] * x, box[1] * y, (box[2] - box[0] + 1) * x, (box[3] - box[1] + 1) * y];
  }
  /* A coloured line on a wider black one is visible on any frame. The gaps of a dashed line show the line below it. */
  function outline(pen, box, colour, width, dash) {
    const one = unit();
    pen.setLineDash(dash.map((length) => length * one));
    for (const [paint, wide] of [[ground, width + 2.5], [colour, width]]) {
      pen.strokeStyle = paint;
      pen.lineWidth = wide * one;
      pen.strokeRect(...placed(box));
    }
    pen.setLineDash([]);
  }
  /* A word above or below its box, where it hides neither the box nor a word in `taken`; inside if there is no room. */
  function tag(pen, box, word, taken) {
    const one = unit(), look = looks[word], [x, y, width, height] = placed(box);
    pen.font = `600 ${12.5 * one}px system-ui, sans-serif`;
    const wide = pen.measureText(word).width + 10 * one, high = 18 * one, gap = 3 * one;
    const left = Math.min(Math.max(x + (look.above ? 0 : width - wide), 0), screen.width - wide);
    const above = [1, 2].map((row) => y - row * (high + gap)), below = [0, 1].map((row) => y + height + gap + row * (high + gap));
    const free = (top) => top >= 0 && top + high <= screen.height
      && taken.every((other) => left + wide < other[0] || other[0] + other[2] < left || top + high < other[1] || other[1] + high < top);
    const places = look.above ? [above[0], ...below, above[1]] : [below[0], ...above, below[1]];
    const top = places.concat(Math.min(Math.max(y + gap, 0), screen.height - high)).find((place, at) => at === 4 || free(place));
    taken.push([left, top, wide]);
    pen.fillStyle = ground;
    pen.fillRect(left - one, top - one, wide + 2 * one, high + 2 * one);
    pen.fillStyle = look.colour;
    pen.fillRect(left, top, wide, high);
    pen.fillStyle = look.ink;
    pen.textBaseline = "middle";
    pen.fillText(word, left + 5 * one, top + high / 2);
  }
  function paint(pen, frame, chosen) {
    const number = data.video.numbers[frame], query = data.queries[chosen];
    if (!query) return;
    const answer = query.answer, shown = [], taken = [];
    if (others.checked) {
      data.tubes.forEach((tube, place) => {
        const box = answer && answer[0] === place ? null : boxAt(tube, number);
        if (box) outline(pen, box, "#fff", 1, [2, 3]);
      });
    }
    const found = answer && boxAt(data.tubes[answer[0]], number), meant = query.truth && boxAt(query.truth, number);
    const within = found && answer[1] <= number && number <= answer[2];
    if (found) outline(pen, found, looks.predicted.colour, within ? 3 : 1, looks.predicted.dash);
    if (meant) outline(pen, meant, looks.true.colour, 3, looks.true.dash);
    if (within) shown.push([found, "predicted"]);
    if (meant) shown.push([meant, "true"]);
    shown.slice().reverse().forEach(([box, word]) => tag(pen, box, word, taken));
    said.textContent = "Frame " + number + ": "
      + (shown.length ? shown.map((entry) => entry[1]).join(" and ") : "neither predicted nor true");
  }
  function watch(repaint) {
    others.addEventListener("change", repaint);
    window.addEventListener("resize", repaint);
  }
  return { paint, watch };
};
