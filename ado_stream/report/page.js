// Hover values, one domain alone in all figures and tables, sorted tables, search of domains, live updates.
"use strict";
const tip = document.getElementById("tip");
const dim = document.head.appendChild(document.createElement("style"));
const format = (value) => (Math.abs(value) >= 1e5 ? value.toExponential(3) : String(Number(value.toPrecision(4))));

function isolate(domain) { // again: all
  const shown = dim.dataset.domain === domain ? "" : domain;
  dim.dataset.domain = shown;
  dim.textContent = shown &&
    `svg [data-d]:not([data-d="${shown}"]):not([data-d=""]) { opacity: .07 }
     tr[data-d]:not([data-d="${shown}"]) { opacity: .3 }
     button[data-d="${shown}"] { outline: 2px solid currentColor }`;
}

const places = new WeakMap(); // of a drawn group: its vertices in the figure's points
function vertices(group) {
  if (!places.has(group)) {
    const uses = [...group.querySelectorAll("use")].map((use) => ["x", "y"].map((key) => Number(use.getAttribute(key))));
    const markers = uses.some(([x]) => x !== 0); // an area is drawn once, moved down by the figure's height
    const found = markers ? uses : [];
    for (const path of markers ? [] : group.querySelectorAll("path")) {
      const numbers = (path.getAttribute("d") || "").match(/-?[\d.]+(e-?\d+)?/g) || [];
      const down = uses.length ? uses[0][1] : 0;
      for (let i = 0; i + 1 < numbers.length; i += 2) found.push([Number(numbers[i]), Number(numbers[i + 1]) + down]);
    }
    found.area = uses.length > 0 && !markers;
    places.set(group, found);
  }
  return places.get(group);
}

function hovered(event, svg, at) { // the group under the pointer, else the one with the nearest vertex
  const under = event.target.closest("[data-d]");
  if (under) return under;
  let best = null, least = 12 ** 2;
  for (const group of svg.querySelectorAll("[data-d]"))
    for (const [x, y] of vertices(group)) {
      const square = (x - at.x) ** 2 + (y - at.y) ** 2;
      if (square < least) [best, least] = [group, square];
    }
  return best;
}

function valueAt(group, at) { // what is drawn at the vertex nearest in x: the height of an area, else y
  const axes = group.closest("[data-axes]"), points = vertices(group);
  if (!axes || !points.length) return "";
  const [left, right, bottom, top, x0, x1, y0, y1, label, scale] = JSON.parse(axes.dataset.axes);
  const x = points.reduce((a, b) => (Math.abs(b[0] - at.x) < Math.abs(a[0] - at.x) ? b : a))[0];
  const ys = points.filter((point) => point[0] === x).map((point) => y0 + ((point[1] - bottom) / (top - bottom)) * (y1 - y0));
  const y = points.area ? Math.max(...ys) - Math.min(...ys) : ys[0];
  return `${scale === "log2" ? "×" + format(2 ** y) : format(y)} at ${label || "step"} ${Math.round(x0 + ((x - left) / (right - left)) * (x1 - x0))}`;
}

document.addEventListener("pointermove", (event) => {
  const svg = event.target.closest?.("figure svg");
  const at = svg && new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const group = svg && hovered(event, svg, at);
  tip.hidden = !group;
  if (!group) return;
  const name = document.querySelector(`button[data-d="${group.dataset.d}"]`)?.textContent;
  const label = group.dataset.label;
  const value = !label || label.endsWith(": ") ? label + valueAt(group, at) : label;
  tip.textContent = (name ? name + ": " : "") + value;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = event.clientY + 14 + "px";
});

document.addEventListener("click", (event) => {
  const header = event.target.closest("th");
  if (header) return sort(header);
  const marked = event.target.closest("[data-d]");
  if (marked && marked.dataset.d) isolate(marked.dataset.d);
});

document.addEventListener("input", (event) => {
  if (event.target.id !== "search") return;
  const wanted = event.target.value.toLowerCase();
  for (const button of document.querySelectorAll("button[data-d]"))
    button.hidden = !button.textContent.toLowerCase().includes(wanted);
});

function sort(header) { // totals stay last
  const body = header.closest("table").tBodies[0], column = header.cellIndex;
  const down = header.getAttribute("aria-sort") !== "descending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const units = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
  const key = (row) => {
    const text = row.cells[column].textContent.replace(/,/g, "").replace("−", "-");
    const found = text.match(/^[+-]?[\d.]+(e[+-]?\d+)?/);
    return found ? Number(found[0]) * (units[text[found[0].length]] || 1) : text;
  };
  const order = (a, b) => (typeof a === "number") - (typeof b === "number") || (a < b ? -1 : a > b ? 1 : 0);
  const rows = [...body.rows].filter((row) => !row.classList.contains("total"));
  rows.sort((a, b) => (down ? -1 : 1) * order(key(a), key(b)));
  body.prepend(...rows);
}

if (document.body.dataset.live !== undefined) {
  const events = new EventSource("/events");
  events.onmessage = async () => {
    const page = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
    const scroll = scrollY, wanted = document.getElementById("search")?.value;
    document.querySelector("main").replaceWith(page.querySelector("main"));
    const search = document.getElementById("search");
    if (search) search.value = wanted || "";
    search?.dispatchEvent(new Event("input", { bubbles: true }));
    scrollTo(0, scroll);
  };
}
