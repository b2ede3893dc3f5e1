"""Realtime streaming video-to-video diffusion: frames in, restyled frames out, each before its
deadline.

pipeline = rt.Pipeline.load("engines/tiny") with pipeline.session(prompt="pencil sketch", seed=7) as
session:
    for frame in session.stream(frames):
        show(frame.rgb)
"""

from .asynchronous import AsyncSession
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
from .host import SessionStatus
from .metrics import Report
from .pipeline import Pipeline, Status
from .scheduler import Decision
from .session import Session

__all__ = [
    "SLO",
    "AdmissionRefused",
    "AsyncSession",
    "CheckpointError",
    "ConfigError",
    "Decision",
    "EngineMismatch",
    "EngineMissing",
    "Error",
    "Frame",
    "Pipeline",
    "Report",
    "Session",
    "SessionConfig",
    "SessionStatus",
    "SinkError",
    "SourceError",
    "StageFailed",
    "Status",
    "__version__",
]
