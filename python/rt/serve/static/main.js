// The page: binds controls, source, session and instruments together.

import { Chart } from "./charts.js";
import { Call } from "./rtc.js";
import { Session, api } from "./session.js";
import { Source } from "./source.js";

const STYLES = ["pencil sketch", "comic", "oil painting", "watercolour", "anime", "neon"];
const PATIENCE_MS = 10_000;
const TRANSPORTS = { rtc: Call, socket: Session };
const $ = (id) => document.getElementById(id);
const output = $("output").getContext("2d", { alpha: false });
const source = new Source($("input"));
let session = null;
let startedMs = 0;
let attempt = null;
let closing = Promise.resolve();
let recorder = null;

// What is said

function say(state, words) {
  $("state").dataset.state = state;
  $("state").textContent = words;
}

function alertUser(error) {
  $("alert").textContent = error ? String(error.message ?? error) : "";
  $("alert").hidden = !error;
  if (error?.transport) offerOther(error.transport);
}

// Never by itself: who looks at the page decides how pictures travel.
function offerOther(name) {
  const button = document.createElement("button");
  button.textContent = `Use ${$("transport").querySelector(`[value=${name}]`).textContent}`;
  button.addEventListener("click", () => {
    $("transport").value = name;
    start();
  });
  $("alert").append(" ", button);
}

// What the server remarked on the prompts that stand there now; remarks on earlier ones are past.
function noteUser(remarks) {
  const texts = [$("prompt").value.trim(), $("second").value.trim()].filter(Boolean);
  const said = remarks.filter((remark) => texts.some((text) => remark.slice(1).startsWith(text)));
  $("note").textContent = said.at(-1) ?? "";
  $("note").hidden = said.length === 0;
}

const box = $("charts");
const charts = {
  fps: new Chart(box, "Frames per second", "", [{ colour: "--good" }], { digits: 1, floor: 5 }),
  latency: new Chart(box, "Latency p50 / p99", "ms", [
    { colour: "--blue" }, { colour: "--accent" }, { colour: "--bad", dashed: true, hidden: true },
  ]),
  misses: new Chart(box, "Frames late", "%", [{ colour: "--bad" }], { digits: 1, floor: 10 }),
  motion: new Chart(box, "Motion score", "px", [{ colour: "--warm" }], { digits: 2 }),
  noise: new Chart(box, "Noise scale", "", [{ colour: "--accent" }], { digits: 3, floor: 0.3 }),
  steps: new Chart(box, "Steps in use", "", [{ colour: "--blue" }], { floor: 4 }),
  level: new Chart(box, "Degradation level", "", [{ colour: "--bad" }], { floor: 3 }),
};
let before = null;
let starved = 0;

function showStatus(status) {
  const late = status.frames_late - (before?.frames_late ?? 0);
  const out = late + status.frames_on_time - (before?.frames_on_time ?? 0);
  before = status;
  // A budget that this machine cannot hold shows nothing at all: say so.
  starved = out > 0 ? 0 : starved + 1;
  if (starved === 8) {
    alertUser(`no frame came within ${status.slo_ms} ms of its capture lately: allow a larger budget`);
  }
  noteUser(status.remarks);
  charts.fps.add(status.fps);
  charts.latency.add(status.latency_ms.p50, status.latency_ms.p99, status.slo_ms);
  charts.misses.add(out > 0 ? (100 * late) / out : null);
  charts.motion.add(status.motion_score);
  charts.noise.add(status.noise_scale);
  charts.steps.add(status.steps);
  charts.level.add(status.level);
  $("held").textContent = `${status.fps_held} frames/s`;
  $("counts").textContent = `${status.frames_on_time + status.frames_late} / ${status.frames_in}`;
  $("dropped").textContent = `${status.frames_dropped} / ${status.frames_replaced}`;
  const used = status.chunks && status.steps < status.most_steps ? `${status.steps} of ` : "";
  say("live", `live, ${used}${status.most_steps} ${status.most_steps === 1 ? "step" : "steps"}`);
  document.body.dataset.ttffMs = String(status.ttff_ms ?? "");
}

