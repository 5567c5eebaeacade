// Starts the page. Only this script and plotly.js run: the page's policy names their hashes.

// The switch for the spread over samples, above the figure that has it and in the tables.
const addSpread = (figure) => {
  const { spread } = figure.meta;
  const box = element("input", { type: "checkbox", id: `${figure.id}-spread` });
  const label = element("label", { for: box.id }, box, " Show the middle 90 % of the samples");
  figure.frame.before(element("div", { class: "controls" }, label));
  const show = () => {
    document.documentElement.classList.toggle("with-spread", box.checked);
    if (!figure.drawn) return;
    const layout = box.checked ? spread.shown : spread.hidden;
    Plotly.update(figure.node, { visible: box.checked }, layout, spread.traces);
  };
  box.addEventListener("change", show);
  whenDrawn.push((other) => { if (other === figure && box.checked) show(); });
};

// Open what a link of the contents leads to; browsers then scroll there themselves.
const reveal = (hash) => {
  const goal = hash?.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
  for (let fold = goal && goal.closest("details"); fold;
    fold = fold.parentElement.closest("details")) fold.open = true;
};

const start = () => {
  document.querySelectorAll("script[data-figure]").forEach(find);
  for (const figure of figures) if (figure.meta.spread) addSpread(figure);
  addLevels();
  figures.forEach(addEnlarge);
  document.querySelectorAll("table.data").forEach(addTable);
  addBar();
  unpackPlotly().then(drawAll, unable);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", repaint);
  document.addEventListener("toggle", unfold, true); // it does not bubble
  document.addEventListener("click", ({ target }) => reveal(target.closest?.("a")?.hash));
  reveal(window.location.hash);
  window.addEventListener("resize", resize);
  window.addEventListener("beforeprint", () => {
    if (enlarged) sheet().close();
    printHeads();
    print();
  });
  window.addEventListener("afterprint", () => { restoreHeads(); restore(); });
};

start();
