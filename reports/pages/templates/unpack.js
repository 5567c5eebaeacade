// Unpacks plotly.js, which is most of the page and packed to less than half its size. It runs only
// because the page's policy names the hash of what must come out.

let plotlyReady = false; // whether plotly.js can be called

const unpackPlotly = async () => {
  const packed = document.getElementById("plotly");
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = await new Response(stream).text();
  packed.remove();
  document.head.append(element("script", {}, code));
  if (!window.Plotly) throw new Error("plotly.js did not start");
  plotlyReady = true;
};

// Say where the figures are to a browser from before 2023, which cannot unpack anything.
const unable = () => {
  const words = "This browser is too old to draw the figure. Most figures lie beside this page, in "
    + "the folder figures; dar-probe figures draws all of them.";
  for (const { node } of figures) if (!node.children.length) node.append(words);
};
