// One marked block and one noise level for the whole page, drawn over every figure.
// Marks are elements above the figures, placed by plotly's axes: plotly itself draws nothing anew.

const marked = { block: null, level: null };
const whenMarked = []; // called with the dim that changed, "block" or "noise_level"

const valueOf = (dim) => (dim === "block" ? marked.block : marked.level);
const panelsOf = (figure) => figure.meta.panels ?? [];
const linked = () => figures.flatMap(panelsOf);

// The last block of the deepest model; one more is the head.
const lastBlock = () => Math.max(0, ...linked().map((panel) => panel.last));
const nameOf = (block) => {
  if (block === 0) return "block 0 (embedding)";
  return block > lastBlock() ? "head" : `block ${block}`;
};

// Runs of positions along an axis that stand for a value, as [first, last] in the axis' own units.
const runs = (along, value) => {
  if (along.values === null) return [[value, value]];
  const found = [];
  along.values.forEach((other, at) => {
    if (Math.abs(other - value) > 1e-9) return;
    if (found.length && found.at(-1)[1] === at - 1) found.at(-1)[1] = at;
    else found.push([at, at]);
  });
  return found;
};

// Rectangles [left, top, width, height] in pixels of the figure that mark the page's state.
const rectangles = (figure, panel) => {
  const { [panel.xaxis]: x, [panel.yaxis]: y } = figure.node._fullLayout;
  const found = [];
  for (const [along, axis] of [[panel.x, x], [panel.y, y]]) {
    const value = along && valueOf(along.dim);
    if (!along || value === null) continue;
    for (const [first, last] of runs(along, value)) {
      const ends = [axis.l2p(first - 0.5), axis.l2p(last + 0.5)];
      const low = Math.max(Math.min(...ends), 0);
      const size = Math.min(Math.max(...ends), axis._length) - low;
      if (size <= 0) continue;
      const box = axis === x
        ? [x._offset + low, y._offset, size, y._length]
        : [x._offset, y._offset + low, x._length, size];
      found.push({ dim: along.dim, filled: along.values === null, box });
    }
  }
  return found;
};

const showMarks = (figure) => {
  if (!figure.drawn || !figure.layer) return;
  const wanted = panelsOf(figure).flatMap((panel) => rectangles(figure, panel));
  while (figure.layer.childElementCount < wanted.length) figure.layer.append(element("i"));
  [...figure.layer.children].forEach((mark, at) => {
    mark.hidden = at >= wanted.length;
    if (mark.hidden) return;
    const { dim, filled, box: [left, top, width, height] } = wanted[at];
    mark.className = `mark ${dim === "block" ? "block" : "level"}${filled ? " filled" : ""}`;
    mark.style.cssText =
      `transform:translate(${left}px,${top}px);width:${width}px;height:${height}px`;
  });
};

const setMark = (dim, value) => {
  if (valueOf(dim) === value) return;
  if (dim === "block") marked.block = value;
  else marked.level = value;
  for (const figure of figures) showMarks(figure);
  for (const call of whenMarked) call(dim);
};

// What lies under the pointer: the panel, and what each of its axes means there.
const under = (figure, event) => {
  const { left, top } = figure.frame.getBoundingClientRect();
  for (const panel of panelsOf(figure)) {
    const { [panel.xaxis]: x, [panel.yaxis]: y } = figure.node._fullLayout;
    const across = event.clientX - left - x._offset;
    const down = event.clientY - top - y._offset;
    if (across < 0 || across > x._length || down < 0 || down > y._length) continue;
    const read = (along, axis, pixel) => {
      if (!along) return null;
      const at = Math.round(axis.p2l(pixel));
      const value = along.values === null ? at : along.values[at];
      return { dim: along.dim, at, value };
    };
    return { panel, x: read(panel.x, x, across), y: read(panel.y, y, down) };
  }
  return null;
};

// Follow the pointer; rows come before columns, because the page's maps grow upwards with depth.
const follow = (figure, event, tapped) => {
  const found = under(figure, event);
  if (!found) return;
  const axes = [found.y, found.x].filter((axis) => axis && axis.value !== undefined);
  const block = axes.find((axis) => axis.dim === "block");
  const level = axes.find((axis) => axis.dim === "noise_level");
  if (block && block.value >= 0 && block.value <= found.panel.last + 1) {
    setMark("block", block.value);
  }
  if (tapped && level) setMark("noise_level", level.value);
  if (tapped) figure.tapped?.(found);
};

