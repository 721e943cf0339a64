"use strict";
// The page of the service. Text from the service enters the page as text only.
const $ = (id) => document.getElementById(id);
const film = $("film");
let shown = null; // what the detail panel shows: {results, map, duration, span, chosen}
let address = null; // a blob: address to give back
let search = 0; // number of the last search: late answers to earlier ones are dropped

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

const seconds = (value) => value.toFixed(1);
const spanned = (moment) => `${seconds(moment.start_s)}–${seconds(moment.end_s)} s`;

function say(text, bad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) $("unlock").hidden = false;
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.detail || `The service answered with status ${answer.status}.`);
}

const ask = async (path, body) =>
  (await call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  })).json();

// An address for an element: with a key the file must be fetched, because elements send no key.
async function source(path) {
  if (!sessionStorage.getItem("key")) return path;
  return URL.createObjectURL(await (await call(path)).blob());
}

async function start() {
  try {
    const model = await (await call("v1/model")).json();
    const library = await (await call("v1/videos?limit=1")).json();
    const facts = [`model of preset ${model.preset}`, `${library.total} videos`, `${model.backend} on ${model.device}`];
    $("facts").replaceChildren(...facts.map((fact) => make("span", "", fact)));
    $("upload-panel").hidden = !model.uploads;
    $("unlock").hidden = true;
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function bar(moment, duration, tag = "span") {
  const made = make(tag);
  made.style.left = `${(100 * moment.start_s) / duration}%`;
  made.style.width = `${(100 * (moment.end_s - moment.start_s)) / duration}%`;
  return made;
}

function card(sentence, hit, video) {
  const made = make("button", "card");
  const none = make("span", "thumb none", "no picture");
  made.append(none, make("strong", "", hit.video_id), make("small", "", `${spanned(hit)}, score ${hit.score.toFixed(2)}`));
  const lane = made.appendChild(make("span", "lane"));
  lane.append(bar(hit, video.duration_s));
  made.setAttribute("aria-pressed", "false");
  made.addEventListener("click", () => open(sentence, hit, video, made));
  if (video.playable) {
    const image = make("img", "thumb");
    image.alt = "";
    const middle = (hit.start_s + hit.end_s) / 2;
    image.addEventListener("load", () => none.replaceWith(image));
    source(`v1/thumbnails/${encodeURIComponent(hit.video_id)}?at_s=${middle.toFixed(1)}`)
      .then((path) => { image.src = path; }).catch(() => {});
  }
  const item = make("li");
  item.append(made);
  return item;
}

$("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const number = ++search, sentence = $("query").value.trim();
  if (!sentence) return;
  say("Searching …");
  try {
    const found = await ask("v1/search", { sentences: [sentence], top_k: 12 });
    const hits = found.results[0].moments;
    const videos = await Promise.all(
      hits.map(async (hit) => (await call(`v1/videos/${encodeURIComponent(hit.video_id)}`)).json()));
    if (number !== search) return;
    hide();
    $("hits").replaceChildren(...hits.map((hit, rank) => card(sentence, hit, videos[rank])));
    say(hits.length ? `${hits.length} hits among ${found.videos} videos, best first.` : "Nothing found.");
  } catch (error) {
    if (number === search) say(error.message, true);
  }
});

async function open(sentence, hit, video, button) {
  for (const one of document.querySelectorAll(".card")) one.setAttribute("aria-pressed", String(one === button));
  say("");
  try {
    const found = await ask("v1/ground", { video: hit.video_id, sentences: [sentence], maps: true });
    const path = video.playable ? await source(`v1/files/${encodeURIComponent(hit.video_id)}`) : null;
    detail(found, path, "The file of this video is not at hand here.");
    play(hit);
  } catch (error) {
    say(error.message, true);
  }
}

// Show a video with its grounded sentences.
function detail(found, path, why) {
  hide(false);
  shown = { ...found, span: null, chosen: 0 };
  $("detail-title").textContent = found.video_id || "Your video";
  film.hidden = !path;
  $("no-film").hidden = Boolean(path);
  $("no-film").textContent = why;
  if (path) {
    if (path.startsWith("blob:")) address = path;
    film.src = path;
  }
  $("tracks").replaceChildren(...found.results.map(track));
  $("detail").hidden = false;
  choose(0);
  $("detail-title").focus({ preventScroll: true });
  $("detail").scrollIntoView({ block: "nearest" });
}

function track(result, number) {
  const made = make("div", "track");
  const name = made.appendChild(make("button", "choose", result.sentence));
  name.addEventListener("click", () => { choose(number); if (result.moments[0]) play(result.moments[0]); });
  const lane = made.appendChild(make("div", "lane"));
  const list = made.appendChild(make("ol"));
  result.moments.forEach((moment, rank) => {
    const words = `${rank + 1}: ${spanned(moment)}, score ${moment.score.toFixed(2)}`;
    const onLane = bar(moment, shown.duration_s, "button");
    onLane.title = words;
    onLane.setAttribute("aria-label", words);
    onLane.classList.toggle("best", rank === 0);
    onLane.tabIndex = -1; // the list below has the same moments
    const inList = make("button", "span pred", words);
    for (const one of [onLane, inList]) one.addEventListener("click", () => { choose(number); play(moment); });
    lane.prepend(onLane); // the best one is on top
    list.appendChild(make("li")).append(inList);
  });
  lane.append(make("i", "head"));
  return made;
}

function choose(number) {
  shown.chosen = number;
  [...$("tracks").children].forEach((one, at) => one.classList.toggle("chosen", at === number));
  $("map-figure").hidden = !shown.map;
  if (shown.map) draw();
}

function draw() {
  const canvas = $("map"), context = canvas.getContext("2d"), result = shown.results[shown.chosen];
  const side = canvas.width / shown.map.num_clips, style = getComputedStyle(document.documentElement);
  const low = Math.min(...result.scores), range = Math.max(...result.scores) - low || 1;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.getPropertyValue("--pred");
  shown.map.cells.forEach(([row, column], number) => {
    context.globalAlpha = 0.06 + 0.94 * ((result.scores[number] - low) / range);
    context.fillRect(column * side, row * side, Math.ceil(side), Math.ceil(side));
  });
  context.globalAlpha = 1;
  context.strokeStyle = style.getPropertyValue("--truth");
  context.lineWidth = 2;
  const clip = shown.duration_s / shown.map.num_clips;
  for (const moment of result.moments.slice(0, 3)) {
    const row = Math.round(moment.start_s / clip), column = Math.round(moment.end_s / clip) - 1;
    context.strokeRect(column * side + 1, row * side + 1, side - 2, side - 2);
  }
  canvas.setAttribute("aria-label", `Moment map of: ${result.sentence}`);
}

$("map").addEventListener("click", (event) => {
  const box = $("map").getBoundingClientRect(), clips = shown.map.num_clips, clip = shown.duration_s / clips;
  const at = (from, size) => Math.min(clips - 1, Math.max(0, Math.floor((from / size) * clips)));
  const row = at(event.clientY - box.top, box.height), column = at(event.clientX - box.left, box.width);
  if (column >= row) play({ start_s: row * clip, end_s: (column + 1) * clip });
});

function play(moment) {
  if (film.hidden) return;
  shown.span = moment;
  const go = () => {
    film.currentTime = moment.start_s;
    film.play().catch(() => {}); // a browser may refuse; the video stands at the right place
  };
  if (film.readyState > 0) go();
  else film.addEventListener("loadedmetadata", go, { once: true });
}

film.addEventListener("timeupdate", () => {
  if (!shown) return;
  for (const head of document.querySelectorAll(".head")) head.style.left = `${(100 * film.currentTime) / shown.duration_s}%`;
  if (shown.span && film.currentTime >= shown.span.end_s) {
    shown.span = null;
    film.pause();
  }
});
film.addEventListener("error", () => {
  if (film.hidden || !film.getAttribute("src")) return;
  $("no-film").hidden = false;
  $("no-film").textContent = "This browser cannot play this video.";
});

function hide(closed = true) {
  film.pause();
  film.removeAttribute("src");
  film.load();
  if (address) URL.revokeObjectURL(address);
  address = shown = null;
  $("detail").hidden = closed;
}

$("close").addEventListener("click", () => {
  hide();
  const pressed = document.querySelector(".card[aria-pressed=true]");
  (pressed || $("query")).focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("detail").hidden) $("close").click();
});

$("upload").addEventListener("submit", async (event) => {
  event.preventDefault();
  const file = $("file").files[0], sentences = $("sentences").value.split("\n").map((one) => one.trim()).filter(Boolean);
  if (!file || !sentences.length) return;
  const button = $("upload").querySelector("button");
  button.disabled = true;
  say(`Uploading and reading ${file.name} …`);
  try {
    const form = new FormData();
    sentences.forEach((sentence) => form.append("sentence", sentence));
    form.append("maps", "true");
    form.append("video", file);
    const found = await (await call("v1/ground", { method: "POST", body: form })).json();
    detail(found, URL.createObjectURL(file), "");
    say("");
    if ($("keep").checked) {
      const added = new FormData();
      added.append("video", file);
      const video = await (await call("v1/videos", { method: "POST", body: added })).json();
      await start();
      say(`${video.video_id} is in the library.`);
    }
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
});

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("key").value = "";
  start();
});

start();
