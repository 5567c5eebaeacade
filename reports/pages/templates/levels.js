// The noise level of the reader x source maps, and one reader over all noise levels.
// layout.meta.frames holds every level as bytes; one trace for each map shows one of them.

const PLAY_MS = 450; // between two levels

const bytesOf = (text) => {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at += 1) bytes[at] = letters.charCodeAt(at);
  return bytes;
};

// Return the frames with names, and maps of {quantity, value(level, reader, source), dot(...)}.
const unpack = (figure) => {
  const { frames } = figure.meta;
  const [{ x: sources, y: readers }] = figure.spec.data;
  const index = (level, reader, source) =>
    (level * readers.length + reader) * sources.length + source;
  const maps = frames.maps.map((map) => {
    const z = once(() => new Float32Array(bytesOf(map.z).buffer));
    const marks = once(() => bytesOf(map.marks));
    const bit = (at) => (marks()[at >> 3] >> (7 - (at & 7))) & 1;
    const value = (...at) => z()[index(...at)];
    const dot = map.marks ? (...at) => (bit(index(...at)) ? frames.dot : "") : null;
    return { quantity: map.quantity, value, dot };
  });
  return { ...frames, maps, readers, sources };
};

// Evaluate a cell for every row and column.
const grid = (rows, columns, cell) => rows.map((row) => columns.map((column) => cell(row, column)));
const upTo = (count) => Array.from({ length: count }, (_, at) => at);

const showLevel = (figure) => {
  const { data } = figure;
  const level = data.values.indexOf(marked.level);
  if (!figure.drawn || level < 0 || level === figure.level) return;
  figure.level = level;
  const { readers, sources } = data;
  const cells = (cell) =>
    grid(upTo(readers.length), upTo(sources.length), (...at) => cell(level, ...at));
  const z = data.maps.map(({ value }) => cells(value));
  const traces = { z, meta: z.map(() => data.levels[level]) };
  putMaps(figure, data, { traces, layout: {}, cells, rows: readers, columns: sources });
};

// Change the maps of a figure and their dots at once. A dot is a text for the pointer and a round
// marker of a size in pixels; meta.dots has the traces of markers, one for each map with dots.
const putMaps = (figure, data, { traces, layout, cells, rows, columns }) => {
  const maps = upTo(data.maps.length);
  const dots = figure.meta.dots ?? [];
  const patch = { x: [], y: [], text: [], ...traces };
  let next = maps.length;
  data.maps.forEach(({ dot }, at) => {
    if (!dot) return;
    patch.text[at] = cells(dot);
    const places = patch.text[at].flatMap((row, y) =>
      row.flatMap((text, x) => (text ? [[x, y]] : [])));
    patch.x[next] = places.map(([x]) => columns[x]);
    patch.y[next] = places.map(([, y]) => rows[y]);
    next += 1;
  });
  // Plotly leaves as it is what is undefined, and begins anew with a list that is too short.
  for (const values of Object.values(patch)) values.length = maps.length + dots.length;
  // It guesses the types of axes whenever x or y changes; noise levels look like numbers.
  for (const at of maps) {
    for (const letter of "xy") layout[`${letter}axis${at ? at + 1 : ""}.type`] = "category";
  }
  Plotly.update(figure.node, patch, layout, [...maps, ...dots]);
};

// A slider over the levels and a button that plays them.
const addSlider = (figure) => {
  const { data, id } = figure;
  if (data.levels.length < 2) return;
  const range = element("input", {
    type: "range", id: `${id}-level`, min: 0, max: data.levels.length - 1, step: 1, value: 0,
  });
  const output = element("output", { for: `${id}-level` });
  const play = element("button", { type: "button", class: "play" }, "Play");
  const label = element("label", { for: `${id}-level` }, "Noise level (0 = data, 1 = noise)");
  const csv = element("button", { type: "button" }, "Export CSV");
  csv.addEventListener("click", () => download(`${id}-maps`, matrixLines(data)));
  figure.controls = element("div", { class: "controls" }, label, range, output, play, csv);
  figure.frame.before(figure.controls);
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  const start = () => {
    if (range.valueAsNumber === data.levels.length - 1) go(0);
    timer = setInterval(() => {
      if (range.valueAsNumber === data.levels.length - 1) stop();
      else go(range.valueAsNumber + 1);
    }, PLAY_MS);
    play.textContent = "Pause";
  };
  const go = (at) => setMark("noise_level", data.values[at]);
  range.addEventListener("input", () => { stop(); go(range.valueAsNumber); });
  play.addEventListener("click", () => (timer === null ? start() : stop()));
  const show = () => {
    const at = Math.max(data.values.indexOf(marked.level), 0);
    range.value = at;
    output.textContent = data.levels[at];
    range.setAttribute("aria-valuetext", `noise level ${data.levels[at]}`);
    showLevel(figure);
  };
  whenMarked.push((dim) => { if (dim === "noise_level") show(); });
  show();
};

