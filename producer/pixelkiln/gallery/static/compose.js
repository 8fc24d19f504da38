// The two ways in: a prompt to paint, a picture to work on.
import { ask, busy, post, say } from "./talk.js";

const paint = document.querySelector("#paint"), cut = document.querySelector("#cut"), drop = cut.querySelector(".drop");
const told = () => document.dispatchEvent(new Event("submitted"));

paint.addEventListener("submit", (event) => {
  event.preventDefault();
  const { prompt, model, count, seed, apart } = paint.elements;
  const input = { prompt: prompt.value, count: Number(count.value) };
  if (seed.value !== "") input.seed = Number(seed.value);
  busy(paint.querySelector(".fire"), async () => {
    const request = { kind: "generate", model: model.value, input, priority: "interactive" };
    if (apart.checked) {
      const pictures = Array.from({ length: input.count }, (_, index) => ({
        id: `masks-${index}`, kind: "segment", input: { image: `$scene.image.${index}` }, priority: "interactive",
      }));
      await post("/v1/pipelines", { steps: [{ id: "scene", ...request }, ...pictures] });
    } else {
      await post("/v1/jobs", request);
    }
    told();
  });
});

paint.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); paint.requestSubmit(); }
  if (event.key === "Tab" && !event.target.value && !event.shiftKey) event.target.value = event.target.placeholder;
});

async function takeOn(file) {
  const form = new FormData();
  form.append("file", file);
  const upload = await ask("/v1/uploads", { method: "POST", body: form });
  const [kind, model] = cut.elements.task.value.split("/");
  const input = { image: { upload: upload.id } };
  if (kind === "edit") input.prompt = cut.elements.anew.value;
  await post("/v1/jobs", { kind, input, priority: "interactive", ...(model ? { model } : {}) });
  told();
}

async function takeAll(files) {
  for (const file of files) {
    try { await takeOn(file); } catch (error) { say(`${file.name}: ${error.message}`); }
  }
  cut.elements.file.value = "";
}

// Only drawing anew needs words, and it needs them before the picture.
function asked() {
  const words = cut.elements.anew, wanted = cut.elements.task.value.startsWith("edit");
  words.hidden = !wanted;
  cut.elements.file.disabled = wanted && !words.value.trim();
  drop.classList.toggle("shut", cut.elements.file.disabled);
}
for (const name of ["input", "change"]) cut.addEventListener(name, asked);
cut.addEventListener("submit", (event) => event.preventDefault());

cut.elements.file.addEventListener("change", (event) => takeAll([...event.target.files]));
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop" && !cut.elements.file.disabled) takeAll([...event.dataTransfer.files]);
  });
}
asked();
