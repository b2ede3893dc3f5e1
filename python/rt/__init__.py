"""Realtime streaming video-to-video diffusion: frames in, restyled frames out, each before its
deadline.

pipeline = rt.Pipeline.load("engines/tiny") with pipeline.session(prompt="pencil sketch", seed=7) as
session:
    for frame in session.stream(frames):
        show(frame.rgb)
"""

from .config import SLO, SessionConfig
from .config import VERSION as __version__
from .errors import (
    AdmissionRefused,
    CheckpointError,
    ConfigError,
    EngineMismatch,
    EngineMissing,
    Error,
    SinkError,
    SourceError,
    StageFailed,
)
from .frame import Frame
from .metrics import Report
from .pipeline import Pipeline, Status
from .session import Session

__all__ = [
    "SLO",
    "AdmissionRefused",
    "CheckpointError",
    "ConfigError",
    "EngineMismatch",
    "EngineMissing",
    "Error",
    "Frame",
    "Pipeline",
    "Report",
    "Session",
    "SessionConfig",
    "SinkError",
    "SourceError",
    "StageFailed",
    "Status",
    "__version__",
]
