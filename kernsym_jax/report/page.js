"use strict";

const numberOf = (cell) => (cell.dataset.value === "" ? NaN : Number(cell.dataset.value));

function compare(column, direction) {
  return (left, right) => {
    const [a, b] = [left.cells[column], right.cells[column]];
    if (a.dataset.value === undefined) {
      return direction * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
    }
    const [x, y] = [numberOf(a), numberOf(b)];
    if (Number.isNaN(x) && Number.isNaN(y)) {
      return direction * a.dataset.value.localeCompare(b.dataset.value, undefined, { numeric: true });
    }
    // What is unknown stays at the end whichever way the rest is sorted.
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return direction * (x - y);
  };
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare(column, ascending ? 1 : -1)));
    });
  });
}

for (const section of document.querySelectorAll("section.network")) {
  const name = section.querySelector(".by-name");
  const role = section.querySelector(".by-role");
  const rows = [...section.querySelectorAll("table.layers tbody tr")];
  const filter = () => {
    let shown = 0;
    for (const row of rows) {
      const fits = row.dataset.name.includes(name.value.toLowerCase())
        && (role.value === "" || row.dataset.role === role.value);
      row.hidden = !fits;
      shown += fits;
    }
    section.querySelector(".count").textContent = `${shown} of ${rows.length} layers`;
  };
  name.addEventListener("input", filter);
  role.addEventListener("change", filter);
  filter();
}
