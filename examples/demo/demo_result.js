// Which face, and whose heat: chosen in the browser, of what the answer brought along.
let face = "0", name = null;
const all = (query) => [...element.querySelectorAll(query)];

function draw() {
  const photo = element.querySelector(".mf-photo");
  if (!photo) return;
  const panels = all(".mf-face");
  if (!panels.some((panel) => panel.dataset.face === face)) face = "0";
  const panel = panels.find((one) => one.dataset.face === face);
  panels.forEach((one) => { one.hidden = one !== panel; });
  all(".mf-box").forEach((box) => box.classList.toggle("on", box.dataset.face === face));
  const row = name === "emotion" ? panel : name && panel.querySelector(`[data-name="${name}"]`);
  const map = row && row.dataset.heat ? row.dataset : null;
  photo.classList.toggle("heated", !!map);
  const heat = photo.querySelector(".mf-heat");
  heat.setAttribute("transform", `matrix(${panel.dataset.matrix})`);
  heat.querySelector("image").setAttribute("href", map ? map.heat : "");
  heat.querySelector("path").setAttribute("d", map ? map.regions : "");
  all("[data-name]").forEach((one) => one.setAttribute("aria-pressed", !!map && one.dataset.name === name));
  all('[data-do="emotion"]').forEach((one) => { one.hidden = !panel.dataset.heat; one.setAttribute("aria-pressed", !!map && name === "emotion"); });
  all('[data-do="clear"]').forEach((one) => { one.hidden = !map; });
  const lines = map ? JSON.parse(map.lines)
    : ["Where did it look?", "Click an action unit to see its heat on the face."];
  element.querySelector(".mf-told").replaceChildren(...lines.map((line, place) => {
    const part = document.createElement(place ? "div" : "b");
    part.textContent = line;
    return part;
  }));
}

element.addEventListener("click", (event) => {
  const box = event.target.closest(".mf-box"), row = event.target.closest("[data-name]");
  const button = event.target.closest("[data-do]");
  if (box) face = box.dataset.face;
  else if (row) name = name === row.dataset.name ? null : row.dataset.name;
  else if (button) name = button.dataset.do === "emotion" && name !== "emotion" ? "emotion" : null;
  else return;
  draw();
});
element.addEventListener("keydown", (event) => {
  const box = event.target.closest(".mf-box"), row = event.target.closest("button[data-name]");
  if (box && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); face = box.dataset.face; draw(); }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (row && step) {
    event.preventDefault();
    const rows = [...row.parentElement.children];
    const next = rows[(rows.indexOf(row) + step + rows.length) % rows.length];
    next.focus(); name = next.dataset.name; draw();
  }
});
watch("value", draw);
draw();
