// The live panel of a training. It draws what the model's `view` holds; it computes nothing of its own but the clock.
const COLOURS = { train: '#0072B2', validation: '#E69F00', best: '#009E73', baseline: '#8a8f98' };
const SKY = '#56B4E9'; // of the training in a dark theme

function make(tag, className, parent) {
  const node = document.createElement(tag);
  node.className = className;
  parent.appendChild(node);
  return node;
}

function spanText(seconds) {
  if (seconds < 100) return `${Math.floor(seconds)} s`;
  if (seconds < 6000) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function key(parent, text, colour, shape) {
  const node = make('span', 'cl-key', parent);
  make('i', shape, node).style.borderColor = colour;
  node.appendChild(document.createTextNode(text));
}

function isDark(node) {
  const parts = (getComputedStyle(node).color.match(/\d+/g) || [0, 0, 0]).map(Number); // of the text: bright on a dark page
  return parts[0] + parts[1] + parts[2] > 384;
}

function makeKeys(parent, root) {
  key(parent, 'training (line: running mean of the epoch)', isDark(root) ? SKY : COLOURS.train, '');
  key(parent, 'validation', COLOURS.validation, '');
  key(parent, 'best epoch so far', COLOURS.best, 'cl-ring');
}

function makePlot(parent, root, name) {
  const box = make('div', 'cl-plot', parent);
  const title = make('div', 'cl-name', box);
  title.textContent = name;
  const baseKey = make('span', 'cl-key', title);
  const ink = () => getComputedStyle(root).color;
  const line = () => getComputedStyle(root).getPropertyValue('--cl-line') || '#ddd';
  const train = () => (isDark(root) ? SKY : COLOURS.train);
  const axis = (more) => ({ stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, ...more });
  const series = [
    {},
    { stroke: () => train() + 'a0', width: 1, spanGaps: true, points: { show: false } },
    { stroke: train, width: 2, spanGaps: true, points: { show: true, size: 5, fill: train } },
    { stroke: COLOURS.validation, width: 2, spanGaps: true, points: { show: true, size: 5, fill: COLOURS.validation } },
    { stroke: COLOURS.best, width: 0, paths: () => null, points: { show: true, size: 13, width: 2, stroke: COLOURS.best, fill: 'transparent' } },
    { stroke: COLOURS.baseline, width: 1.5, dash: [6, 4], spanGaps: true, points: { show: false } },
  ];
  const options = {
    width: 400, height: 210, series, legend: { show: false }, cursor: { show: false },
    scales: { x: { time: false, range: (plot, low, high) => [0, Math.max(1, Math.ceil(high || 1))] } },
    axes: [axis({ label: 'epochs', labelSize: 18, size: 30, incrs: [0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500] }), axis({ size: 52 })],
  };
  const plot = new uPlot(options, [[], [], [], [], [], []], make('div', '', box));
  const update = (curves, baseline) => {
    const level = curves.x.map(() => baseline.value);
    plot.setData([curves.x, curves.step, curves.train, curves.validation, curves.best, level]);
    baseKey.replaceChildren();
    if (baseline.value === null) return;
    make('i', 'cl-dash', baseKey).style.borderColor = COLOURS.baseline;
    baseKey.appendChild(document.createTextNode(`${baseline.label} ${baseline.value.toFixed(3)}`));
  };
  const fit = () => plot.setSize({ width: Math.max(240, Math.floor(box.clientWidth)), height: 210 });
  return { update, fit, redraw: () => plot.redraw(), destroy: () => plot.destroy() };
}

function showMemory(node, memory) {
  node.replaceChildren();
  if (memory.now === null) return;
  const megabytes = (value) => `${Math.round(value).toLocaleString('en')} MB`;
  const text = make('div', '', node);
  make('span', '', text).textContent = 'memory';
  let words = megabytes(memory.now);
  if (memory.limit !== null) words += ` of ${megabytes(memory.limit)}`;
  if (memory.forecast !== null) words += ` · forecast of the peak ${megabytes(memory.forecast)} (mark)`;
  text.appendChild(document.createTextNode(words));
  const whole = memory.limit || 1.2 * Math.max(memory.now, memory.forecast || 0);
  const track = make('div', 'cl-track', node);
  const now = make('div', '', track);
  now.style.width = `${Math.min(100, 100 * memory.now / whole)}%`;
  if (memory.limit !== null && memory.now > 0.9 * memory.limit) now.style.background = '#D55E00';
  if (memory.forecast !== null) make('b', '', track).style.left = `${Math.min(99.5, 100 * memory.forecast / whole)}%`;
}

function makeButtons(parent, model) {
  const buttons = [['step', 'Stop after this step'], ['epoch', 'Stop after this epoch']].map(([kind, text]) => {
    const button = make('button', `cl-stop-${kind}`, parent);
    button.textContent = text;
    button.onclick = () => {
      model.send({ stop: kind });
      buttons.forEach((one) => { one.disabled = true; });
    };
    return button;
  });
}

function render({ model, el }) {
  const root = make('div', 'cl-panel', el);
  const top = make('div', 'cl-top', root);
  const title = make('span', 'cl-title', top), status = make('span', 'cl-status', top), clock = make('span', 'cl-clock', top);
  const bar = make('div', '', make('div', 'cl-bar', root));
  const keys = make('div', 'cl-keys', root);
  makeKeys(keys, root);
  const plotBox = make('div', 'cl-plots', root);
  const plots = { loss: makePlot(plotBox, root, 'Loss'), accuracy: makePlot(plotBox, root, 'Accuracy') };
  const facts = make('div', 'cl-facts', root), memory = make('div', 'cl-memory', root), note = make('div', 'cl-note', root);
  if (model.get('background')) makeButtons(make('div', 'cl-buttons', root), model);
  let seen = performance.now(), count = 0, view = {};
  const tick = () => {
    if (!view.title) return;
    clock.textContent = `${spanText(view.elapsed_s + (performance.now() - seen) / 1000)} elapsed`;
  };
  const show = () => {
    view = JSON.parse(model.get('view'));
    if (!view.title) return;
    seen = performance.now();
    title.textContent = view.title;
    status.textContent = view.status;
    bar.style.width = `${100 * view.share}%`;
    for (const name of ['loss', 'accuracy']) plots[name].update(view.curves[name], view.baselines[name]);
    facts.replaceChildren(...view.facts.map(([name, value]) => {
      const item = document.createElement('div');
      make('span', '', item).textContent = name;
      item.appendChild(document.createTextNode(value));
      return item;
    }));
    showMemory(memory, view.memory);
    note.textContent = view.note;
    root.dataset.updates = String(++count);
    root.dataset.status = view.status;
    tick();
  };
  const paint = () => {
    keys.replaceChildren();
    makeKeys(keys, root);
    Object.values(plots).forEach((plot) => plot.redraw());
  };
  let isPlaced = root.isConnected; // a notebook may place the panel in the page after it was made: without colours till then
  const fit = () => {
    Object.values(plots).forEach((plot) => plot.fit());
    if (!isPlaced && root.isConnected) paint();
    isPlaced = root.isConnected;
  };
  const sizes = new ResizeObserver(fit);
  sizes.observe(plotBox);
  const themes = new MutationObserver(paint);
  themes.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-name', 'data-jp-theme-light', 'class'] });
  const timer = setInterval(tick, 250);
  model.on('change:view', show);
  show();
  return () => {
    clearInterval(timer);
    sizes.disconnect();
    themes.disconnect();
    model.off('change:view', show);
    Object.values(plots).forEach((plot) => plot.destroy());
  };
}

export default { render };
