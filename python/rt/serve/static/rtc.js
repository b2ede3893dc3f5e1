// One session of the server over WebRTC: video both ways, its status over a data channel.
// The same interface as Session, which uses a WebSocket.

import { api, end } from "./session.js";
import { unseenVideo } from "./source.js";

const FRAMES_PER_S = 30;
const PATIENCE_MS = 10_000;

// An error that the other transport does not have.
function cannot(why) {
  const error = new Error(`WebRTC cannot start: ${why}`);
  error.transport = "socket";
  return error;
}

export class Call {
  // `on`: picture(video, null), status(status), closed(reason); `canvas` is what is sent
  constructor(on, canvas) {
    this.on = on;
    this.canvas = canvas;
  }

  // `pictures` is settled once the canvas shows the source, or will not.
  async open(options, pictures) {
    if (!globalThis.RTCPeerConnection) throw cannot("this browser does not have it");
    const opened = await api("POST", "/api/sessions", options);
    if (this.ended) return end(opened.id);
    this.id = opened.id;
    this.leave = () => this.close();
    addEventListener("pagehide", this.leave);
    try {
      await this.#connect(pictures);
    } catch (error) {
      this.close();
      throw error;
    }
    return opened;
  }

  async #connect(pictures) {
    const peer = this.peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    const { sender } = peer.addTransceiver("video", { direction: "sendrecv" });
    const channel = peer.createDataChannel("status");
    peer.addEventListener("track", ({ track: received, receiver }) => {
      receiver.jitterBufferTarget = 0;
      this.#show(received);
    });
    channel.addEventListener("message", ({ data }) => this.#hear(JSON.parse(data)));
    // The server learns where this browser is from its checks: no candidate is waited for.
    await peer.setLocalDescription();
    const { sdp } = peer.localDescription;
    const answer = await api("POST", `/api/sessions/${this.id}/offer`, { sdp });
    await peer.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    const parameters = sender.getParameters();
    for (const encoding of parameters.encodings) {
      encoding.maxBitrate = answer.bits_per_s;
      encoding.maxFramerate = FRAMES_PER_S;
    }
    await sender.setParameters(parameters);
    await new Promise((done, fail) => {
      const waited = setTimeout(() => fail(cannot("the server is not reached")), PATIENCE_MS);
      channel.addEventListener("open", () => {
        clearTimeout(waited);
        done();
      });
      peer.addEventListener("connectionstatechange", () => {
        if (peer.connectionState === "failed") fail(cannot("the server is not reached"));
      });
    });
    await pictures;
    this.sent = this.canvas.captureStream(FRAMES_PER_S);
    const [track] = this.sent.getVideoTracks();
    track.contentHint = "detail"; // a slow network costs frames, not size
    await sender.replaceTrack(track);
    channel.addEventListener("close", () => {
      this.over = true;
      this.on.closed(this.reason ?? "");
    });
  }

  // The canvas is what is sent: nothing to do for one picture of it.
  send() {}

  update(change) {
    return api("PATCH", `/api/sessions/${this.id}`, change);
  }

  // Settled once the server has room again.
  close() {
    this.on.closed = () => {};
    removeEventListener("pagehide", this.leave);
    this.video?.remove();
    for (const track of this.sent?.getTracks() ?? []) track.stop();
    this.ended ??= (this.id && !this.over ? end(this.id) : Promise.resolve())
      .then(() => this.peer?.close());
    return this.ended;
  }

  #hear(message) {
    if ("ended" in message) this.reason = message.ended;
    else this.on.status(message);
  }

  #show(track) {
    const video = (this.video = unseenVideo());
    video.srcObject = new MediaStream([track]);
    const next = () => {
      if (!video.isConnected) return;
      this.on.picture(video, null);
      video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
    video.play().catch(() => {}); // it is closed before it began
  }
}
