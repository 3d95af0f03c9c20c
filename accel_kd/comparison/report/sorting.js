
"use strict";
// A click on a heading sorts its table by that column, a second one the other way; cells without a key stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      const numeric = heading.classList.contains("number");
      const keyOf = (row) => row.cells[column].dataset.key;
      const compare = (one, other) => numeric ? keyOf(one) - keyOf(other) : keyOf(one).localeCompare(keyOf(other));
      const rows = [...body.rows];
      const keyed = rows.filter((row) => keyOf(row) !== undefined).sort(compare);
      if (descending) keyed.reverse();
      body.append(...keyed, ...rows.filter((row) => keyOf(row) === undefined));
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  });
}
