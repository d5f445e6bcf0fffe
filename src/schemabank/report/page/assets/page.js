// Draws the charts with tooltips, and hides the samples that are not asked for. Text from the
// report reaches the page through textContent alone.
"use strict";

const element = (name, text) => {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
};

// --- Charts ---

const tip = document.createElement("dl");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

const showTip = (handler, event, item, value) => {
  tip.hidden = !value || typeof value !== "object";
  if (tip.hidden) return;
  tip.replaceChildren(
    ...Object.entries(value).map(([name, shown]) => {
      const line = document.createElement("div");
      line.append(element("dt", name), element("dd", String(shown)));
      return line;
    }),
  );
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
};

const addHighlight = (box, view, arms) => {
  const label = element("label", "Highlight ");
  const select = document.createElement("select");
  select.append(new Option("all arms", ""), ...arms.map((arm) => new Option(arm, arm)));
  select.addEventListener("change", () => view.signal("arm", select.value).runAsync());
  label.className = "highlight";
  label.append(select);
  box.closest("figure").querySelector("figcaption").before(label);
};

const draw = async (box, { spec, arms }) => {
  const place = document.createElement("div");
  const look = { actions: false, defaultStyle: false, renderer: "svg", tooltip: showTip };
  const { view } = await window.vegaEmbed(place, spec, { ...look, ast: true });  // ast: no eval
  place.ariaHidden = "true";  // the box describes it
  box.replaceChildren(place);
  if (arms.length > 1) addHighlight(box, view, arms);
  box.dataset.drawn = "";
};

const drawAll = async () => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  for (const box of document.querySelectorAll("[data-chart]")) {
    await draw(box, charts[box.dataset.chart]);
  }
};

// --- Samples ---

const form = document.getElementById("filters");
const samples = [...document.querySelectorAll(".sample")];
const words = new Map();  // lower case, made when first searched

const textOf = (sample) => {
  if (!words.has(sample)) words.set(sample, sample.textContent.toLowerCase());
  return words.get(sample);
};

const matches = (sample, asked) => {
  const { flip, group } = sample.dataset;
  if ((asked.flip && asked.flip !== flip) || (asked.group && asked.group !== group)) return false;
  if (asked.words && !textOf(sample).includes(asked.words)) return false;
  if (!asked.stop) return true;
  const cells = [...sample.querySelectorAll("[data-stop]")];
  return cells.some((cell) => cell.dataset.stop === asked.stop && (!asked.arm || cell.dataset.arm === asked.arm));
};

const filter = () => {
  const asked = Object.fromEntries(new FormData(form));
  asked.words = asked.words.trim().toLowerCase();
  let count = 0;
  for (const sample of samples) {
    sample.hidden = !matches(sample, asked);
    count += sample.hidden ? 0 : 1;
  }
  for (const cell of document.querySelectorAll(".sample [data-arm]")) {
    cell.hidden = asked.arm !== "" && cell.dataset.arm !== asked.arm;
  }
  form.elements.count.value = `${count} of ${samples.length} samples`;
};

const openLinked = () => {
  const sample = document.getElementById(location.hash.slice(1));
  if (!sample || !sample.classList.contains("sample")) return;
  if (sample.hidden) {
    form.reset();
    filter();
  }
  sample.open = true;
  sample.scrollIntoView();
  sample.querySelector("summary").focus({ preventScroll: true });
};

if (form) {
  let wait = 0;
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(filter, 120);
  });
  addEventListener("hashchange", openLinked);
  openLinked();
}

// --- Print: browsers that cannot open by style are helped ---

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not(.sample):not([open])")];
  for (const part of opened) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of opened) part.open = false;
});

drawAll();
