// Opens a figure's pictures in full width, unless the viewer opens the volume.
(() => {
  "use strict";
  const dialog = document.getElementById("enlarged");
  const pictures = dialog.querySelector("div");
  document.documentElement.classList.add("has-scripts");
  document.addEventListener("click", (event) => {
    const figure = event.target.closest(".gallery figure");
    if (!figure || !event.target.closest(".enlarge button, .planes")) return;
    const inViewer = document.documentElement.classList.contains("has-viewer") && "volume" in figure.dataset;
    if (inViewer && !event.target.closest(".enlarge")) return;
    pictures.replaceChildren(...[...figure.querySelectorAll(".planes img")].map((picture) => picture.cloneNode()));
    dialog.showModal();
  });
  dialog.addEventListener("click", (event) => { if (event.target !== pictures) dialog.close(); });
})();

// Filters and sorts the figures of the gallery by the values in their data-values.
(() => {
  "use strict";
  const form = document.getElementById("filters");
  if (!form) return;
  const gallery = document.getElementById("figures");
  const figures = [...gallery.querySelectorAll("figure")].map((element, place) => ({
    element,
    place,
    values: JSON.parse(element.dataset.values || "[]"),
    text: element.querySelector("figcaption").textContent.toLowerCase(),
  }));
  const ranges = [...form.querySelectorAll(".range")].map((field) => {
    const [low, high] = field.querySelectorAll("input");
    return { field, low, high, column: Number(field.dataset.column), output: field.querySelector("output") };
  });
  const levels = [...form.querySelectorAll(".levels")].map((field) => ({
    column: Number(field.dataset.column),
    boxes: [...field.querySelectorAll("input")],
  }));
  const search = document.getElementById("search");
  const sort = document.getElementById("sort");
  const descending = document.getElementById("descending");

  // A slider at its end filters nothing, so that rounding hides no volume, and volumes without a value are shown.
  function tests() {
    const all = [];
    for (const { low, high, column } of ranges) {
      const slack = Number(low.step) * 1e-6;
      const from = low.value === low.min ? -Infinity : Number(low.value) - slack;
      const to = high.value === high.max ? Infinity : Number(high.value) + slack;
      if (from !== -Infinity || to !== Infinity) {
        all.push(({ values }) => values[column] !== null && values[column] >= from && values[column] <= to);
      }
    }
    for (const { boxes, column } of levels) {
      if (boxes.every((box) => box.checked)) continue;
      const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      all.push(({ values }) => wanted.has(values[column]));
    }
    const words = search.value.trim().toLowerCase();
    if (words) all.push(({ text }) => text.includes(words));
    return all;
  }

  function filter() {
    for (const { field, low, high, output } of ranges) {
      const span = low.max - low.min;
      field.style.setProperty("--from", `${(100 * (low.value - low.min)) / span}%`);
      field.style.setProperty("--to", `${(100 * (high.value - low.min)) / span}%`);
      // If both thumbs meet at the upper end, the lower one must be on top, or neither could be moved.
      low.style.zIndex = low.value - low.min > span / 2 ? 2 : 1;
      output.textContent = `${Number(low.value)} – ${Number(high.value)}`;
    }
    const all = tests();
    let shown = 0;
    for (const figure of figures) {
      figure.element.hidden = !all.every((test) => test(figure));
      shown += !figure.element.hidden;
    }
    document.getElementById("count").textContent = `${shown} of ${figures.length}`;
  }

  function order() {
    const sign = descending.checked ? -1 : 1;
    const column = sort.value === "" ? null : Number(sort.value);
    const compare = (a, b) => {
      if (column === null) return sign * (a.place - b.place);
      const [x, y] = [a.values[column], b.values[column]];
      if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place; // unknown values last
      return sign * (typeof x === "number" ? x - y : x.localeCompare(y)) || a.place - b.place;
    };
    gallery.append(...[...figures].sort(compare).map((figure) => figure.element));
  }

  for (const { low, high } of ranges) {
    low.addEventListener("input", () => { if (Number(low.value) > Number(high.value)) low.value = high.value; });
    high.addEventListener("input", () => { if (Number(high.value) < Number(low.value)) high.value = low.value; });
  }
  form.addEventListener("input", filter);
  for (const control of [sort, descending]) control.addEventListener("change", order);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { filter(); order(); })); // after the controls are reset
  form.reset(); // some browsers restore the controls of the last visit
  form.hidden = false;
})();