function showPicture(bitmap, message) {
  if (!document.body.dataset.firstMs) {
    const firstMs = Math.round(performance.now() - startedMs);
    document.body.dataset.firstMs = String(firstMs);
    attempt?.calm();
    $("first").textContent = `${firstMs} ms`;
    $("hint").hidden = true;
  }
  output.drawImage(bitmap, 0, 0, output.canvas.width, output.canvas.height);
  $("age").textContent = message ? `${Math.round(performance.now() - message.pts_s * 1000)} ms` : "";
  document.body.dataset.pictures = String(Number(document.body.dataset.pictures ?? 0) + 1);
}

// What is asked for

function prompt() {
  const [first, second] = [$("prompt").value.trim(), $("second").value.trim()];
  const share = Number($("weight").value) / 100;
  if (!second || share === 0) return first;
  return [{ text: first, weight: 1 - share }, { text: second, weight: share }];
}

function settings() {
  const low = Math.min(Number($("low").value), Number($("high").value));
  return {
    steps: Number($("steps").value),
    motion: $("motion").value,
    slo_ms: Number($("slo").value),
    noise_range: { low, high: Number($("high").value) },
  };
}

function showValues() {
  $("weight-out").textContent = `${$("weight").value} %`;
  $("transition-out").textContent = `${$("transition").value} chunks`;
  $("slo-out").textContent = `${$("slo").value} ms`;
  for (const name of ["low", "high"]) $(`${name}-out`).textContent = Number($(name).value).toFixed(2);
  for (const chip of $("styles").children) {
    chip.setAttribute("aria-pressed", String(chip.textContent === $("prompt").value.trim()));
  }
}

const waiting = {};
function soon(name, ms, work) {
  clearTimeout(waiting[name]);
  waiting[name] = setTimeout(work, ms);
}

async function change(content) {
  if (!session) return;
  try {
    await session.update(content);
    alertUser(null);
  } catch (error) {
    alertUser(error);
  }
}

function promptChanged(ms) {
  showValues();
  if (!$("prompt").value.trim()) return;
  soon("prompt", ms, () => change({ prompt: prompt(), transition_chunks: Number($("transition").value) }));
}

// Start and stop

// One start. Says what it waits for when that takes long, and may then be given up.
class Attempt {
  constructor(opening) {
    this.opening = opening;
    this.lacks = new Map();
    this.timer = setTimeout(() => {
      this.told = [...this.lacks.values()][0] ?? "the server has sent no picture yet";
      alertUser(new Error(this.told));
      $("start").disabled = false;
    }, PATIENCE_MS);
  }

  until(promise, words) {
    this.lacks.set(promise, words);
    promise.then(() => this.lacks.delete(promise), () => {});
    return promise;
  }

  calm() {
    clearTimeout(this.timer);
    if ($("alert").textContent === this.told) alertUser(null);
  }

  end() {
    this.calm();
    closing = this.opening.close();
  }
}

async function start() {
  startedMs = performance.now();
  alertUser(null);
  say("busy", "starting");
  $("start").textContent = "Stop";
  $("start").disabled = true;
  delete document.body.dataset.firstMs;
  let ended = null;
  const closed = (reason) => {
    ended = reason || "the connection was lost";
    if (session === opening) lost(ended);
  };
  const Transport = TRANSPORTS[$("transport").value];
  const opening = new Transport({ picture: showPicture, status: showStatus, closed }, $("input"));
  const mine = attempt = new Attempt(opening);
  try {
    // Side by side: a camera wakes up while the server makes room.
    const send = (canvas, ptsS) => session?.send(canvas, ptsS);
    const pictures = mine.until(
      source.open($("source").value, $("file").files[0], send, stop),
      "the source shows no picture yet: does the browser ask whether it may look?",
    );
    const opened = mine.until(
      closing.then(() => opening.open({ prompt: prompt(), ...settings() }, pictures)),
      "the server has not answered yet",
    );
    const both = await Promise.allSettled([pictures, opened]);
    if (attempt !== mine) return;
    const wrong = both.find(({ status }) => status === "rejected");
    if (wrong) throw wrong.reason;
    if (ended) throw new Error(ended);
    session = opening;
    before = null;
    starved = 0;
    $("record").disabled = false;
  } catch (error) {
    stop();
    say("idle", "not started");
    alertUser(error.name === "NotAllowedError" ? new Error("the browser was not allowed to look") : error);
  }
  $("start").disabled = false;
}

