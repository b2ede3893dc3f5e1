// Where pictures come from: camera, screen, file or a built-in scene, cut to the engine's size.

const MOST_PER_S = 30;

// A video that plays without being seen: its pictures are drawn elsewhere.
export function unseenVideo() {
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  video.className = "sr";
  document.body.append(video);
  return video;
}

export class Source {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.stopped = true;
  }

  // `take(canvas, ptsS)` is called for every picture; `ended()` when the source ends by itself.
  async open(kind, file, take, ended) {
    this.stop();
    this.take = take;
    this.mirror = kind === "camera";
    this.still = null;
    if (kind === "camera" || kind === "screen") {
      const wish = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
      this.stream = kind === "camera"
        ? await navigator.mediaDevices.getUserMedia({ video: { ...wish, facingMode: "user" } })
        : await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: 30 } });
      this.stream.getVideoTracks()[0].addEventListener("ended", ended);
      await this.#play((video) => { video.srcObject = this.stream; });
    } else if (kind === "file") {
      if (!file) throw new Error("choose a film or a picture first");
      this.url = URL.createObjectURL(file);
      if (file.type.startsWith("image/")) this.still = await createImageBitmap(file);
      else await this.#play((video) => { video.src = this.url; video.loop = true; });
    }
    this.stopped = false;
    this.kind = kind;
    this.lastS = -1;
    this.#loop();
  }

  stop() {
    this.stopped = true;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.video?.pause();
    this.video?.remove();
    if (this.url) URL.revokeObjectURL(this.url);
    this.stream = this.video = this.url = null;
  }

  async #play(attach) {
    const video = (this.video = unseenVideo());
    attach(video);
    try {
      await video.play();
    } catch {
      throw new Error("this browser cannot play that");
    }
  }

  #loop() {
    if (this.stopped) return;
    const again = () => this.#loop();
    // A screen on which nothing moves gives no new pictures, and is restyled all the same.
    if (this.video && this.kind !== "screen") this.video.requestVideoFrameCallback(again);
    else setTimeout(again, 1000 / 25);
    const nowS = performance.now() / 1000;
    if (nowS - this.lastS < 0.9 / MOST_PER_S) return;
    this.lastS = nowS;
    this.#draw(nowS);
    this.take(this.canvas, nowS);
  }

  #draw(nowS) {
    const { context: c, canvas: { width: w, height: h } } = this;
    if (this.kind === "scene") return scene(c, w, h, nowS);
    const from = this.still ?? this.video;
    const [fw, fh] = [from.videoWidth ?? from.width, from.videoHeight ?? from.height];
    const scale = Math.max(w / fw, h / fh);
    c.save();
    if (this.mirror) c.setTransform(-1, 0, 0, 1, w, 0);
    c.drawImage(from, (w - fw * scale) / 2, (h - fh * scale) / 2, fw * scale, fh * scale);
    c.restore();
  }
}

// Hills, a sun and three balls: something to restyle without a camera.
function scene(c, w, h, s) {
  const sky = c.createLinearGradient(0, 0, 0, h);
  sky.addColorStop(0, "#3a78c9");
  sky.addColorStop(1, "#f3c58a");
  c.fillStyle = sky;
  c.fillRect(0, 0, w, h);
  const disc = (x, y, r, colour) => {
    const light = c.createRadialGradient(x - r / 3, y - r / 3, r / 8, x, y, r);
    light.addColorStop(0, "#fff");
    light.addColorStop(0.35, colour);
    light.addColorStop(1, "#222");
    c.fillStyle = light;
    c.beginPath();
    c.arc(x, y, r, 0, 7);
    c.fill();
  };
  ["#527a4a", "#3d6238", "#284a2a"].forEach((colour, i) => {
    c.fillStyle = colour;
    c.beginPath();
    c.moveTo(0, h);
    for (let x = 0; x <= w; x += 4) {
      const wave = Math.sin(x / (w / 6) + i * 2 + s * 0.3 * (i + 1)) + Math.sin(x / (w / 15) + i);
      c.lineTo(x, h * (0.55 + 0.13 * i) + wave * h * 0.035);
    }
    c.lineTo(w, h);
    c.fill();
  });
  disc(w * (0.5 + 0.3 * Math.sin(s * 0.8)), h * (0.5 + 0.15 * Math.cos(s * 1.1)), w * 0.14, "#d8452f");
  disc(w * (0.5 + 0.35 * Math.cos(s * 0.5)), h * (0.65 + 0.1 * Math.sin(s)), w * 0.1, "#f0b429");
  disc(w * (0.3 + 0.2 * Math.sin(s * 0.6 + 2)), h * 0.3, w * 0.07, "#7d5bd0");
}
