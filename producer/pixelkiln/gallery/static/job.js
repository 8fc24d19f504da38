// One job's page: live until it ends, then its pictures, masks and commands.
import { showMasks } from "./masks.js";
import { ask, busy, post, say } from "./talk.js";

const sheet = document.querySelector(".sheet");
const again = JSON.parse(document.querySelector("#again").textContent);
const open = (job) => { location.href = `/jobs/${job.id}`; };
const source_of = () => { // what comes next works on: the picture in view, or the one this job was given
  const job = sheet.dataset.job;
  return sheet.querySelector("[data-given]") ? { job, input: "image" } : { job, role: big.dataset.role, index: Number(big.dataset.index) };
};
const follow = (kind, more = {}) => post("/v1/jobs", { kind, input: { image: source_of(), ...more }, priority: "interactive" });

function soon(moment) { // as `cards.soon`
  const seconds = (moment - Date.now()) / 1000;
  if (seconds < 10) return "in a few seconds";
  const [size, name] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([most]) => seconds >= 0.92 * most) ?? [];
  return size ? `in about ${Math.round(seconds / size)} ${name}` : `in about ${Math.round(seconds / 10) * 10} s`;
}

// ---------------------------------------------------------------------------------------------- live

if ("active" in sheet.dataset) {
  const bar = sheet.querySelector(".live progress"), words = sheet.querySelector(".live .words"), pill = sheet.querySelector(".live .pill");
  let reached = "", eta = null; // what the last events said; the time left is counted down between them
  const tell = () => { words.textContent = [reached, eta && `ready ${soon(eta)}`].filter(Boolean).join(", "); };
  const source = new EventSource(`/v1/jobs/${sheet.dataset.job}/events`);
  source.addEventListener("status", (event) => {
    const job = JSON.parse(event.data);
    pill.textContent = job.status;
    bar.value = job.progress.value;
    eta = job.eta && new Date(job.eta);
    const unserved = job.warnings.some((warning) => warning.code === "no_worker_for_model");
    reached = unserved ? "no worker serves its model" : job.queue_position ? `${job.queue_position} before it` : "";
    tell();
    if (["succeeded", "failed", "canceled", "expired"].includes(job.status)) { source.close(); location.reload(); }
  });
  source.addEventListener("progress", (event) => {
    const { step, steps } = JSON.parse(event.data);
    if (steps) { bar.value = step / steps; reached = `step ${step} of ${steps}`; tell(); pill.textContent = "running"; }
  });
  setInterval(() => { if (eta) tell(); }, 1000);
  const easel = sheet.querySelector(".big.waiting");
  source.addEventListener("preview", (event) => {
    if (!easel) return;
    if (!easel.querySelector("img")) easel.replaceChildren(Object.assign(new Image(), { alt: "The picture as far as it is" }));
    easel.querySelector("img").src = `/v1/jobs/${sheet.dataset.job}/preview?step=${JSON.parse(event.data).step}`;
  });
}

// ---------------------------------------------------------------------------------------------- pictures

const figure = sheet.querySelector(".layers[data-mask]");
if (figure) {
  const [opacity, outline, reveal] = ["opacity", "outline", "reveal"].map((id) => document.getElementById(id));
  showMasks(figure, sheet.querySelector(".legend"), { opacity, outline, reveal }).catch((error) => say(`masks: ${error.message}`));
}

const big = sheet.querySelector(".big img:not(.before)"), before = sheet.querySelector(".big .before"), wipe = document.getElementById("wipe");
sheet.querySelectorAll("[data-show]").forEach((button) => button.addEventListener("click", () => {
  big.src = button.dataset.show;
  big.dataset.index = button.dataset.index;
  sheet.querySelectorAll("[data-show]").forEach((one) => one === button ? one.setAttribute("aria-current", "true") : one.removeAttribute("aria-current"));
}));

// The picture before lies under the result; each is clipped where the other begins.
function unveil() {
  const left = Number(wipe.value);
  before.style.clipPath = `inset(0 ${100 - left}% 0 0)`;
  big.style.clipPath = `inset(0 0 0 ${left}%)`;
}
if (wipe) { wipe.addEventListener("input", unveil); unveil(); }
for (const image of sheet.querySelectorAll(".given img")) { // its job may have been deleted since
  const away = () => image.closest("a").remove();
  if (image.complete && !image.naturalWidth) away(); else image.addEventListener("error", away);
}

// ---------------------------------------------------------------------------------------------- actions

sheet.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { post: path, again: how, next, delete: gone } = button.dataset;
  if (path) busy(button, () => post(path).then(() => location.reload()));
  else if (how) {
    const request = structuredClone(again);
    if (how === "seed") delete request.input.seed;
    busy(button, () => post("/v1/jobs", request).then(open));
  } else if (next) busy(button, () => follow(next).then(open));
  else if (gone && confirm("Delete this job and its files?")) {
    busy(button, () => ask(gone, { method: "DELETE" }).then(() => { location.href = "/"; }));
  } else if (button.dataset.tab) {
    sheet.querySelectorAll("[data-tab]").forEach((tab) => tab.setAttribute("aria-selected", tab === button));
    sheet.querySelectorAll("[data-pane]").forEach((pane) => { pane.hidden = pane.dataset.pane !== button.dataset.tab; });
  } else if ("copy" in button.dataset) {
    const text = sheet.querySelector("[data-pane]:not([hidden])").textContent;
    busy(button, () => navigator.clipboard.writeText(text).then(() => say("Copied.")));
  }
});

const anew = document.getElementById("anew");
anew?.addEventListener("submit", (event) => {
  event.preventDefault();
  const { prompt, strength } = anew.elements;
  busy(anew.querySelector("button"), () => follow("edit", { prompt: prompt.value, strength: Number(strength.value) }).then(open));
});
