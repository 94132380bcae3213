"""What decoding a long video takes: memory that does not grow with it, and time that does.

    python benchmarks/decode_memory.py --weights=taef2.safetensors --frames 8 480

Decodes random latents of 512x512 frames with taef2, chunk by chunk, each video in a process of its own, which throws
the frames away as they come. Prints the most memory that the process ever had (resident) beside what the latents
themselves take, and what the compiled program says that a chunk needs.
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
    parser.add_argument("--weights", default="madebyollin/taef2", help="of taef2")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 480])
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--chunk", type=int, default=4, help="frames at a time")
    parser.add_argument("--tile", type=int, default=0, help="latents; 0: no tiles")
    options = parser.parse_args()
    if len(options.frames) == 1:
        print(measure(options))
        return
    print(f"{options.size}x{options.size}, {options.chunk} frames at a time, tile {options.tile}")
    print(
        "| frames | latents | peak memory of the process | a chunk's, compiled | seconds a frame |"
    )
    print("| --- | --- | --- | --- | --- |")
    for frames in options.frames:
        flags = [
            f"--{name}={getattr(options, name)}" for name in ("weights", "size", "chunk", "tile")
        ]
        command = [sys.executable, __file__, *flags, f"--frames={frames}"]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def measure(options: argparse.Namespace) -> str:
    """Decodes one video, and gives its row of the table."""
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
