// The messages of rt.serve.wire: as much of msgpack as they need.

const utf8 = new TextEncoder();

function text(s) {
  const bytes = utf8.encode(s);
  return [0xd9, bytes.length, ...bytes];
}

function float64(value) {
  const bytes = new Uint8Array(9);
  bytes[0] = 0xcb;
  new DataView(bytes.buffer).setFloat64(1, value);
  return bytes;
}

function header(code, length) {
  const bytes = new Uint8Array(5);
  bytes[0] = code;
  new DataView(bytes.buffer).setUint32(1, length);
  return bytes;
}

export function frame(ptsS, jpeg) {
  return new Blob([
    new Uint8Array([0x83, ...text("pts_s")]), float64(ptsS),
    new Uint8Array([...text("format"), ...text("jpeg"), ...text("data")]),
    header(0xc6, jpeg.size), jpeg,
  ]);
}

export function ack(index) {
  return new Blob([new Uint8Array([0x81, ...text("ack")]), header(0xce, index)]);
}

// One msgpack value of the kinds that the server sends.
export function read(buffer) {
  const view = new DataView(buffer);
  const decoder = new TextDecoder();
  let at = 0;
  const take = (length) => new Uint8Array(buffer, (at += length) - length, length);
  function value() {
    const code = view.getUint8(at++);
    if (code < 0x80) return code;
    if (code < 0x90) return map(code & 15);
    if (code >= 0xa0 && code < 0xc0) return decoder.decode(take(code & 31));
    switch (code) {
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return take(view.getUint8((at += 1) - 1));
      case 0xc5: return take(view.getUint16((at += 2) - 2));
      case 0xc6: return take(view.getUint32((at += 4) - 4));
      case 0xcb: return view.getFloat64((at += 8) - 8);
      case 0xcc: return view.getUint8((at += 1) - 1);
      case 0xcd: return view.getUint16((at += 2) - 2);
      case 0xce: return view.getUint32((at += 4) - 4);
      default: throw new Error(`msgpack code ${code}`);
    }
  }
  function map(length) {
    const out = {};
    for (let i = 0; i < length; i++) out[value()] = value();
    return out;
  }
  return value();
}
