// Two volumes side by side with one crosshair, drawn by NiiVue. Volumes are gzipped NIfTI in blocks of base64 text.
(() => {
  "use strict";
  const volumes = JSON.parse(document.getElementById("volumes").textContent);
  const panel = document.getElementById("viewer-panel");
  if (!document.createElement("canvas").getContext("webgl2")) return; // the page shows a sentence about it

  const AXES = [["L", "R"], ["P", "A"], ["I", "S"]]; // the subject's sides towards lower and higher mm
  const sliders = [...document.querySelectorAll("#crosshair label:nth-child(-n+3) input")];
  const overlay = document.querySelector("#overlay input");
  const planes = document.getElementById("planes");
  let point = volumes[0].point_mm.slice();

  const panes = ["left", "right"].map((side) => {
    const element = document.getElementById(`pane-${side}`);
    const canvas = element.querySelector("canvas");
    const nv = new niivue.Niivue({
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      sliceType: Number(planes.value),
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
      multiplanarPadPixels: 4,
      dragMode: niivue.DRAG_MODE.none,
      dragAndDropEnabled: false,
      scrollRequiresFocus: true, // otherwise the page could not be scrolled over a picture
      viewModeHotKey: "",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      crosshairColor: [0.95, 0.55, 0.25, 0.8],
      crosshairWidthUnit: "mm",
      showAllOrientationMarkers: true,
      isNearestInterpolation: false,
      loadingText: "",
      logLevel: "error",
    });
    const [select, caption] = ["select", "figcaption"].map((name) => element.querySelector(name));
    return { side, element, canvas, nv, select, caption, shown: null, asked: 0, current: null };
  });

  function buffer(id) {
    const text = atob(document.getElementById(id).textContent);
    return Uint8Array.from(text, (letter) => letter.charCodeAt(0)).buffer;
  }

  async function read(number) {
    const { white, labels, name } = volumes[number];
    const image = await niivue.NVImage.loadFromUrl({
      url: buffer(`volume-${number}-image`), name: `${name}.nii.gz`, colormap: "gray", cal_min: 0, cal_max: white,
    });
    if (!labels) return [image];
    const map = await niivue.NVImage.loadFromUrl({
      url: buffer(`volume-${number}-labels`), name: `${name}_dseg.nii.gz`, opacity: Number(overlay.value),
    });
    const [R, G, B] = labels.colours;
    map.setColormapLabel({ R, G, B, A: R.map((_, k) => (k ? 255 : 0)), I: R.map((_, k) => k), labels: labels.names });
    return [image, map];
  }

  function mark() {
    for (const figure of document.querySelectorAll("figure[data-volume]")) {
      for (const pane of panes) figure.classList.toggle(`at-${pane.side}`, Number(figure.dataset.volume) === pane.shown);
    }
  }

  async function show(pane, number) {
    const asked = ++pane.asked;
    pane.shown = number;
    pane.select.value = String(number);
    mark();
    let images;
    try {
      images = await read(number);
    } catch (error) {
      pane.caption.textContent = `${volumes[number].name} could not be shown (${error.message})`;
      return;
    }
    if (asked !== pane.asked) return; // another volume was chosen while this one was read
    while (pane.nv.volumes.length) pane.nv.removeVolume(pane.nv.volumes[pane.nv.volumes.length - 1]);
    for (const image of images) pane.nv.addVolume(image);
    const [low, high] = volumes[number].bounds_mm[1];
    pane.nv.opts.crosshairWidth = (high - low) * 0.006; // a thinner line falls between the pixels of a small screen
    pane.current = { images, names: volumes[number].labels?.names };
    limits();
    move(point);
    pane.element.dataset.loaded = volumes[number].name;
  }

  function limits() {
    const shown = panes.filter((pane) => pane.shown !== null).map((pane) => volumes[pane.shown]);
    sliders.forEach((slider, axis) => {
      slider.min = Math.min(...shown.map((volume) => volume.bounds_mm[axis][0]));
      slider.max = Math.max(...shown.map((volume) => volume.bounds_mm[axis][1]));
    });
    document.getElementById("overlay").hidden = !shown.some((volume) => volume.labels);
  }

  // The pane `from` has its crosshair there already.
  function move(mm, from) {
    point = mm.map((x, axis) => Math.min(Math.max(x, Number(sliders[axis].min)), Number(sliders[axis].max)));
    sliders.forEach((slider, axis) => {
      slider.value = point[axis];
      slider.nextElementSibling.textContent = `${Math.abs(Math.round(point[axis]))} mm ${AXES[axis][Number(point[axis] >= 0)]}`;
    });
    for (const pane of panes) {
      if (!pane.current) continue;
      if (pane !== from) {
        pane.nv.scene.crosshairPos = pane.nv.mm2frac(point);
        pane.nv.drawScene();
      }
      const { images: [image, map], names } = pane.current;
      const value = (volume) => Number(volume.getValue(...volume.mm2vox(point)));
      const label = map ? ` · ${names[Math.round(value(map))] ?? "outside"}` : "";
      pane.caption.textContent = `intensity ${value(image).toPrecision(3)}${label}`;
    }
  }

  async function start() {
    panel.hidden = false; // canvases without a size cannot be drawn on
    document.getElementById("no-viewer").hidden = true;
    document.documentElement.classList.add("has-viewer");
    for (const pane of panes) {
      await pane.nv.attachToCanvas(pane.canvas);
      pane.nv.onLocationChange = ({ mm }) => move([mm[0], mm[1], mm[2]], pane);
      pane.select.addEventListener("change", () => show(pane, Number(pane.select.value)));
    }
    sliders.forEach((slider, axis) => {
      slider.addEventListener("input", () => move(point.map((x, k) => (k === axis ? Number(slider.value) : x))));
    });
    overlay.addEventListener("input", () => {
      for (const { nv, current } of panes) if (current?.images[1]) nv.setOpacity(1, Number(overlay.value));
    });
    planes.addEventListener("change", () => {
      for (const { nv } of panes) nv.setSliceType(Number(planes.value));
    });
    document.addEventListener("click", (event) => {
      const figure = event.target.closest("figure[data-volume]");
      const button = event.target.closest("button[data-side]");
      if (!figure || !(button || event.target.closest(".planes"))) return;
      const right = button ? button.dataset.side === "right" : event.shiftKey;
      show(panes[Number(right)], Number(figure.dataset.volume));
      // As a link would: the Back button then returns to the place in the gallery.
      const { top, bottom } = panel.getBoundingClientRect();
      if (bottom < 100 || top > window.innerHeight - 100) location.hash = "viewer";
    });
    for (const pane of panes) await show(pane, Number(pane.element.dataset.start));
  }

  start().catch((error) => {
    panel.hidden = true;
    document.documentElement.classList.remove("has-viewer");
    const sentence = document.getElementById("no-viewer");
    sentence.hidden = false;
    sentence.textContent = `The viewer could not start (${error.message}). Everything else on this page works without it.`;
  });
  window.reportViewer = { panes, move }; // for tests
})();
