"""What REST takes and gives: strict pydantic models, from which OpenAPI is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..config import SLO, Fit, Motion, Prompt


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 2.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, Field(min_length=1, max_length=400, pattern=r"\S")]
Share = Annotated[float, Field(gt=0, le=1)]
SloMs = Annotated[float, Field(ge=20, le=60_000)]
Steps = Annotated[int, Field(ge=1, le=16), BeforeValidator(_whole)]


class Strict(BaseModel):
    """No key that is not named, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Part(Strict):
    """One text of a blend."""

    text: Text
    weight: Annotated[float, Field(ge=0, le=1000)]


Blend = Annotated[list[Part], Field(min_length=1, max_length=4)]


class NoiseRange(Strict):
    """Noise scale of the fastest picture (low) and of a resting one (high)."""

    low: Share
    high: Share


class SessionOptions(Strict):
    """How a session begins. `fps` is the rate that is held free for it and at most taken from it;
    None: the highest that fits.
    """

    prompt: Text | Blend
    steps: Steps | None = None
    noise_range: NoiseRange | None = None
    motion: Motion = "flow"
    slo_ms: SloMs = 1000.0
    fps: Annotated[float, Field(ge=0.1, le=60)] | None = None
    seed: Annotated[int, Field(ge=0, le=(1 << 53) - 1), BeforeValidator(_whole)] = 0
    fit: Fit = "crop"


class SessionUpdate(Strict):
    """What changes in flight; what is left out stays.

    A prompt moves over `transition_chunks`. Anything else begins a new stream in the same seat.
    """

    prompt: Text | Blend | None = None
    transition_chunks: Annotated[int, Field(ge=0, le=200), BeforeValidator(_whole)] = 0
    steps: Steps | None = None
    noise_range: NoiseRange | None = None
    motion: Motion | None = None
    slo_ms: SloMs | None = None

    def restarts(self) -> bool:
        """Whether anything but the prompt changes."""
        return any(v is not None for v in (self.steps, self.noise_range, self.motion, self.slo_ms))


class Latency(BaseModel):
    """Percentiles of the last seconds, in ms; None while nothing was measured."""

    p50: float | None
    p99: float | None


class SessionStatus(BaseModel):
    """A session, now. Counters are since it was opened. `steps` are those in use, of `most_steps`;
    `level` of degradation, 0 is none.
    """

    id: str
    age_s: float
    frames_in: int
    frames_on_time: int
    frames_late: int
    frames_dropped: int
    frames_in_flight: int
    frames_replaced: int
    ttff_ms: float | None
    fps: float
    latency_ms: Latency
    slo_ms: float
    fps_held: float
    miss_share: float
    motion_score: float | None
    noise_scale: float | None
    steps: int
    most_steps: int
    level: int
    chunks: int
    remarks: list[str]


class Engine(BaseModel):
    """What the page needs to know of the engines."""

    name: str
    height: int
    width: int
    steps: int
    most_steps: int
    noise_low: float
    noise_high: float
    backend: str
    devices: list[str]
    styles: list[str]


class Offer(Strict):
    """What `RTCPeerConnection.createOffer` gave: one video both ways and one data channel."""

    sdp: Annotated[str, Field(min_length=1)]


class Answer(BaseModel):
    """For `setRemoteDescription`, and the rate that both sides send at."""

    type: Literal["answer"] = "answer"
    sdp: str
    bits_per_s: int


class Failure(BaseModel):
    """Every error has one line."""

    detail: str


class Mistake(BaseModel):
    """Options that mean nothing: in one line, or one item for every place that is wrong."""

    detail: str | list[dict[str, Any]]


def prompt_of(prompt: str | list[Part]) -> Prompt:
    """As `rt` takes it."""
    if isinstance(prompt, str):
        return prompt
    return tuple((part.text, part.weight) for part in prompt)


def fields_of(options: SessionOptions, fps: float) -> dict[str, Any]:
    """As `Pipeline.session` takes them, for `fps` frames/s. Raises ConfigError as `rt.SLO` does."""
    noise = options.noise_range
    return {
        "prompt": prompt_of(options.prompt),
        "slo": SLO(fps=fps, latency_ms=options.slo_ms),
        "seed": options.seed,
        "steps": options.steps,
        "motion": options.motion,
        "fit": options.fit,
        "noise_range": None if noise is None else (noise.low, noise.high),
    }


def changed(options: SessionOptions, update: SessionUpdate) -> SessionOptions:
    """`options` with what `update` names."""
    named = {k: v for k, v in dict(update).items() if v is not None and k != "transition_chunks"}
    return options.model_copy(update=named)
