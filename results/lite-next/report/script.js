// Sorting and filtering of the claims, opening of linked cells, copying of commands. Without it everything is there,
// in the paper's order.
"use strict";

const ledger = document.querySelector(".claims");
if (ledger) {
  const rows = [...ledger.tBodies[0].rows];
  const controls = document.querySelector(".controls");
  const buttons = [...controls.querySelectorAll("[data-verdict]")];
  const words = controls.querySelector("input");
  const said = controls.querySelector("output");
  const state = new URLSearchParams(location.hash.startsWith("#?") ? location.hash.slice(2) : "");

  const apply = () => {
    const wanted = new Set(buttons.filter((b) => b.getAttribute("aria-pressed") === "true").map((b) => b.dataset.verdict));
    const parts = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = (wanted.size > 0 && !wanted.has(row.dataset.verdict)) || !parts.every((part) => text.includes(part));
      shown += !row.hidden;
    }
    said.textContent = shown === rows.length ? `${shown} claims` : `${shown} of ${rows.length} claims`;
    const now = new URLSearchParams();
    if (wanted.size) now.set("verdict", [...wanted].join("|"));
    if (words.value) now.set("words", words.value);
    if (`${now}` || location.hash.startsWith("#?")) history.replaceState(null, "", `#?${now}`);
  };

  const sort = (header, key) => {
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of ledger.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (row) => (key === "verdict" ? Number(row.dataset.order) : 0);
    rows.sort((a, b) => (order(a) - order(b) || a.id.localeCompare(b.id)) * (down ? -1 : 1));
    ledger.tBodies[0].append(...rows);
  };

  for (const header of ledger.querySelectorAll("[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header, header.dataset.sort));
    header.append(button);
  }
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String((state.get("verdict") ?? "").split("|").includes(button.dataset.verdict)));
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      apply();
    });
  }
  words.value = state.get("words") ?? "";
  words.addEventListener("input", apply);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.hidden = false;
  document.querySelector(".counts").hidden = true;
  apply();
}

const open = () => {
  const target = location.hash.length > 1 && !location.hash.startsWith("#?") && document.getElementById(location.hash.slice(1));
  const details = target && (target.matches("details") ? target : target.querySelector("details"));
  if (details) {
    details.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", open);
open();

for (const block of navigator.clipboard ? document.querySelectorAll("pre") : []) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  block.before(button);
}
