// Masks over a picture. The mask file is an id map in the PASCAL VOC colours; here each id gets a colour that
// is told apart more easily, an outline, and an entry in the legend.

function vocColour(id) {
  let [r, g, b] = [0, 0, 0];
  for (let bit = 7, rest = id; rest; bit -= 1, rest >>= 3) {
    r |= (rest & 1) << bit; g |= ((rest >> 1) & 1) << bit; b |= ((rest >> 2) & 1) << bit;
  }
  return (r << 16) | (g << 8) | b;
}

function hue(index) { // golden angle: neighbours in the legend are far apart in colour
  const h = (index * 137.508 + 18) % 360, s = 0.72, l = index % 2 ? 0.62 : 0.5;
  const f = (n) => { const k = (n + h / 30) % 12; return Math.round(255 * (l - s * Math.min(l, 1 - l) * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); };
  return [f(0), f(8), f(4)];
}

async function idMap(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d", { colorSpace: "srgb" });
  context.drawImage(image, 0, 0);
  const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
  const known = new Map(Array.from({ length: 256 }, (_, id) => [vocColour(id), id]));
  const ids = new Uint8Array(width * height);
  for (let i = 0; i < ids.length; i += 1) ids[i] = known.get((data[4 * i] << 16) | (data[4 * i + 1] << 8) | data[4 * i + 2]) ?? 0;
  return { ids, width, height };
}

function edges({ ids, width, height }) {
  const on = new Uint8Array(ids.length);
  for (let y = 0, i = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 1) {
      on[i] = ids[i] && ((x + 1 < width && ids[i + 1] !== ids[i]) || (y + 1 < height && ids[i + width] !== ids[i])
        || (x && ids[i - 1] !== ids[i]) || (y && ids[i - width] !== ids[i])) ? 1 : 0;
    }
  }
  return on;
}

function segmentsOf(document_, map) {
  const names = new Map((document_?.categories ?? []).map((one) => [one.id, one.name]));
  const listed = (document_?.annotations ?? []).map((one) => ({
    id: one.id, label: names.get(one.category_id) ?? "", score: one.score, area: one.area,
  }));
  if (listed.length) return listed;
  const areas = new Map();
  for (const id of map.ids) if (id) areas.set(id, (areas.get(id) ?? 0) + 1);
  return [...areas].map(([id, area]) => ({ id, label: `segment ${id}`, area }));
}

export async function showMasks(figure, legend, controls) {
  const map = await idMap(figure.dataset.mask);
  const found = figure.dataset.annotations ? await (await fetch(figure.dataset.annotations)).json() : null;
  const segments = segmentsOf(found, map).sort((a, b) => b.area - a.area);
  const colours = new Map(segments.map((one, index) => [one.id, hue(index)]));
  const hidden = new Set();
  const outline = edges(map);
  const canvas = figure.querySelector("canvas"), tip = figure.querySelector(".tip");
  canvas.width = map.width; canvas.height = map.height;
  const context = canvas.getContext("2d");
  let lit = 0;

  function paint() {
    const image = context.createImageData(map.width, map.height);
    const strength = Number(controls.opacity.value) / 100;
    const reveal = controls.reveal.checked, outlined = controls.outline.checked;
    for (let i = 0; i < map.ids.length; i += 1) {
      const id = map.ids[i], colour = colours.get(id), at = 4 * i;
      const shown = colour && !hidden.has(id);
      if (reveal) { // what is not shown goes dark, what is shown stays a picture
        image.data[at + 3] = shown && (!lit || lit === id) ? 0 : 235;
        continue;
      }
      if (!shown) continue;
      [image.data[at], image.data[at + 1], image.data[at + 2]] = colour;
      let alpha = strength * (lit && lit !== id ? 0.25 : 1);
      if (outlined && outline[i]) alpha = Math.min(1, alpha + 0.4);
      image.data[at + 3] = Math.round(255 * alpha);
    }
    context.putImageData(image, 0, 0);
  }

  legend.replaceChildren(...segments.map((one) => {
    const line = document.createElement("li"), swatch = document.createElement("i"), label = document.createElement("span"), share = document.createElement("small");
    swatch.style.background = `rgb(${colours.get(one.id).join(" ")})`;
    label.textContent = one.label || `segment ${one.id}`;
    share.textContent = `${one.score == null ? "" : `${one.score.toFixed(2)} · `}${(100 * one.area / map.ids.length).toFixed(1)} %`;
    line.append(swatch, label, share);
    line.tabIndex = 0;
    line.setAttribute("role", "button");
    line.setAttribute("aria-pressed", "true");
    line.dataset.id = one.id;
    line.title = "click to hide or show";
    return line;
  }));

  function light(id) {
    if (id === lit) return;
    lit = id;
    legend.querySelectorAll("li").forEach((line) => line.classList.toggle("lit", Number(line.dataset.id) === lit));
    paint();
  }
  const idOf = (event) => Number(event.target.closest("li")?.dataset.id ?? 0);
  function toggle(event) {
    const id = idOf(event);
    if (!id) return;
    if (hidden.has(id)) hidden.delete(id); else hidden.add(id);
    const line = event.target.closest("li");
    line.classList.toggle("off", hidden.has(id));
    line.setAttribute("aria-pressed", String(!hidden.has(id)));
    paint();
  }
  legend.addEventListener("pointerover", (event) => light(idOf(event)));
  legend.addEventListener("pointerleave", () => light(0));
  legend.addEventListener("click", toggle);
  legend.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(event); } });

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * map.width);
    const y = Math.floor((event.clientY - box.top) / box.height * map.height);
    const id = map.ids[Math.min(map.ids.length - 1, Math.max(0, y * map.width + x))] ?? 0;
    const one = segments.find((segment) => segment.id === id);
    tip.hidden = !one;
    if (one) {
      tip.textContent = one.label;
      tip.style.left = `${event.clientX - box.left}px`;
      tip.style.top = `${event.clientY - box.top}px`;
    }
    light(one ? id : 0);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; light(0); });
  for (const control of Object.values(controls)) control.addEventListener("input", paint);
  paint();
}
