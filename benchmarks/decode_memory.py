"""Memory and time of decoding long videos; memory does not grow with the length.

    python benchmarks/decode_memory.py --weights=taef2.safetensors --frames 8 480

Decodes random latents of 512x512 frames with taef2, chunk by chunk, each video in a separate process that discards the
frames. Prints the peak resident memory of the process, the size of the latents, and the memory of the compiled program
for a chunk.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models.chunks import decode_chunks, make_decoder
from videogen_jax.parallel import mesh as meshes


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="madebyollin/taef2", help="weights of taef2")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 480])
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--chunk", type=int, default=4, help="frames per chunk")
    parser.add_argument("--tile", type=int, default=0, help="tile size in latents; 0 for no tiling")
    options = parser.parse_args()
    if len(options.frames) == 1:
        print(measure(options))
        return
    print(f"{options.size}x{options.size}, chunks of {options.chunk} frames, tile {options.tile}")
    print("| frames | latents | peak memory of the process | of a chunk, compiled | s/frame |")
    print("| --- | --- | --- | --- | --- |")
    for frames in options.frames:
        flags = [
            f"--{name}={getattr(options, name)}" for name in ("weights", "size", "chunk", "tile")
        ]
        command = [sys.executable, __file__, *flags, f"--frames={frames}"]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def measure(options: argparse.Namespace) -> str:
    """Decodes one video and returns its row of the table."""
    count, side = options.frames[0], options.size // 8
    autoencoder = autoencoders.make_autoencoder("taef2", options.weights)
    decoder = make_decoder(
        autoencoder, meshes.make_mesh(), options.chunk, (side, side), options.tile
    )
    memory = decoder.program.lower(*decoder.abstract_args).compile().memory_analysis()
    compiled = memory.temp_size_in_bytes + memory.output_size_in_bytes
    compiled += memory.argument_size_in_bytes
    params = decoder.put_params(autoencoder.load())
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((count, side, side, autoencoder.channels), np.float32)
    decoder(params, latents[:1])  # compiles
    started = time.perf_counter()
    decoded = sum(len(frames) for frames in decode_chunks(decoder, params, latents))
    seconds = (time.perf_counter() - started) / decoded
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    sizes = " | ".join(f"{size / 2**20:.0f} MiB" for size in (latents.nbytes, peak, compiled))
    return f"| {count} | {sizes} | {seconds:.2f} |"


if __name__ == "__main__":
    main()
