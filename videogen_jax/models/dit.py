"""Video diffusion transformer with alternating spatial and temporal attention, or joint attention over all tokens.

    x_t (B, T*pt, H*ph, W*pw, C) --patchify, linear--> tokens (B, T, N, D) + positions
      blocks (blocks.py): spatial and temporal in turn, or joint
    --adaLN, linear, unpatchify--> prediction, shape of x_t (+ the patch detailer head, detailer.py)

    condition (B, T or 1, D) = embedded time + pooled text or class + micro-conditions

| conditioning | channels concatenated to x_t                 | for                                          |
| ------------ | -------------------------------------------- | -------------------------------------------- |
| none         |                                              | text to video                                |
| prefix       | mask of known frames                         | long video, arXiv:2411.16375                 |
| frames       | known frames and their mask                  | image to video, arXiv:2311.15127; and prefix |

Time t is per clip (B,) or per latent frame (B, T), so that clean context frames can be mixed with noisy ones. An image
is a video with T = 1 and skips the temporal blocks, so images and videos train the same parameters.

A causal model can continue a video: its temporal blocks attend to the cached keys and values of earlier frames
(`KVCache`), and it returns those of the new frames.

Source: DiT, arXiv:2212.09748; alternation as in Latte, arXiv:2401.03048, variant 1.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from videogen_jax.models import blocks, layers, linear, offloaded_scan, patches, positions, remat
from videogen_jax.models.caption_encoder import POOLINGS, CaptionEncoder, CaptionProjection
from videogen_jax.models.detailer import PatchDetailer
from videogen_jax.models.kv_cache import KVCache
from videogen_jax.parallel.sequence_parallel import TokenSharding

TIME_FEATURES = 256

TEXT_ENCODERS = ("words", "class", "embeddings")
CONDITIONINGS = ("none", "prefix", "frames")
RESIDUAL_TYPES = ("compute", "float32")
CHOICES = {
    "attention": tuple(blocks.KINDS),
    "positions": positions.POSITIONS,
    "modulation": blocks.MODULATIONS,
    "cross_attention": blocks.CROSS_ATTENTIONS,
    "text_encoder": TEXT_ENCODERS,
    "conditioning": CONDITIONINGS,
    "residual_dtype": RESIDUAL_TYPES,
    "text_pooling": POOLINGS,
}


class VideoDiT(nn.Module):
    """The denoising network."""

    patch_size: tuple[int, int, int]  # (pt, ph, pw)
    width: int  # D, hidden size
    depth: int  # number of blocks, spatial and temporal ones together
    num_heads: int
    mlp_ratio: int
    attention: str  # factorized, joint
    causal: bool  # temporal or joint attention is causal over latent frames
    positions: str  # see positions.py
    modulation: str  # see blocks.py
    qk_norm: bool
    cross_attention: str  # see blocks.py
    pooled_text: bool  # add the pooled text embedding to the condition
    micro_conditions: tuple[str, ...]  # names; each has its own embedder
    conditioning: str  # see the table above
    time_cycle: int  # period of temporal positions in latent frames; 0 for none
    text_depth: int  # layers of the caption encoder
    text_encoder: str  # words, class, embeddings
    vocabulary_size: (
        int  # number of words, or of classes plus one for no class; unused by embeddings
    )
    dtype: jnp.dtype  # of matrix products
    residual_dtype: str = "compute"  # of the residual stream: compute (that of `dtype`), float32
    detailer_width: int = 0  # channels of the patch detailer head, see detailer.py; 0: none
    detailer_blocks: int = 2  # its residual blocks
    text_pooling: str = "mean"  # of the caption encoder's words, see caption_encoder.py
    out_channels: int | None = None  # None: as x_t
    position_grid: tuple[float, float] | None = None  # (rows, columns) in tokens; None: the video's
    token_sharding: TokenSharding | None = None  # None on one device
    kernel: str = "xla"  # see attention.py
    remat: str = "none"  # see remat.py, as the next one
    offload: bool = False
    pieces: int = 1  # sequential pieces in which MLPs and the last layer are computed
    unroll: int = 1  # iterations of the scan over blocks that are unrolled; with `offload` none are

    @nn.compact
    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        text: Any,
        micro: Mapping[str, jax.Array] | None = None,
        known: jax.Array | None = None,
        mask: jax.Array | None = None,
        start: jax.Array | None = None,
        kv_cache: KVCache | None = None,
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Predicts noise, clean video or velocity, depending on the objective.

        Args:
          x_t: (B, T*pt, H*ph, W*pw, C), noisy video, float.
          t: (B,) or (B, T), the schedule's `model_time`, float or int.
          text: depends on `text_encoder`. words: (B, L) int32, caption ids, 0 is padding. class: (B,) int32 labels, the
            last one for no class. embeddings: {"tokens": (B, L, E), "mask": (B, L) bool, True at leading valid tokens}
            and, for `pooled_text`, "pooled": (B, P).
          micro: name -> (B,) float32, exactly those in `micro_conditions`.
          known: (B, T*pt, H*ph, W*pw, C) known frames, for the conditioning "frames".
          mask: (B, T*pt) float, 1 at known frames, for "frames" and "prefix".
          start: (B,) or () int32, index of the first latent frame in its video, with `time_cycle`; 0 if None.
          kv_cache: keys and values of the latent frames before x_t.
        Returns:
          (B, T*pt, H*ph, W*pw, C or out_channels) float32; with a KV cache also the keys and values of x_t's latent
          frames, each (G, B, N, T, K, Dh).
        Raises:
          ValueError: a field is unknown or conflicts with another, a size does not fit, or text, micro-conditions or
            frames do not match the model's fields.
        Source: micro-conditions, Stable Video Diffusion, arXiv:2311.15127, appendix.
        """
        self._check()
        if kv_cache is not None and not (self.causal and self.attention == "factorized"):
            raise ValueError(
                f"A model with model.causal={self.causal} and model.attention={self.attention!r} has no KV cache: "
                "train one with causal=True and attention='factorized' for long videos."
            )
        added = self.positions in positions.ADDED_IN_TIME
        if kv_cache is not None and added and (start is None or not self.time_cycle):
            raise ValueError(
                f"Positions {self.positions!r} are absolute frame numbers: with a KV cache give the start of x_t, to a "
                "model with model.time_cycle above 0."
            )
        height, width, channels = x_t.shape[2:]
        grid = patches.patch_grid(x_t.shape[1:4], self.patch_size)
        tokens, lengths, vector = self._read_text(text)
        condition = self._embed_condition(t, vector, micro or {})  # (B, T or 1, D)

        joined = self._join_known(x_t, known, mask)
        if self.token_sharding is not None:
            joined = self.token_sharding.shard_frames(joined)
        x = patches.patchify(joined, self.patch_size).astype(self.dtype)  # (B, T, N, pt*ph*pw*C')
        x = self._dense(self.width, "patch_embed", linear.KERNEL_INIT)(x)  # (B, T, N, D)
        if self.residual_dtype == "float32":
            x = x.astype(jnp.float32)  # blocks add to it in its own type
        x, time_table = self._add_positions(x, grid, start, cached=kv_cache is not None)

        modulation = condition
        if self.modulation == "adaln_single":
            modulation = self._dense(6 * self.width, "shared_modulation")(nn.silu(condition))
        coordinates = positions.coordinates(grid, self.position_grid)  # (T, N, 3)
        shared = (modulation, tokens, lengths, coordinates, time_table)
        x, keys_values = self._blocks(x, kv_cache, *shared)

        modulation = self._last_modulation(condition)
        patch = math.prod(self.patch_size)
        unembed = linear.Linear(
            (patch * (self.out_channels or channels),), nn.initializers.zeros, name="unembed"
        )(self.width)
        of_tokens, of_weights = linear.place(modulation, self.token_sharding, self.dtype)
        unembed = {"unembed": linear.fold(unembed, self.dtype, of_weights)}
        unembed = remat.gather(unembed, self.pieces, self.token_sharding)["unembed"]

        def last_layer(unembed: linear.Weights, x: jax.Array) -> jax.Array:
            x = layers.modulate(x, of_tokens).astype(self.dtype)
            return linear.multiply(unembed, x, self.token_sharding).astype(jnp.float32)

        out = remat.in_pieces(last_layer, unembed, x, 2, self.pieces)
        video = patches.unpatchify(out, self.patch_size, height, width)
        if self.detailer_width:
            sizes = (self.patch_size, self.detailer_width, self.detailer_blocks, self.dtype)
            head = PatchDetailer(*sizes, name="detailer")
            features = layers.modulate(x, modulation).astype(self.dtype)
            video = video + head(x_t, features, self.out_channels or channels)
        return video if kv_cache is None else (video, keys_values)

    def _join_known(
        self, x_t: jax.Array, known: jax.Array | None, mask: jax.Array | None
    ) -> jax.Array:
        """x_t with the conditioning channels: (B, T*pt, H*ph, W*pw, C')."""
        given = {"known": known, "mask": mask}
        given = {name for name, array in given.items() if array is not None}
        needs = {"none": set(), "prefix": {"mask"}, "frames": {"known", "mask"}}
        required = needs[self.conditioning]
        if given != required:
            raise ValueError(
                f"The frame arguments are {' and '.join(sorted(given)) or 'none'}, but model.conditioning is "
                f"{self.conditioning!r}: give {' and '.join(sorted(required)) or 'none'}."
            )
        if mask is None:
            return x_t
        mask = jnp.broadcast_to(mask[..., None, None, None], (*x_t.shape[:-1], 1))
        parts = [x_t, mask] if known is None else [x_t, known, mask]
        return jnp.concatenate([part.astype(x_t.dtype) for part in parts], axis=-1)

    def _dense(self, features: int, name: str, init: Any = nn.initializers.zeros) -> nn.Module:
        return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

    def _read_text(self, text: Any) -> tuple[jax.Array | None, jax.Array | None, jax.Array | None]:
        """Tokens (B, L, D) and their lengths (B,) for cross-attention; vector (B, D) for the condition."""
        if self.text_encoder == "class":
            init = layers.EMBED_INIT
            embed = nn.Embed(
                self.vocabulary_size, self.width, embedding_init=init, name="label_embed"
            )
            return None, None, embed(text)
        if self.text_encoder == "words":
            tokens, mask, pooled = CaptionEncoder(
                self.vocabulary_size,
                self.width,
                self.text_depth,
                self.num_heads,
                self.token_sharding,
                self.kernel,
                dtype=self.dtype,
                pooling=self.text_pooling,
                name="caption_encoder",
            )(text)
        else:
            required = ("tokens", "mask", "pooled") if self.pooled_text else ("tokens", "mask")
            if missing := [name for name in required if name not in text]:
                raise ValueError(
                    f"The text embeddings lack {', '.join(missing)}: the model reads {', '.join(required)}."
                )
            tokens, mask, pooled = text["tokens"], text["mask"], text.get("pooled")
            if self.cross_attention != "none":
                project = CaptionProjection(self.width, dtype=self.dtype, name="caption_encoder")
                tokens = project(tokens)
        lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
        if self.pooled_text:
            vector = layers.Embedder(self.width, self.dtype, name="text_embed")(pooled)
            # A weighted sum of words is also added as it is: the path by which they are learned first.
            return tokens, lengths, vector + pooled if self.text_pooling == "weighted" else vector
        return tokens, lengths, None

    def _embed_condition(
        self, t: jax.Array, vector: jax.Array | None, micro: Mapping[str, jax.Array]
    ) -> jax.Array:
        """(B, T or 1, D) float32: the sum of the embedded time, text and micro-conditions."""
        if set(micro) != set(self.micro_conditions):
            raise ValueError(
                f"The micro-conditions given are {', '.join(sorted(micro)) or 'none'}, but "
                f"model.micro_conditions are {', '.join(self.micro_conditions) or 'none'}: give these."
            )

        def embed(name: str, values: jax.Array) -> jax.Array:
            features = layers.timestep_embedding(values, TIME_FEATURES)
            embedder = layers.Embedder(self.width, self.dtype, name=f"{name}_embed")
            return embedder(features).astype(jnp.float32)

        condition = embed("time", t)
        condition = condition if t.ndim == 2 else condition[:, None]
        vectors = [embed(name, micro[name]) for name in self.micro_conditions]
        if vector is not None:
            vectors.append(vector.astype(jnp.float32))
        return condition + sum(vectors)[:, None] if vectors else condition

    def _add_positions(
        self, x: jax.Array, grid: tuple[int, int, int], start: jax.Array | None, cached: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """Tokens with added positions, and the table to be added before the first temporal block."""
        table, time_table, frames = None, None, None
        if start is not None and self.time_cycle:
            frames = start[..., None] + jnp.arange(grid[0])  # (T,) or (B, T)
        if self.positions == "sincos":
            table = positions.sincos_3d(
                grid, self.width, self.position_grid, frames, self.time_cycle
            )
        elif self.positions in ("latte", "dit"):
            table = positions.sincos_2d(grid[1:], self.width, self.position_grid)
        if self.positions == "latte" and (grid[0] > 1 or cached):
            time_table = positions.sincos_frames(grid[0], self.width, frames, self.time_cycle)
            time_table = time_table[..., None, :]  # (T, 1, D) or (B, T, 1, D)
            if self.attention == "joint":
                table, time_table = table + time_table, None
        return (x if table is None else x + table.astype(x.dtype)), time_table

    def _blocks(
        self, x: jax.Array, kv_cache: KVCache | None, *shared: Any
    ) -> tuple[jax.Array, Any]:
        """All blocks; returns x and the new keys and values. `shared`: further arguments of `BlockGroup`."""
        kinds = blocks.KINDS[self.attention]
        offload = self.offload and kv_cache is None and not self.is_initializing()
        block = blocks.Block if offload else remat.wrap(blocks.Block, self.remat)
        make_block = functools.partial(
            block,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            causal=self.causal,
            positions=self.positions,
            modulation=self.modulation,
            qk_norm=self.qk_norm,
            cross_attention=self.cross_attention,
            token_sharding=self.token_sharding,
            kernel=self.kernel,
            pieces=self.pieces,
            dtype=self.dtype,
        )
        if offload:
            return self._offloaded_blocks(x, blocks.find_kinds(kinds, x), make_block, *shared), None
        cached, length = (None, None) if kv_cache is None else (kv_cache[:2], kv_cache.length)
        shared = (*shared, length)
        scan = nn.scan(
            blocks.BlockGroup,
            in_axes=(0, nn.broadcast if cached is None else 0, *(nn.broadcast for _ in shared)),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            unroll=self.unroll,
        )
        index = jnp.arange(self.depth // len(kinds))
        run_blocks = scan(kinds, make_block, self.token_sharding, name="blocks")
        return run_blocks(x, index, cached, *shared)

    def _offloaded_blocks(
        self,
        x: jax.Array,
        kinds: tuple[str, ...],
        make_block: Callable[..., blocks.Block],
        condition: jax.Array,
        text: jax.Array | None,
        text_lengths: jax.Array | None,
        coordinates: jax.Array,
        time_table: jax.Array | None,
    ) -> jax.Array:
        """All blocks, whose inputs wait in pinned host memory for the backward pass."""

        def make_stage(kind: str) -> offloaded_scan.Stage:
            block = make_block(kind, parent=None, name=kind)

            def enter(x: jax.Array, index: jax.Array, constants: Any) -> jax.Array:
                return blocks.enter_block(x, index, constants[2], kind, self.token_sharding)

            def run(params: Any, h: jax.Array, shared: Any, constants: Any) -> jax.Array:
                return block.apply({"params": params}, h, *shared, *constants[:2])

            def leave(y: jax.Array) -> jax.Array:
                return blocks.leave_block(y, kind, self.token_sharding)

            return offloaded_scan.Stage(kind, enter, run, leave)

        return offloaded_scan.scan_offloaded(
            [make_stage(kind) for kind in kinds],
            {kind: self.variables["params"]["blocks"][kind] for kind in kinds},
            x,
            (condition, text),
            (text_lengths, coordinates, time_table),
        )

    def _last_modulation(self, condition: jax.Array) -> linear.Modulation:
        """Shift and scale before the last layer, from a linear layer (adaln_zero) or a table (adaln_single)."""
        if self.modulation == "adaln_zero":
            both = self._dense(2 * self.width, "modulation")(nn.silu(condition))
            shift, scale = jnp.split(both.astype(jnp.float32), 2, axis=-1)
        else:
            table = self.param("scale_shift_table", nn.initializers.zeros, (2, self.width))
            shift, scale = condition + table[0], condition + table[1]
        return linear.Modulation(shift[:, :, None], scale[:, :, None])

    def _check(self) -> None:
        remat.check_remat(self.remat, self.offload)
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(
                    f"Unknown model.{name} {value!r}: choose one of {', '.join(choices)}."
                )
        if self.attention == "factorized" and self.depth % 2:
            raise ValueError(
                f"model.depth is {self.depth}, but spatial and temporal blocks form pairs: make it even."
            )
        if self.time_cycle and not self.causal:
            raise ValueError(
                f"model.time_cycle is {self.time_cycle}, but only a causal model can make videos of any length: set it "
                "to 0, or model.causal to True."
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"model.width of {self.width} is not a multiple of model.num_heads of {self.num_heads}: "
                "change one of them."
            )
        if self.text_encoder == "class" and self.cross_attention != "none":
            raise ValueError(
                f"model.cross_attention is {self.cross_attention!r}, but a class label has no tokens to attend to: "
                "set it to 'none'."
            )
        if self.cross_attention == "none" and not self.pooled_text:
            raise ValueError(
                "model.cross_attention is 'none' and model.pooled_text is False, so the text would be ignored: "
                "change one of them."
            )
        if self.text_pooling != "mean" and not (self.text_encoder == "words" and self.pooled_text):
            raise ValueError(
                f"model.text_pooling is {self.text_pooling!r}, but only the text encoder 'words' with "
                "model.pooled_text pools words: set it to 'mean'."
            )
        if self.text_encoder != "words" and self.text_depth:
            raise ValueError(
                f"model.text_depth is {self.text_depth}, but only the text encoder 'words' has trainable layers: "
                "set it to 0."
            )
