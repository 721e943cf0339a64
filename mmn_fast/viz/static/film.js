"use strict";
/* Plays the video file itself, which the page holds as text or finds beside it. Returns the function that plays a span;
   `tell` is called with every new time. */
const playerOf = (film, tell) => {
  const screen = document.getElementById("film"), trouble = document.getElementById("trouble");
  let start = 0, stop = null;

  screen.addEventListener("error", () => {
    trouble.textContent = film.trouble;
    trouble.hidden = false;
  });
  if (film.content) {
    const text = atob(film.content), bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
    screen.src = URL.createObjectURL(new Blob([bytes], { type: film.type }));
  } else screen.src = film.link;

  function watch() {
    const time = screen.currentTime;
    tell(time);
    if (stop !== null && time >= stop) {
      stop = null;
      screen.pause();
    }
  }
  function follow() {
    watch();
    if (!screen.paused && !screen.ended) requestAnimationFrame(follow);
  }
  screen.addEventListener("play", () => requestAnimationFrame(follow));
  screen.addEventListener("timeupdate", watch);  /* a page in the background draws no frames */
  /* A reader who moves the slider out of the span sees what comes after it, too. */
  screen.addEventListener("seeking", () => {
    const time = screen.currentTime;
    if (stop !== null && (time < start - 0.1 || time >= stop)) stop = null;
    tell(time);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== document.body) return;
    if (event.key === " ") {
      event.preventDefault();
      if (screen.paused) screen.play().catch(() => {}); else screen.pause();
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      stop = null;
      screen.currentTime += event.key === "ArrowLeft" ? -0.5 : 0.5;
    }
  });
  return (from, to) => {
    start = from;
    stop = to > from ? to : null;
    screen.currentTime = from;
    tell(from);
    if (stop !== null) screen.play().catch(() => {});
  };
};
