// A map over the whole window: its controls and its frame move into a dialog and back.
// A phone shows it wider than the window, and one pans it; Escape or the button closes it.

const LEAST = 900; // pixels that an enlarged map is wide at least
let enlarged = null; // the figure in the dialog

const sheet = once(() => {
  const made = element("dialog", { class: "sheet" });
  made.addEventListener("close", shrink);
  document.body.append(made);
  return made;
});

const enlarge = (figure) => {
  const home = figure.frame.parentElement;
  const parts = [...home.querySelectorAll(":scope > .controls, :scope > .frame")];
  sheet().setAttribute("aria-label", figure.node.getAttribute("aria-label"));
  sheet().append(...parts);
  enlarged = { figure, home, parts };
  figure.frame.style.minWidth = `${LEAST}px`;
  figure.enlarge.textContent = "Close";
  sheet().showModal();
  figure.enlarge.focus();
  const above = figure.frame.offsetTop + 24;
  const height = Math.max(figure.meta.wide.height, sheet().clientHeight - above);
  fit(figure, { height });
};

const shrink = () => {
  const { figure, home, parts } = enlarged;
  enlarged = null;
  home.querySelector("figcaption").after(...parts);
  figure.frame.style.minWidth = "";
  figure.enlarge.textContent = "Enlarge";
  fit(figure);
  figure.enlarge.focus();
};

// A button beside the controls of a figure of maps.
const addEnlarge = (figure) => {
  const controls = figure.frame.parentElement.querySelector(":scope > .controls");
  if (!figure.meta.schemes || !controls) return;
  figure.enlarge = element("button", { type: "button", class: "enlarge" }, "Enlarge");
  figure.enlarge.addEventListener("click", () => {
    if (enlarged) sheet().close();
    else enlarge(figure);
  });
  controls.append(figure.enlarge);
};