// The sources that a reader is offered, at any level.
const offered = (data, reader) => {
  const known = (source) => ({ value }) =>
    data.levels.some((_, level) => Number.isFinite(value(level, reader, source)));
  return upTo(data.sources.length).filter((source) => data.maps.some(known(source)));
};

// Draw one reader of a matrix into the figure that follows it.
const showReader = (slice, data, reader) => {
  slice.select.value = reader;
  if (!slice.drawn) return;
  const levels = upTo(data.levels.length);
  const rows = offered(data, reader);
  const names = rows.map((source) => data.sources[source]);
  const layout = {};
  const traces = { z: [], y: [] };
  data.maps.forEach(({ value }, at) => {
    const z = grid(rows, levels, (source, level) => value(level, reader, source));
    traces.z.push(z);
    traces.y.push(names);
    const number = at ? at + 1 : "";
    layout[`yaxis${number}.range`] = [-0.5, Math.max(rows.length, 1) - 0.5];
    layout[`yaxis${number}.categoryarray`] = names;
    layout[`coloraxis${number}.cmin`] = 0;
    layout[`coloraxis${number}.cmax`] = Math.max(1e-9, ...z.flat().filter(Number.isFinite));
    slice.meta.panels[at].y.values = rows.map((source) => slice.homes[source]);
  });
  const said = largest(data, reader, rows);
  slice.node.setAttribute("aria-label", `One reader over noise levels: ${said}`);
  slice.said.textContent = said;
  const cells = (dot) => grid(rows, levels, (source, level) => dot(level, reader, source));
  putMaps(slice, data, { traces, layout, cells, rows: names, columns: data.levels });
};

// Say where a reader reads most from, at the lowest and the highest level.
const largest = (data, reader, rows) => {
  const [{ quantity, value }] = data.maps;
  const ends = [...new Set([0, data.levels.length - 1])].flatMap((level) => {
    const ranked = rows
      .map((source) => [value(level, reader, source), source])
      .filter(([share]) => Number.isFinite(share))
      .sort((one, other) => other[0] - one[0]);
    if (!ranked.length) return [];
    const [share, source] = ranked[0];
    const name = asText(data.sources[source]);
    return [`${name} (${share.toFixed(3)}) at noise level ${data.levels[level]}`];
  });
  const name = asText(data.readers[reader]);
  const said = ends.length ? `largest ${quantity} ${ends.join(", ")}` : "not measurable";
  return `${name}: ${said}.`;
};

// Choose the reader by a list, or by its row in the matrix.
const addReaders = (matrix, slice) => {
  const { data } = matrix;
  const select = element("select", { id: `${slice.id}-reader` });
  data.readers.forEach((name, at) => {
    select.append(element("option", { value: at }, asText(name)));
  });
  slice.select = select;
  slice.said = element("output", { for: select.id });
  slice.homes = matrix.meta.panels[0].x.values;
  const label = element("label", { for: select.id }, "Reader");
  slice.frame.before(element("div", { class: "controls" }, label, select, slice.said));
  select.addEventListener("change", () => showReader(slice, data, Number(select.value)));
  const homes = matrix.meta.panels[0].y.values;
  select.addEventListener("input", () => setMark("block", homes[select.value]));
  matrix.tapped = ({ y }) => {
    const fold = slice.frame.closest("details");
    if (fold) fold.open = true;
    showReader(slice, data, y.at);
  };
  select.value = slice.meta.reader;
  whenDrawn.push((figure) => {
    if (figure !== slice) return;
    const reader = Number(select.value);
    if (reader !== slice.meta.reader) showReader(slice, data, reader);
    else slice.said.textContent = largest(data, reader, offered(data, reader));
  });
};

// Every cell of a matrix: reader, source, noise level, each map, and whether it has a dot.
const matrixLines = (data) => {
  const [readers, sources] = [data.readers.map(asText), data.sources.map(asText)];
  const dots = data.maps.filter(({ dot }) => dot);
  const head = ["noise_level", "reader", "source", ...data.maps.map(({ quantity }) => quantity)];
  if (dots.length) head.push("consistent_sign");
  const lines = [head.map(quoted)];
  data.values.forEach((level, l) => readers.forEach((reader, r) => sources.forEach((source, s) => {
    const values = data.maps.map(({ value }) => value(l, r, s));
    if (!values.some(Number.isFinite)) return;
    const certain = dots.map(({ dot }) => (dot(l, r, s) ? 1 : 0));
    lines.push([level, quoted(reader), quoted(source), ...values.map(plain), ...certain]);
  })));
  return lines;
};

const addLevels = () => {
  let matrix = null;
  for (const figure of figures) {
    if (figure.meta.frames) {
      matrix = figure;
      figure.data = unpack(figure);
      figure.level = 0; // as it was drawn for the page
      addSlider(figure);
    } else if (figure.meta.reader !== undefined && matrix) addReaders(matrix, figure);
  }
  whenDrawn.push((figure) => { if (figure.data) showLevel(figure); });
  if (matrix?.data.values.length > 1) setMark("noise_level", matrix.data.values[0]);
};
