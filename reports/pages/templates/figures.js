// Draws the figures, and keeps them right for light, dark, narrow and printed pages.
// A figure is {id, node, frame, meta, spec, narrow, drawn}; layout.meta is all it says of itself.

// A printed figure is laid out this wide and then shrunk by the style sheet.
const PRINTED = { large: 960, small: 465 };
const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] };
const figures = [];
const whenDrawn = []; // called with each figure once it is drawn

// Make an element: its attributes, then its children.
const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// The page's own colours, so that a figure never disagrees with the text around it; a map has
// colours of its own for a light and for a dark page.
const theme = (figure) => {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  return {
    "font.color": colour("--ink"),
    "hoverlabel.bgcolor": colour("--surface"),
    "hoverlabel.bordercolor": colour("--line"),
    "hoverlabel.font.color": colour("--ink"),
    ...figure.meta.schemes?.[colour("--scheme")],
  };
};

// Make something once, when it is first asked for: the first view does not wait for it.
const once = (make) => {
  let made = null;
  return () => (made ??= make());
};

// What is folded has no size, and is drawn when it is opened.
const isFolded = ({ frame }) => Boolean(frame.closest("details:not([open])"));

const isNarrow = (figure, width) => width < figure.meta.room;
const shape = (figure, width) => (isNarrow(figure, width) ? figure.meta.narrow : figure.meta.wide);

// Set "a.b.c" in a layout that has not been drawn yet, as relayout would.
const put = (layout, patch) => {
  for (const [path, value] of Object.entries(patch)) {
    const keys = path.replace(/\[(\d+)\]/g, ".$1").split(".");
    const last = keys.pop();
    let at = layout;
    for (const key of keys) at = at[key] ??= {};
    at[last] = value;
  }
};

// Read a figure's JSON, and keep its place so that the page does not jump when it is drawn.
const find = (source) => {
  const node = document.getElementById(source.dataset.figure);
  const spec = JSON.parse(source.textContent);
  const frame = element("div", { class: "frame" });
  node.replaceWith(frame);
  frame.append(node);
  const figure = { id: node.id, node, frame, meta: spec.layout.meta, spec, drawn: false };
  delete spec.layout.meta; // plotly would copy it at every change
  const width = node.clientWidth || document.querySelector("main").clientWidth;
  node.style.height = `${shape(figure, width).height}px`;
  figures.push(figure);
};

const draw = (figure) => {
  if (figure.drawn || !plotlyReady) return;
  const { node, spec } = figure;
  figure.narrow = isNarrow(figure, node.clientWidth);
  put(spec.layout, { ...shape(figure, node.clientWidth), ...theme(figure) });
  const displayModeBar = figure.narrow ? false : "hover"; // a narrow figure's title is in its way
  node.style.height = "";
  node.replaceChildren(); // a still stood here
  Plotly.newPlot(node, spec.data, spec.layout, { ...config, displayModeBar });
  figure.drawn = true;
  for (const call of whenDrawn) call(figure);
};

// Draw what is in view at once, then one figure at a time, so that the page stays awake.
const drawAll = () => {
  const far = (figure) => {
    const { top, bottom } = figure.frame.getBoundingClientRect();
    return Math.max(top - window.innerHeight, -bottom, 0);
  };
  const idle = window.requestIdleCallback ?? ((call) => setTimeout(call, 0));
  const next = () => {
    if (!plotlyReady) return;
    const open = figures.filter((figure) => !figure.drawn && !isFolded(figure));
    if (!open.length) return;
    draw(open.reduce((best, figure) => (far(figure) < far(best) ? figure : best)));
    idle(next, { timeout: 200 });
  };
  next();
};

const repaint = () => {
  for (const figure of figures) if (figure.drawn) Plotly.relayout(figure.node, theme(figure));
};

// Lay a figure out anew for the room that it has.
const fit = (figure, patch = {}) => {
  if (!figure.drawn) return;
  figure.narrow = isNarrow(figure, figure.node.clientWidth);
  const wanted = { ...shape(figure, figure.node.clientWidth), ...theme(figure), ...patch };
  Plotly.relayout(figure.node, { ...wanted, width: null, autosize: true });
};

const unfold = (event) => {
  if (!event.target.matches("details[open]")) return;
  const inside = figures.filter(({ frame }) => event.target.contains(frame));
  for (const figure of inside) if (!isFolded(figure)) fit(figure);
  if (inside.length) drawAll();
};

const resize = () => {
  for (const figure of figures) {
    if (isFolded(figure)) continue;
    const narrow = isNarrow(figure, figure.node.clientWidth);
    if (!figure.drawn || narrow === figure.narrow) continue;
    figure.narrow = narrow;
    Plotly.relayout(figure.node, shape(figure, figure.node.clientWidth));
  }
};

// Plotly draws in pixels of the screen, so paper needs its own width and the light colours.
let opened = [];
const print = () => {
  document.documentElement.classList.add("printed");
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const detail of opened) detail.open = true;
  for (const figure of figures) {
    draw(figure);
    if (!figure.drawn) continue; // before plotly.js is there, stills are printed
    const width = figure.node.closest(".small") ? PRINTED.small : PRINTED.large;
    const patch = { ...shape(figure, width), ...theme(figure) };
    Plotly.relayout(figure.node, { ...patch, width, autosize: false });
  }
};

const restore = () => {
  document.documentElement.classList.remove("printed");
  for (const detail of opened) detail.open = false;
  for (const figure of figures) if (!isFolded(figure)) fit(figure); // the others when they open
};
