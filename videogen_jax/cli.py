"""The console command `videogen`: `videogen VERB ...` is `python -m videogen_jax.VERB ...`, and train is launch.py."""

import runpy
import sys

from videogen_jax import interrupts

VERBS = {
    "caption": "write captions for clips that have none, with a model that sees them",
    "pack": "pack a folder of captioned clips, or a generated data set, as TFRecord shards",
    "merge": "merge the parts that several machines packed",
    "encode": "encode packed clips as latents and caption embeddings",
    "plan": "predict memory and step time on GPUs that are not here",
    "train": "train a run, or resume it",
    "sample": "make videos from a checkpoint",
    "export": "hand on a trained model: safetensors, a model card, the Hugging Face hub",
    "evaluate": "score videos: FVD, CLIP score, PSNR and others",
    "config": "list the options of a run",
}


def main() -> None:
    """Runs the verb that the first argument names."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print("usage: videogen VERB [--flag=value ...]; videogen VERB --help lists its flags\n")
        for name, meaning in VERBS.items():
            print(f"  {name:9} {meaning}")
        return
    if verb not in VERBS:
        sys.exit(f"videogen: error: there is no verb {verb!r}: choose one of {', '.join(VERBS)}.")
    interrupts.install(verb)
    sys.argv = [f"videogen {verb}", *sys.argv[2:]]
    runpy.run_module(f"videogen_jax.{'launch' if verb == 'train' else verb}", run_name="__main__")


if __name__ == "__main__":
    main()
