// The fleet as it is: the page is fetched again every two seconds and replaced where something changed.
import { busy, post, say } from "./talk.js";

const now = document.querySelector("#now");
const EVERY_MS = 2000;
let shown = now.innerHTML;

async function refresh() {
  const answer = await fetch("/workers/now", { headers: { Accept: "text/html" } });
  if (answer.redirected || !answer.ok) return;
  const text = await answer.text();
  const touched = now.querySelector("button:focus, button:disabled") || !getSelection().isCollapsed;
  if (text === shown || touched) return; // nothing is pulled from under somebody's finger
  shown = text;
  now.innerHTML = text;
}

async function watch() {
  if (!document.hidden) {
    try { await refresh(); } catch { /* the server restarts: the next round finds it */ }
  }
  setTimeout(watch, EVERY_MS);
}

now.addEventListener("click", (event) => {
  const button = event.target.closest("[data-drain]");
  if (!button || !confirm("Let this worker end what it runs and stay down?")) return;
  busy(button, () => post(button.dataset.drain).then(() => say("It drains: what it runs ends first.")))
    .then(() => { button.blur(); return refresh(); });
});

setTimeout(watch, EVERY_MS);
