// Draws the page's figures and keeps them right for light, dark, narrow and printed pages.
// Only this script and plotly.js run: the page's policy names their hashes.
"use strict";
(() => {
  // A printed figure is laid out this wide and then shrunk by the style sheet.
  const PRINTED = { large: 960, small: 465 };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] };
  const figures = [];

  // The page's own colours, so that a figure never disagrees with the text around it.
  const theme = () => {
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(name).trim();
    return {
      "font.color": colour("--ink"),
      "hoverlabel.bgcolor": colour("--surface"),
      "hoverlabel.bordercolor": colour("--line"),
      "hoverlabel.font.color": colour("--ink"),
    };
  };

  const isNarrow = (figure, width) => width < figure.meta.room;
  const shape = (figure, width) => (isNarrow(figure, width) ? figure.meta.narrow : figure.meta.wide);

  // Set "a.b.c" in a layout that has not been drawn yet, as relayout would.
  const put = (layout, patch) => {
    for (const [path, value] of Object.entries(patch)) {
      const keys = path.split(".");
      const last = keys.pop();
      let at = layout;
      for (const key of keys) at = at[key] ??= {};
      at[last] = value;
    }
  };

  const draw = (source) => {
    const node = document.getElementById(source.dataset.figure);
    const spec = JSON.parse(source.textContent);
    const figure = { node, meta: spec.layout.meta };
    figure.narrow = isNarrow(figure, node.clientWidth);
    put(spec.layout, { ...shape(figure, node.clientWidth), ...theme() });
    const displayModeBar = figure.narrow ? false : "hover"; // a narrow figure's title is in its way
    Plotly.newPlot(node, spec.data, spec.layout, { ...config, displayModeBar });
    figures.push(figure);
  };

  const repaint = () => {
    for (const figure of figures) Plotly.relayout(figure.node, theme());
  };

  const resize = () => {
    for (const figure of figures) {
      const narrow = isNarrow(figure, figure.node.clientWidth);
      if (narrow === figure.narrow) continue;
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
      const width = figure.node.closest(".small") ? PRINTED.small : PRINTED.large;
      const patch = { ...shape(figure, width), ...theme(), width, autosize: false };
      Plotly.relayout(figure.node, patch);
    }
  };

  const restore = () => {
    document.documentElement.classList.remove("printed");
    for (const detail of opened) detail.open = false;
    for (const figure of figures) {
      const patch = { ...shape(figure, figure.node.clientWidth), ...theme() };
      Plotly.relayout(figure.node, { ...patch, width: null, autosize: true });
    }
  };

  document.querySelectorAll("script[data-figure]").forEach(draw);
  dark.addEventListener("change", repaint);
  window.addEventListener("resize", resize);
  window.addEventListener("beforeprint", print);
  window.addEventListener("afterprint", restore);
})();
