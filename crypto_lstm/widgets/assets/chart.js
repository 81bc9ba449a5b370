// A candle chart that holds only the bars it shows. Python answers each request for a span; see `CandleChart.answer`.
const LWC = window.LightweightCharts;
const UP = '#0072B2', DOWN = '#D55E00', HOLD = '#7F7F7F', WON = '#009E73';
const SIDES = { SHORT: DOWN, HOLD, LONG: UP };
const NAMES = ['SHORT', 'HOLD', 'LONG'];
const NEAR = 400; // visible candles: labels and decisions below
const MOST = 3000; // bars that Python sends

function make(tag, className, parent) {
  const node = document.createElement(tag);
  node.className = className;
  parent.appendChild(node);
  return node;
}

function readTheme(node) {
  const style = getComputedStyle(node);
  const line = style.getPropertyValue('--cl-line').trim() || '#ddd';
  return {
    layout: { background: { color: 'transparent' }, textColor: style.color || HOLD, attributionLogo: true, panes: { separatorColor: line } },
    grid: { vertLines: { color: `${line}` }, horzLines: { color: `${line}` } },
    rightPriceScale: { borderColor: line },
    timeScale: { borderColor: line },
  };
}

// Draws the trades and the barriers of one labelled candle over the candles.
class Overlay {
  constructor() { this.trades = []; this.labels = []; this.label = null; }
  attached({ chart, series, requestUpdate }) { this.chart = chart; this.series = series; this.update = requestUpdate; }
  paneViews() { return [{ zOrder: () => 'top', renderer: () => ({ draw: (target) => target.useMediaCoordinateSpace((scope) => this.draw(scope.context, scope.mediaSize)) }) }]; }
  place(time, price, width) {
    const x = this.chart.timeScale().timeToCoordinate(time);
    return { x: x === null ? width : x, y: this.series.priceToCoordinate(price) };
  }
  line(ctx, from, to, colour, dash, width) {
    if (from.y === null || to.y === null) return;
    ctx.save();
    ctx.strokeStyle = colour; ctx.lineWidth = width; ctx.setLineDash(dash);
    ctx.beginPath(); ctx.moveTo(from.x, from.y); ctx.lineTo(to.x, to.y); ctx.stroke();
    ctx.restore();
  }
  band(ctx) { // the class of each label, as a band along the upper edge
    const width = Math.max(2, this.chart.timeScale().options().barSpacing * 0.8);
    for (const [time, kind] of this.labels) {
      const x = this.chart.timeScale().timeToCoordinate(time);
      if (x === null) continue;
      ctx.fillStyle = kind === 1 ? `${HOLD}55` : SIDES[NAMES[kind]];
      ctx.fillRect(x - width / 2, 2, width, 7);
    }
  }
  draw(ctx, size) {
    this.band(ctx);
    for (const [entryTime, entry, exitTime, exit, , net] of this.trades) {
      this.line(ctx, this.place(entryTime, entry, size.width), this.place(exitTime, exit, size.width), net > 0 ? WON : DOWN, [], 2);
    }
    if (!this.label) return;
    const { time, close, longEnd, shortEnd, barriers } = this.label;
    const styles = [[longEnd, UP, []], [longEnd, UP, [5, 4]], [shortEnd, DOWN, []], [shortEnd, DOWN, [5, 4]]];
    const words = ['long target', 'long stop', 'short target', 'short stop'];
    ctx.save();
    ctx.font = '11px system-ui, sans-serif';
    styles.forEach(([end, colour, dash], index) => {
      if (barriers[index] === null) return;
      const from = this.place(time, barriers[index], size.width), to = this.place(end, barriers[index], size.width);
      this.line(ctx, from, to, colour, dash, 1.5);
      if (from.y === null) return;
      ctx.fillStyle = colour;
      ctx.fillText(words[index], to.x + 4, to.y + 4);
    });
    ctx.restore();
    const last = Math.max(longEnd, shortEnd);
    this.line(ctx, this.place(time, close, size.width), this.place(last, close, size.width), HOLD, [2, 3], 1);
  }
}

