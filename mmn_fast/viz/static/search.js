"use strict";
/* A click on a hit plays its span from the video's own file, in the panel at the top. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const stage = document.getElementById("stage");
  if (!stage) return;
  const one = (id) => document.getElementById(id);
  const screen = one("film"), now = one("now"), trouble = one("trouble");
  let shown = -1, start = 0, stop = null;

  function begin() {
    screen.currentTime = start;
    screen.play().catch(() => {});
  }
  function watch() {
    if (stop !== null && screen.currentTime >= stop) {
      stop = null;
      screen.pause();
    }
  }
  function follow() {
    watch();
    if (!screen.paused && !screen.ended) requestAnimationFrame(follow);
  }
  screen.addEventListener("loadedmetadata", begin);
  screen.addEventListener("play", () => requestAnimationFrame(follow));
  screen.addEventListener("timeupdate", watch);  /* a page in the background draws no frames */
  screen.addEventListener("seeking", () => {  /* a reader who moves the slider sees what comes after the span, too */
    const time = screen.currentTime;
    if (stop !== null && (time < start - 0.1 || time >= stop)) stop = null;
  });
  screen.addEventListener("error", () => {
    const film = data.films[shown];
    trouble.textContent = "This browser cannot play " + film.name + ", or does not find it at " + film.link + ".";
    trouble.hidden = false;
  });

  document.querySelectorAll("[data-film]").forEach((button) => {
    const play = () => {
      const film = Number(button.dataset.film);
      start = Number(button.dataset.seek);
      stop = Number(button.dataset.end);
      stage.hidden = false;
      document.querySelectorAll(".hit.chosen").forEach((card) => card.classList.remove("chosen"));
      button.closest(".hit").classList.add("chosen");
      now.textContent = data.films[film].name;
      if (film === shown && !screen.error) {
        if (screen.readyState) begin();
        return;
      }
      shown = film;
      trouble.hidden = true;
      screen.preload = "auto";
      screen.src = data.films[film].link;
    };
    button.addEventListener("click", play);
    const shots = button.closest(".hit").querySelector(".shots");
    if (shots) shots.addEventListener("click", play);
  });
})();
