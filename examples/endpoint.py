"""A FastAPI endpoint of your own: a JPEG in, the restyled JPEG out.

uvicorn --factory examples.endpoint:build
curl --data-binary @me.jpg 'localhost:8000/restyle?prompt=comic' -o restyled.jpg
"""

import io

import numpy as np
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool

import rt


def restyle(pipeline: rt.Pipeline, picture: bytes, prompt: str) -> bytes:
    with Image.open(io.BytesIO(picture)) as image, pipeline.session(prompt=prompt) as session:
        (frame,) = session.stream([np.asarray(image.convert("RGB"))])
    out = io.BytesIO()
    Image.fromarray(frame.rgb).save(out, "JPEG")
    return out.getvalue()


def build() -> FastAPI:
    app, pipeline = FastAPI(), rt.Pipeline.load("engines/tiny")

    @app.post("/restyle")
    async def endpoint(request: Request, prompt: str) -> Response:
        restyled = await run_in_threadpool(restyle, pipeline, await request.body(), prompt)
        return Response(restyled, media_type="image/jpeg")

    return app
