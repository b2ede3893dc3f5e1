// One session of the server: REST to open and change it, a WebSocket for its frames.

import * as wire from "./wire.js";

// A link with #token=... is how a browser is let in; it is kept for this tab only.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}
const token = sessionStorage.getItem("token");

export async function api(method, path, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("the server does not answer");
  }
  const content = answer.status === 204 ? null : await answer.json();
  if (answer.ok) return content;
  const detail = content?.detail;
  throw new Error(Array.isArray(detail) ? detail.map((d) => d.msg).join("; ") : detail);
}

// Settled once the server has room again.
export async function end(id) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  try {
    await fetch(`/api/sessions/${id}`, { method: "DELETE", headers, keepalive: true });
  } catch {} // the server is gone, and the session with it
}

const MOST_BUFFERED = 200_000;

export class Session {
  // `on`: picture(bitmap, message), status(status), closed(reason)
  constructor(on) {
    this.on = on;
  }

  async open(options) {
    const opened = await api("POST", "/api/sessions", options);
    if (this.ended) return end(opened.id);
    this.id = opened.id;
    const query = token ? `?token=${encodeURIComponent(token)}` : "";
    const address = new URL(opened.stream + query, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.addEventListener("message", ({ data }) => this.#message(data));
    this.socket.addEventListener("close", ({ reason }) => {
      this.over = true;
      this.on.closed(reason);
    });
    await new Promise((done, fail) => {
      this.socket.addEventListener("open", done);
      this.socket.addEventListener("error", () => fail(new Error("the stream was refused")));
    });
    return opened;
  }

  send(canvas, ptsS) {
    // A frame that waits in the browser would be old when it arrives.
    if (this.encoding || this.socket?.readyState !== WebSocket.OPEN) return;
    if (this.socket.bufferedAmount > MOST_BUFFERED) return;
    this.encoding = true;
    canvas.toBlob((jpeg) => {
      this.encoding = false;
      if (jpeg && this.socket.readyState === WebSocket.OPEN) this.socket.send(wire.frame(ptsS, jpeg));
    }, "image/jpeg", 0.85);
  }

  update(change) {
    return api("PATCH", `/api/sessions/${this.id}`, change);
  }

  // Settled once the server has room again.
  close() {
    this.on.closed = () => {};
    this.ended ??= (this.id && !this.over ? end(this.id) : Promise.resolve())
      .then(() => this.socket?.close());
    return this.ended;
  }

  async #message(data) {
    if (typeof data === "string") {
      this.on.status(JSON.parse(data));
      return;
    }
    const message = wire.read(data);
    const bitmap = await createImageBitmap(new Blob([message.data], { type: "image/jpeg" }));
    this.on.picture(bitmap, message);
    bitmap.close();
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(wire.ack(message.index));
  }
}
