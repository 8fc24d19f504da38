// The grid stays as true as the queue: cards are fetched again while something moves, and only changed ones replaced.
import { busy, post } from "./talk.js";

const grid = document.querySelector("#grid");
const QUICK_MS = 1200, SLOW_MS = 6000;

function place(fresh, list, before) {
  const old = document.getElementById(fresh.id);
  if (!old) { list.insertBefore(fresh, before); return fresh; }
  if (old.dataset.version !== fresh.dataset.version) {
    const faces = old.querySelectorAll(".face img:not(.preview)"), wanted = fresh.querySelectorAll(".face img");
    const same = faces.length === wanted.length && [...faces].every((img, i) => img.getAttribute("src") === wanted[i].getAttribute("src"));
    if (same) wanted.forEach((img, i) => img.replaceWith(faces[i])); // a picture that is there does not flicker
    old.replaceWith(fresh);
    return fresh;
  }
  old.querySelector("time").textContent = fresh.querySelector("time").textContent;
  return old;
}

// One stream for all cards that move: their rough pictures, while they have no face of their own.
const previews = new Map(); // job id -> image element: moved from card to card, so that it does not flicker
let followed = "", stream = null;

function show(card) {
  const image = previews.get(card.id), face = card.querySelector(".face");
  if (!image || image.parentElement === face || face.querySelector("img")) return;
  face.querySelector(".ember")?.remove();
  face.prepend(image);
}

function follow() {
  const moving = [...grid.querySelectorAll(".card[data-active]")].map((card) => card.id);
  for (const id of previews.keys()) if (!moving.includes(id)) previews.delete(id);
  if (moving.join() === followed) return;
  followed = moving.join();
  stream?.close();
  stream = followed ? new EventSource(`/live?jobs=${followed}`) : null;
  stream?.addEventListener("preview", (event) => {
    const { job, step } = JSON.parse(event.data), card = document.getElementById(job);
    if (!card) return;
    if (!previews.has(job)) previews.set(job, Object.assign(new Image(), { className: "preview", alt: "" }));
    previews.get(job).src = `/v1/jobs/${job}/preview?step=${step}`;
    show(card);
  });
}

async function refresh() {
  const answer = await fetch(`/cards?${grid.dataset.query}`, { headers: { Accept: "text/html" } });
  if (answer.redirected || !answer.ok) return;
  const page = document.createElement("template");
  page.innerHTML = await answer.text();
  const fresh = [...page.content.querySelectorAll(".card")];
  const list = grid.querySelector(".grid");
  if (fresh.length) list.querySelector(".empty")?.remove();
  const kept = new Set(fresh.map((card) => card.id));
  list.querySelectorAll(".card").forEach((card) => { if (!kept.has(card.id)) card.remove(); });
  let at = list.firstElementChild;
  for (const card of fresh) {
    const placed = place(card, list, at);
    show(placed);
    at = placed.nextElementSibling;
  }
  follow();
}

async function watch() {
  if (!document.hidden) {
    try { await refresh(); } catch { /* the server restarts: the next round finds it */ }
  }
  setTimeout(watch, grid.querySelector("[data-active]") ? QUICK_MS : SLOW_MS);
}

grid.addEventListener("click", (event) => {
  const button = event.target.closest("[data-post]");
  if (button) busy(button, () => post(button.dataset.post).then(refresh));
});

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey) return;
  const cards = [...grid.querySelectorAll(".card .face")];
  const step = { j: 1, k: -1 }[event.key];
  if (step) cards[Math.max(0, Math.min(cards.length - 1, cards.indexOf(document.activeElement) + step))]?.focus();
});

document.addEventListener("submitted", refresh);
follow();
setTimeout(watch, QUICK_MS);
