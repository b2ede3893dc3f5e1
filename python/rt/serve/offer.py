"""What a WebRTC offer may say. Pure: text in, text out.

The server sends to nobody who did not speak to it first: candidates in an offer are left out, and
it learns a client's address from the checks that the client sends. So no offer makes it knock on
other doors, and a browser that hides its addresses is reached like any other.
"""

from __future__ import annotations

from aiortc import sdp

from ..errors import ConfigError

MEDIA = ["application", "video"]
LONGEST = 20_000
"""Characters; browsers send less than half of it."""
UNREADABLE = (
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    StopIteration,
)
"""All that aiortc raises for a description whose lines are wrong."""
_DROPPED = ("a=candidate:", "a=end-of-candidates")


def without_candidates(offer: str) -> str:
    """`offer` as its sender is never sought, but waited for."""
    return "".join(
        line for line in offer.splitlines(keepends=True) if not line.startswith(_DROPPED)
    )


def checked(offer: str) -> str:
    """The offer to go by. Raises ConfigError for anything but one video both ways and one data
    channel, by somebody with an identity.
    """
    if len(offer) > LONGEST:
        raise ConfigError(f"sdp: got {len(offer)} characters, expected at most {LONGEST}")
    offer = without_candidates(offer)
    try:
        description = sdp.SessionDescription.parse(offer)
    except UNREADABLE as error:
        raise ConfigError(
            f"sdp: got {len(offer)} characters that are no session description "
            f"({type(error).__name__}); send the one that your browser made"
        ) from None
    kinds = sorted(media.kind for media in description.media)
    if kinds != MEDIA:
        raise ConfigError(f"sdp: got {kinds[:8]}, expected one video and one data channel")
    names = {media.rtp.muxId for media in description.media}
    if len(names) != len(MEDIA) or not all(names):
        raise ConfigError("sdp: expected each of its media to have a name (a=mid) of its own")
    bundles = [set(group.items) for group in description.group if group.semantic == "BUNDLE"]
    if bundles != [names]:
        raise ConfigError("sdp: expected all of its media in one bundle (a=group:BUNDLE)")
    for media in description.media:
        if media.dtls is None or not any(
            print_.algorithm.lower() == "sha-256" for print_ in media.dtls.fingerprints
        ):
            raise ConfigError("sdp: expected a=setup and a=fingerprint:sha-256 ...")
        if media.kind == "video" and media.direction != "sendrecv":
            raise ConfigError(f"sdp: got video {media.direction}, expected sendrecv")
        if media.kind == "application" and media.sctp_port is None:
            raise ConfigError("sdp: expected a=sctp-port for its data channel")
    return offer
