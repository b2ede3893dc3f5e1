"""The one exception tree of the runtime. `Error.exit_code` is what a command line returns for it.

A user's mistake raises one of these at the edge, in one line: what was got, what was expected, what
to do. A broken invariant is an `assert`, never one of these.
"""


class Error(Exception):
    """Root of everything that `rt` and `export` raise on purpose."""

    exit_code = 1


class ConfigError(Error):
    """An option or an argument that cannot mean anything; nothing was started."""

    exit_code = 2


class EngineMissing(Error):
    """There is no engine directory where one was named."""


class EngineMismatch(Error):
    """An engine that does not fit: corrupt, or built for another library, device or geometry."""


class CheckpointError(Error):
    """A weights file that is not what it should be; names every offending key."""


class SourceError(Error):
    """The input cannot be read, or stopped being readable."""


class SinkError(Error):
    """The output cannot be written."""


class AdmissionRefused(Error):
    """A further session does not fit; carries the numbers that say so."""


class StageFailed(Error):
    """A worker failed while it ran `stage` on `device` for `chunk`. The cause is chained."""

    def __init__(self, device: str, stage: int, chunk: int, reason: str) -> None:
        super().__init__(f"stage {stage} on {device} failed at chunk {chunk}: {reason}")
        self.device = device
        self.stage = stage
        self.chunk = chunk
