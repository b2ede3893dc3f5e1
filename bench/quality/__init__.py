"""Picture quality of the trained tiny model, through the real runtime.

python -m bench.quality --clip CLIP.mp4
"""
