// Tables that can be sorted by a column and filtered by what stands in them.
function sortValue(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number(text.replaceAll(",", ""));
  if (text === "–" || text === "") return -Infinity;
  return Number.isNaN(number) ? text : number;
}

function sortTable(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const falling = header.getAttribute("aria-sort") === "ascending";
  const sign = falling ? -1 : 1;
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  rows.sort((a, b) => sign * compare(sortValue(a, column), sortValue(b, column)));
  table.tBodies[0].append(...rows);
}

function filterTable(table) {
  const fields = [...document.querySelectorAll(`[data-filter="${table.id}"]`)];
  const text = fields.find((f) => f.matches("input")).value.trim().toLowerCase();
  const group = fields.find((f) => f.matches("select"))?.value ?? "";
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const named = row.cells[0].textContent.toLowerCase().includes(text);
    row.hidden = !named || (group !== "" && row.dataset.group !== group);
    shown += !row.hidden;
  }
  const count = document.querySelector(`[data-count="${table.id}"]`);
  count.textContent = `${shown} of ${table.tBodies[0].rows.length}`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    cell.querySelector("button").addEventListener("click", () => sortTable(table, column));
  });
  for (const field of document.querySelectorAll(`[data-filter="${table.id}"]`)) {
    field.addEventListener("input", () => filterTable(table));
  }
  filterTable(table);
}