const listen = (figure) => {
  let latest = null;
  figure.frame.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return; // a finger that moves scrolls
    if (!latest) requestAnimationFrame(() => { follow(figure, latest, false); latest = null; });
    latest = event;
  });
  let from = null; // plotly swallows clicks, so a tap is a press and a release in one place
  figure.frame.addEventListener("pointerdown", (event) => { from = event; }, true);
  window.addEventListener("pointerup", (event) => {
    const near = from && Math.hypot(event.clientX - from.clientX, event.clientY - from.clientY) < 8;
    from = null;
    if (near) follow(figure, event, true);
  }, true);
  window.addEventListener("pointercancel", () => { from = null; }, true);
};

whenDrawn.push((figure) => {
  if (!figure.meta.panels) return;
  figure.layer = element("div", { class: "marks", "aria-hidden": "true" });
  figure.frame.append(figure.layer);
  figure.node.on("plotly_afterplot", () => showMarks(figure));
  listen(figure);
  showMarks(figure);
});

// The marked block's numbers, as the page's tables have them: "RMS 1.2 [1.1, 1.3]".
const numbersOf = (block) =>
  [...document.querySelectorAll(`tr[data-block="${block}"]`)].flatMap((row) => {
    const heads = row.closest("table").tHead.rows[0].cells;
    return [...row.cells].flatMap((cell, at) => {
      const { short } = heads[at].dataset;
      return short ? [`${short} ${cell.textContent.trim().replace(/\s+/g, " ")}`] : [];
    });
  });

// The bar at the window's lower edge, from which the keyboard moves the mark.
const addBar = () => {
  if (!linked().some((panel) => [panel.x, panel.y].some((along) => along?.dim === "block"))) return;
  const range = element("input", {
    type: "range", id: "mark-range", min: 0, max: lastBlock() + 1, step: 1, value: 0,
    "aria-valuetext": "no block is marked",
  });
  const hint = "Hover or tap a block, or choose it here";
  const output = element("output", { for: "mark-range" }, hint);
  const clear = element("button", { type: "button" }, "Clear");
  clear.hidden = true;
  const label = element("label", { for: "mark-range" }, "Mark a block");
  const bar = element("div", { class: "bar", role: "group", "aria-label": "marked block" });
  bar.append(label, range, output, clear);
  const home = figures[0].frame.closest("section") ?? document.body;
  home.append(bar);
  range.addEventListener("input", () => setMark("block", range.valueAsNumber));
  clear.addEventListener("click", () => { setMark("block", null); range.focus(); });
  whenMarked.push((dim) => {
    if (dim !== "block") return;
    const { block } = marked;
    clear.hidden = block === null;
    if (block !== null) range.value = block;
    const text = block === null ? "no block is marked" : nameOf(block);
    const numbers = block === null ? "" : numbersOf(block).map((part) => `; ${part}`).join("");
    range.setAttribute("aria-valuetext", text + numbers);
    output.textContent = text.charAt(0).toUpperCase() + text.slice(1) + numbers;
    for (const row of document.querySelectorAll("tr.marked")) row.classList.remove("marked");
    if (block === null) return;
    for (const row of document.querySelectorAll(`tr[data-block="${block}"]`)) {
      row.classList.add("marked");
    }
  });
  document.addEventListener("keydown", (event) => {
    // Escape closes these.
    if (document.querySelector("[popover]:popover-open, dialog[open]")) return;
    if (event.key === "Escape") setMark("block", null);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || marked.block === null || event.target !== document.body) return;
    event.preventDefault();
    setMark("block", Math.min(Math.max(marked.block + step, 0), lastBlock() + 1));
  });
  const rowOf = (event) => event.target.closest?.("tr[data-block]");
  for (const kind of ["pointerover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const row = rowOf(event);
      if (row) setMark("block", Number(row.dataset.block));
    });
  }
};
