"""A program as a client of `python -m rt.serve`: `python examples/websocket_client.py URL`.

One msgpack map per message. A frame that came is acknowledged by its index; the server keeps at
most a dozen frames on the way, so what comes is never old.
"""

import io
import json
import sys
import time
import urllib.request

import msgpack
import numpy as np
from PIL import Image
from websockets.sync.client import connect

from rt import media


def jpeg(rgb: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG")
    return out.getvalue()


def main(url: str, frames: int = 8) -> None:
    options = json.dumps({"prompt": "comic", "slo_ms": 10_000.0}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/api/sessions", options, headers)
    with urllib.request.urlopen(request) as answer:
        opened = json.load(answer)
    got = 0
    with connect(url.replace("http", "ws", 1) + opened["stream"], proxy=None) as socket:
        for frame in media.moving_scene(seconds=60):
            data = jpeg(frame.rgb)
            socket.send(msgpack.packb({"pts_s": frame.pts_s, "format": "jpeg", "data": data}))
            time.sleep(1 / 16)
            try:
                while isinstance(message := socket.recv(timeout=0), str):
                    pass  # a status, twice a second
            except TimeoutError:
                continue
            restyled = msgpack.unpackb(message)
            socket.send(msgpack.packb({"ack": restyled["index"]}))
            got += 1
            if got == frames:
                break
    print(f"{got} frames came back, the last after {restyled['latency_ms']:.0f} ms")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1].rstrip("/"))