function render({ model, el }) {
  const root = make('div', 'cl-chart', el);
  const hasProbabilities = model.get('has_probabilities');
  const box = make('div', hasProbabilities ? 'cl-box cl-tall' : 'cl-box', root);
  const foot = make('div', 'cl-line', root), detail = make('div', 'cl-line', root);
  const counts = make('span', '', foot), help = make('span', '', foot), link = make('a', '', foot);
  link.href = 'https://www.tradingview.com/'; link.target = '_blank'; link.rel = 'noopener';
  link.textContent = 'Charts by TradingView (Lightweight Charts)';
  const write = (node, text) => { if (node.textContent !== text) node.textContent = text; }; // a change lays the page out again
  const options = { autoSize: true, crosshair: { mode: 0 }, ...readTheme(root) };
  const theme = readTheme(root);
  const chart = LWC.createChart(box, { ...options, timeScale: { ...theme.timeScale, timeVisible: true, secondsVisible: false, minBarSpacing: 0.2, rightOffset: 3 } });
  const candles = chart.addSeries(LWC.CandlestickSeries, { upColor: UP, borderVisible: false, wickUpColor: UP, downColor: DOWN, wickDownColor: DOWN, priceLineVisible: false, lastValueVisible: false });
  const volume = chart.addSeries(LWC.HistogramSeries, { priceScaleId: 'volume', priceFormat: { type: 'volume' }, color: HOLD + '66', lastValueVisible: false, priceLineVisible: false });
  chart.priceScale('volume').applyOptions({ scaleMargins: { top: 0.82, bottom: 0 } });
  candles.priceScale().applyOptions({ scaleMargins: { top: 0.06, bottom: 0.22 } });
  const shares = hasProbabilities ? NAMES.map((name) => chart.addSeries(LWC.LineSeries, { color: SIDES[name], lineWidth: 1.5, title: name, priceLineVisible: false, lastValueVisible: false, priceFormat: { type: 'price', precision: 2, minMove: 0.01 } }, 1)) : [];
  if (hasProbabilities) chart.panes()[1].setHeight(120);
  const marks = LWC.createSeriesMarkers(candles, []);
  const overlay = new Overlay();
  candles.attachPrimitive(overlay);

  const id = Math.random().toString(36).slice(2);
  let state = null, busy = false, asked = 0, shownDigits = -1, marked = 0, wanted = null, moving = null, labels = new Map(), rows = [], closes = new Map();

  const ask = (span) => { busy = true; asked = performance.now(); wanted = span; model.send({ id, from: span && span.from, to: span && span.to, bars: countBars() }); };
  const countBars = () => Math.min(MOST, Math.max(1000, Math.round(1.2 * box.clientWidth))); // a half is visible: a bar for 1.7 pixels

  // Times and places of bars, continued beyond the first and the last bar: a view may be wider than what is loaded.
  const timeAt = (place) => {
    const last = rows.length - 1, before = Math.floor(place);
    if (place <= 0) return rows[0].time + place * state.step;
    if (place >= last) return rows[last].time + (place - last) * state.step;
    return rows[before].time + (place - before) * (rows[before + 1].time - rows[before].time);
  };
  const placeOf = (time) => {
    let low = 0, high = rows.length - 1;
    if (time <= rows[0].time) return (time - rows[0].time) / state.step;
    if (time >= rows[high].time) return high + (time - rows[high].time) / state.step;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (rows[middle].time <= time) low = middle; else high = middle;
    }
    return low + (time - rows[low].time) / (rows[high].time - rows[low].time);
  };
  const readSpan = () => { // of the view, in seconds
    if (moving) return moving;
    const shown = chart.timeScale().getVisibleLogicalRange();
    return shown && state && rows.length ? { from: timeAt(shown.from), to: timeAt(shown.to) } : null;
  };
  const showSpan = (span) => { // the library moves in its next frame; until then it would tell the places of before
    moving = span;
    chart.timeScale().setVisibleLogicalRange({ from: placeOf(span.from), to: placeOf(span.to) });
    requestAnimationFrame(() => { if (moving === span && !busy) moving = null; check(); });
  };

  const showLabel = (time) => {
    const row = labels.get(time);
    overlay.label = null;
    if (detail.firstChild) detail.replaceChildren();
    if (row) {
      const [start, kind, longEnd, shortEnd, longOutcome, shortOutcome, ...barriers] = row;
      overlay.label = { time: start, close: closes.get(start), longEnd, shortEnd, barriers };
      const count = (end) => Math.round((end - start) / state.candle);
      make('b', '', detail).textContent = `label ${NAMES[kind]}`;
      make('span', '', detail).textContent = new Date(start * 1000).toISOString().slice(0, 16).replace('T', ' ');
      make('span', '', detail).textContent = `long: ${longOutcome} after ${count(longEnd)} candles`;
      make('span', '', detail).textContent = `short: ${shortOutcome} after ${count(shortEnd)} candles`;
    }
    if (overlay.update) overlay.update();
  };

  const listMarks = (message) => {
    const found = [];
    for (const [time, action] of message.decisions) {
      found.push({ time, position: action === 'LONG' ? 'belowBar' : 'aboveBar', shape: 'circle', size: 0.7, color: SIDES[action] });
    }
    for (const [entryTime, , exitTime, , isLong, net] of message.trades) {
      found.push({ time: entryTime, position: isLong ? 'belowBar' : 'aboveBar', shape: isLong ? 'arrowUp' : 'arrowDown', size: 1.4, color: isLong ? UP : DOWN, text: message.near ? (isLong ? 'long' : 'short') : '' });
      found.push({ time: exitTime, position: isLong ? 'aboveBar' : 'belowBar', shape: isLong ? 'arrowDown' : 'arrowUp', size: 1, color: net > 0 ? WON : DOWN, text: message.near ? `${net > 0 ? '+' : ''}${net.toFixed(2)} %` : '' });
    }
    return found.sort((left, right) => left.time - right.time);
  };

  const receive = (message, buffers) => {
    if (message.id !== id) return;
    const span = readSpan(), received = performance.now();
    const view = buffers[0], width = message.columns;
    const values = new Float64Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    const bars = values.length / width, volumes = [], lines = [[], [], []];
    rows = []; closes = new Map();
    for (let bar = 0; bar < bars; bar += 1) {
      const k = bar * width, time = values[k];
      rows.push({ time, open: values[k + 1], high: values[k + 2], low: values[k + 3], close: values[k + 4] });
      volumes.push({ time, value: values[k + 5] });
      closes.set(time, values[k + 4]);
      if (hasProbabilities) lines.forEach((line, index) => line.push(Number.isNaN(values[k + 6 + index]) ? { time } : { time, value: values[k + 6 + index] }));
    }
    const digits = rows.length ? Math.max(0, Math.min(8, 6 - Math.ceil(Math.log10(rows[rows.length - 1].close)))) : 2;
    if (digits !== shownDigits) {
      shownDigits = digits;
      const formatter = (price) => (price < 0 ? '' : price.toFixed(digits)); // the axis goes below 0, where the volume is
      candles.applyOptions({ priceFormat: { type: 'custom', formatter, minMove: 10 ** -digits } });
    }
    for (const series of [volume, ...shares, candles]) series.setData([]); // else each merges its times with the former ones
    candles.setData(rows);
    volume.setData(volumes);
    shares.forEach((series, index) => series.setData(lines[index]));
    labels = new Map(message.labels.map((row) => [row[0], row]));
    overlay.trades = message.trades;
    overlay.labels = message.labels;
    const found = listMarks(message);
    if (found.length || marked) marks.setMarkers(found);
    marked = found.length;
    state = message;
    if (rows.length) showSpan(span || { from: message.from, to: message.to });
    const middle = message.labels.filter((row) => row[1] !== 1 && row[0] >= message.from && row[0] <= message.to);
    showLabel(middle.length ? middle[Math.floor(middle.length / 2)][0] : null);
    const minutes = message.step / 60;
    const unit = minutes < 60 ? `${minutes} min` : minutes < 1440 ? `${minutes / 60} h` : `${minutes / 1440} d`;
    write(counts, `${bars.toLocaleString('en')} bars of ${unit}, ${message.total.toLocaleString('en')} candles`);
    const hint = message.near ? `${message.labels.length ? 'band: labels; ' : ''}${message.decisions.length ? 'dots: decisions; ' : ''}point at a candle to see its barriers` : 'zoom in (wheel) for labels and decisions';
    write(help, hint);
    const python = message.ms.toFixed(2), roundTrip = (received - asked).toFixed(1);
    Object.assign(root.dataset, { bars, step: message.step, near: message.near, labels: message.labels.length, trades: message.trades.length, python, roundTrip, first: message.first, last: message.last });
    requestAnimationFrame(() => setTimeout(() => { // the bars are drawn
      const painted = performance.now();
      Object.assign(root.dataset, { painted: painted.toFixed(1), drawing: (painted - received).toFixed(1), answers: Number(root.dataset.answers || 0) + 1 });
    }));
    busy = false;
    check(); // asks before it draws: the view may have moved on
  };

  const check = () => {
    if (!state || busy) return;
    const span = readSpan();
    if (!span) return;
    const from = state.ends[0] ? Math.max(span.from, rows[0].time) : span.from; // within the candles
    const to = state.ends[1] ? Math.min(span.to, rows[rows.length - 1].time) : span.to;
    if (!(to > from) || wanted && Math.abs(from - wanted.from) + Math.abs(to - wanted.to) < 0.01 * (to - from)) return;
    const base = state.candle, visible = (to - from) / state.step, candlesSeen = (to - from) / base;
    const isCoarse = visible < countBars() / 10 && state.step > base, isFine = visible > 0.85 * countBars() && !(state.ends[0] && state.ends[1]);
    const crossesNear = state.step === base && (state.near ? candlesSeen > NEAR + 10 : candlesSeen <= NEAR - 10);
    const leavesLeft = !state.ends[0] && from <= rows[0].time, leavesRight = !state.ends[1] && to >= rows[rows.length - 1].time;
    if (isCoarse || isFine || crossesNear || leavesLeft || leavesRight) ask({ from, to });
  };

  chart.timeScale().subscribeVisibleLogicalRangeChange(check);
  chart.subscribeCrosshairMove((event) => { if (state && state.near && event.time && labels.has(event.time)) showLabel(event.time); });
  model.on('msg:custom', receive);
  const themes = new MutationObserver(() => chart.applyOptions(readTheme(root)));
  themes.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-name', 'data-jp-theme-light', 'class'] });
  const placed = new ResizeObserver(() => chart.applyOptions(readTheme(root))); // colours are known once it is in the page
  placed.observe(root);
  root.zoom = (from, to) => showSpan({ from, to }); // for tests
  ask(null);
  return () => {
    themes.disconnect();
    placed.disconnect();
    model.off('msg:custom', receive);
    chart.remove();
  };
}

export default { render };