function stop() {
  attempt?.end();
  attempt = null;
  if (recorder) record();
  source.stop();
  session = null;
  $("start").textContent = "Start";
  $("record").disabled = true;
  noteUser([]);
  say("idle", "stopped");
}

function lost(reason) {
  stop();
  alertUser(new Error(reason));
}

function record() {
  if (recorder) {
    recorder.stop();
    recorder = null;
  } else {
    const type = ["video/mp4;codecs=avc1.42E01E", "video/webm;codecs=vp9", "video/webm"]
      .find((name) => MediaRecorder.isTypeSupported(name));
    const parts = [];
    recorder = new MediaRecorder($("output").captureStream(30), {
      mimeType: type, videoBitsPerSecond: 4_000_000,
    });
    recorder.addEventListener("dataavailable", ({ data }) => parts.push(data));
    recorder.addEventListener("stop", () => {
      const link = $("download");
      if (link.href) URL.revokeObjectURL(link.href);
      link.href = URL.createObjectURL(new Blob(parts, { type }));
      link.download = `restyled.${type.startsWith("video/mp4") ? "mp4" : "webm"}`;
      link.hidden = false;
      link.click();
    });
    recorder.start(500);
  }
  $("record").setAttribute("aria-pressed", String(recorder !== null));
}

// Controls

function offer(styles) {
  styles.slice(0, 9).forEach((style, n) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = style;
    chip.title = `Key ${n + 1}`;
    chip.addEventListener("click", () => {
      $("prompt").value = style;
      promptChanged(0);
    });
    $("styles").append(chip);
  });
}

for (const id of ["prompt", "second", "weight"]) $(id).addEventListener("input", () => promptChanged(300));
$("transition").addEventListener("input", showValues);
for (const id of ["steps", "motion", "slo", "low", "high"]) {
  $(id).addEventListener("input", () => {
    showValues();
    soon("settings", 250, () => change(settings()));
  });
}
$("source").addEventListener("change", () => {
  $("file").hidden = $("source").value !== "file";
  if (session) stop();
});
$("transport").addEventListener("change", () => {
  if (session) stop();
});
$("start").addEventListener("click", () => (attempt ? stop() : start()));
$("record").addEventListener("click", record);
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text], select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key >= "1" && event.key <= "9") $("styles").children[event.key - 1]?.click();
  else if (event.key === "s" && !$("start").disabled) $("start").click();
  else if (event.key === "r" && !$("record").disabled) record();
});
addEventListener("resize", () => Object.values(charts).forEach((chart) => chart.draw()));

async function greet() {
  try {
    const engine = await api("GET", "/api/engine");
    $("engine").textContent = `${engine.name}, ${engine.width}×${engine.height}, ${engine.devices.join(", ")}`;
    for (const canvas of [$("input"), $("output")]) {
      canvas.width = engine.width;
      canvas.height = engine.height;
    }
    for (let n = 1; n <= engine.most_steps; n++) $("steps").add(new Option(n, n, n === engine.steps, n === engine.steps));
    // A small model knows only some styles; any other takes every text.
    offer(engine.styles.length ? engine.styles : STYLES);
    $("low").value = engine.noise_low;
    $("high").value = engine.noise_high;
    alertUser(null);
    document.body.dataset.ready = "yes";
  } catch (error) {
    alertUser(error);
    setTimeout(greet, 1500);
  }
  showValues();
}
greet();
