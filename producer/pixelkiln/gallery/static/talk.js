// Speaking with the API: every answer is JSON or a problem, and a problem is shown.

export function say(text) {
  const toast = document.querySelector(".toast");
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { toast.hidden = true; }, 6000);
}

export async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  if (answer.status === 401) { location.href = `/login?next=${encodeURIComponent(location.pathname)}`; }
  if (answer.status === 204) return null;
  const body = await answer.json();
  if (!answer.ok) {
    const places = (body.errors ?? []).map((error) => error.pointer).filter(Boolean).join(", ");
    throw new Error(`${body.detail}${places ? ` (${places})` : ""}`);
  }
  return body;
}

export function post(path, body) {
  const json = body === undefined ? {} : {
    headers: { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` },
    body: JSON.stringify(body),
  };
  return ask(path, { method: "POST", ...json });
}

// Runs a handler, with its button out of reach meanwhile; what goes wrong is said.
export async function busy(button, work) {
  button.disabled = true;
  try { await work(); } catch (error) { say(error.message); } finally { button.disabled = false; }
}
