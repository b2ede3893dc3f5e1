// Small instruments: the last minute of a few numbers.

const KEPT = 120;

export class Chart {
  constructor(parent, title, unit, lines, { digits = 0, floor = 1 } = {}) {
    this.lines = lines;
    this.unit = unit;
    this.digits = digits;
    this.floor = floor;
    this.values = lines.map(() => []);
    const box = document.createElement("div");
    box.className = "chart";
    const head = document.createElement("h2");
    this.now = document.createElement("b");
    head.append(title, this.now);
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    box.append(head, this.canvas);
    parent.append(box);
    this.show("–");
  }

  show(words) {
    this.now.textContent = words;
  }

  clear() {
    this.values = this.lines.map(() => []);
    this.show("–");
    this.draw();
  }

  add(...values) {
    values.forEach((value, i) => {
      this.values[i].push(value);
      if (this.values[i].length > KEPT) this.values[i].shift();
    });
    const shown = values.filter((_, i) => !this.lines[i].hidden);
    const said = shown.map((v) => (v === null ? "–" : v.toFixed(this.digits))).join(" / ");
    this.show(this.unit ? `${said} ${this.unit}` : said);
    this.draw();
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
    this.canvas.width = w * ratio;
    this.canvas.height = h * ratio;
    const c = this.canvas.getContext("2d");
    c.scale(ratio, ratio);
    const most = Math.max(this.floor, ...this.values.flat().filter((v) => v !== null)) * 1.1;
    const style = getComputedStyle(document.documentElement);
    this.lines.forEach((line, i) => {
      c.strokeStyle = style.getPropertyValue(line.colour);
      c.lineWidth = line.dashed ? 1 : 2;
      c.setLineDash(line.dashed ? [4, 4] : []);
      c.beginPath();
      let pen = false;
      this.values[i].forEach((value, n) => {
        if (value === null) return;
        const x = w - (this.values[i].length - 1 - n) * (w / (KEPT - 1)) - 2;
        const y = h - 2 - (value / most) * (h - 4);
        pen ? c.lineTo(x, y) : c.moveTo(x, y);
        pen = true;
      });
      c.stroke();
    });
  }
}
