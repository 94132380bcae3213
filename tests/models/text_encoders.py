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


def write_t5(folder, seed=0, kind="t5", vocabulary=40, parts=1):
    """An encoder of two layers and its tokenizer, in transformers' layout; returns the folder as a string."""
    folder.mkdir(parents=True, exist_ok=True)
    heads, head, hidden = 2, 4, 20
    config = {"model_type": kind, "vocab_size": vocabulary, "d_model": WIDTH, "d_kv": head}
    config |= {"d_ff": hidden, "num_layers": 2, "num_heads": heads, "eos_token_id": 1}
    config |= {"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"shared.weight": (vocabulary, WIDTH), "encoder.final_layer_norm.weight": (WIDTH,)}
    for i in range(2):
        layer = f"encoder.block.{i}.layer"
        for name in "qkv":
            shapes[f"{layer}.0.SelfAttention.{name}.weight"] = (heads * head, WIDTH)
        shapes[f"{layer}.0.SelfAttention.o.weight"] = (WIDTH, heads * head)
        shapes |= {f"{layer}.{part}.layer_norm.weight": (WIDTH,) for part in range(2)}
        if i == 0 or kind == "umt5":
            shapes[f"{layer}.0.SelfAttention.relative_attention_bias.weight"] = (8, heads)
        shapes |= {f"{layer}.1.DenseReluDense.wi_{j}.weight": (hidden, WIDTH) for j in range(2)}
        shapes[f"{layer}.1.DenseReluDense.wo.weight"] = (WIDTH, hidden)
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.standard_normal(shape).astype(np.float32) * 0.5 for name, shape in shapes.items()
    }
    if parts == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        save_parts(tensors, folder, parts)
    write_words(folder)
    return str(folder)


def save_parts(tensors, folder, parts, file="model.safetensors"):
    """Several files and their index."""
    index = {}
    for i in range(parts):
        name = f"{file.removesuffix('.safetensors')}-{i + 1:05d}-of-{parts:05d}.safetensors"
        chosen = dict(list(tensors.items())[i::parts])
        save_file(chosen, folder / name)
        index |= dict.fromkeys(chosen, name)
    (folder / f"{file}.index.json").write_text(json.dumps({"weight_map": index}))


def write_words(folder, words="a red ball ein grüner Würfel word one two three", end=True):
    """A tokenizer.json of whole words, which ends captions as T5's does."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    special = ("<pad>", "</s>", "<unk>")
    vocabulary = {word: i for i, word in enumerate((*special, *words.split()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
