"""NumPy in; out, arrays of the library that goes on with them: CuPy where it is installed."""

import importlib
import importlib.util

import numpy as np

import rt


def main() -> None:
    library = "cupy" if importlib.util.find_spec("cupy") else "numpy"
    xp = importlib.import_module(library)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (256, 256, 3), np.uint8)] * 9
    with (
        rt.Pipeline.load("engines/tiny") as pipeline,
        pipeline.session(prompt="autumn", motion="off") as session,
    ):
        restyled = xp.stack([xp.asarray(frame.rgb) for frame in session.stream(pictures)])
    print(f"{library} {restyled.dtype} {list(restyled.shape)}, mean {float(restyled.mean()):.1f}")


if __name__ == "__main__":
    main()
