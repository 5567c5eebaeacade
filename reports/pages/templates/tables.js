// Every table.data sorts by its heads and exports itself as CSV.
// th: data-name, and data-kind "number", "interval" or "range" where the cells are numbers;
// td: data-value, data-low and data-high in full precision.

// A spreadsheet runs a text that begins like this as a formula.
const FORMULA = /^[=+\-@\t\r]/;
const quoted = (text) => `"${(FORMULA.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
const plain = (number) => (Number.isFinite(number) ? String(number) : "");

// Names for plotly are escaped; this undoes it without making anything of what they say.
const asText = (html) => new DOMParser().parseFromString(html, "text/html").body.textContent;

const slug = (text) =>
  text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60);

const download = (name, lines) => {
  const text = lines.map((cells) => `${cells.join(",")}\r\n`).join("");
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  const link = element("a", { href: address, download: `${slug(document.title)}-${name}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
};

const textOf = (cell) =>
  (cell.querySelector(".cell") ?? cell).textContent.trim().replace(/\s+/g, " ");

// One cell of the page is one, two or three of the file.
const partsOf = (kind) =>
  ({ number: ["value"], interval: ["value", "low", "high"], range: ["low", "high"] })[kind];

const linesOf = (table) => {
  const heads = [...table.tHead.rows[0].cells].map(({ dataset }) => dataset);
  const title = (name, part) => quoted(part === "value" ? name : `${name} ${part}`);
  const titles = heads.flatMap(({ name, kind }) =>
    (partsOf(kind) ?? ["value"]).map((part) => title(name, part)));
  const rows = [...table.tBodies[0].rows].map((row) =>
    [...row.cells].flatMap((cell, at) => {
      const parts = partsOf(heads[at].kind);
      return parts ? parts.map((part) => cell.dataset[part] ?? "") : [quoted(textOf(cell))];
    }));
  return [titles, ...rows];
};

// Numbers by value, texts as a person sorts them, what is not known last either way.
const sortBy = (table, at, up) => {
  const { kind } = table.tHead.rows[0].cells[at].dataset;
  const part = { number: "value", interval: "value", range: "low" }[kind];
  const key = (row) => {
    const text = part ? row.cells[at].dataset[part] : textOf(row.cells[at]);
    return part && text ? Number(text) : text ?? "";
  };
  const order = (one, other) => {
    if (one === "" || other === "") return (one === "") - (other === "");
    const sign = up ? 1 : -1;
    if (part) return sign * (one - other);
    return sign * one.localeCompare(other, "en", { numeric: true });
  };
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  table.tBodies[0].append(...rows.sort((a, b) => order(a[0], b[0])).map(([, row]) => row));
};

const addTable = (table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, at) => {
    const words = head.querySelector(".head");
    const button = element("button", { type: "button", class: "sort" }, ...words.childNodes);
    words.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sortBy(table, at, up);
    });
  });
  const csv = element("button", { type: "button", class: "csv" }, "Export CSV");
  csv.addEventListener("click", () => download(table.id.replace(/^table-/, ""), linesOf(table)));
  (table.closest(".scroll") ?? table).after(csv);
};

// A browser prints a table's head on every page unless a button stands in it, so paper has none.
let sorts = [];
const printHeads = () => {
  sorts = [...document.querySelectorAll("button.sort")].map((button) => {
    const [home, parts] = [button.parentElement, [...button.childNodes]];
    button.replaceWith(...parts);
    return { button, home, parts };
  });
};

const restoreHeads = () => {
  for (const { button, home, parts } of sorts) {
    button.append(...parts);
    home.append(button);
  }
  sorts = [];
};
