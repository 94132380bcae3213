"""Text encoders for tests: CLIP's files with random weights, written without PyTorch."""

import json

import numpy as np
from safetensors.numpy import save_file

WIDTH, POOLED, LENGTH = 12, 8, 77


def write_clip(folder, seed=0, vocabulary=49_408, positions=LENGTH, activation="quick_gelu"):
    """A `CLIPTextModelWithProjection` with two layers; returns the folder as a string."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "hidden_act": activation,
        "projection_dim": POOLED,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "embeddings.token_embedding.weight": (vocabulary, WIDTH),
        "embeddings.position_embedding.weight": (positions, WIDTH),
    }
    norms = ["final_layer_norm"]
    for i in range(2):
        layer = f"encoder.layers.{i}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        dense = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
        dense |= {"mlp.fc1": (20, WIDTH), "mlp.fc2": (WIDTH, 20)}
        for name, shape in dense.items():
            shapes[f"{layer}.{name}.weight"] = shape
            shapes[f"{layer}.{name}.bias"] = shape[:1]
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    rng = np.random.default_rng(seed)
    tensors = {
        f"text_model.{name}": rng.standard_normal(shape).astype(np.float32) * 0.5
        for name, shape in shapes.items()
    }
    tensors["text_projection.weight"] = rng.standard_normal((POOLED, WIDTH)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return str(folder)
