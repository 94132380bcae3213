"""Random draws for clips, and the order of records: pure functions of (seed, position over all epochs)."""

from typing import Any

import numpy as np
import tensorflow as tf

# Folded into the seed, so that the draws for different purposes are independent.
SHARDS, WINDOWS, CROP, FLIP, AUGMENT, CAPTION = range(6)


def locate_window(lengths: list[int], order: np.ndarray, record: int) -> tuple[int, int]:
    """Locates the `record`-th record of an epoch.

    Args:
      lengths: number of records of each shard.
      order: permutation of the shards in this epoch.
      record: index from the start of the epoch.
    Returns:
      (index of its shard in `order`, index of the record within the shard).
    """
    ends = np.cumsum(np.asarray(lengths)[order])
    shard = int(np.searchsorted(ends, record, side="right"))
    return shard, int(record - (ends[shard] - lengths[order[shard]]))


def shuffled_records(
    files: list[str], lengths: list[int], seed: int, position: int, window: int
) -> tf.data.Dataset:
    """Returns the endless data set of serialized clips, starting at `position`."""
    total = sum(lengths)
    first_epoch, within = divmod(position, total)
    first_window, skip = divmod(within, window)

    def shuffle(records: tf.data.Dataset, epoch: tf.Tensor, first: int) -> tf.data.Dataset:
        def permute(number: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
            key = tf.random.experimental.stateless_fold_in(make_key(seed, WINDOWS, epoch), number)
            return tf.random.experimental.stateless_shuffle(records, key)

        return records.batch(window).enumerate(first).map(permute).unbatch()

    def shard_order(epoch: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(
            tf.range(len(files)), make_key(seed, SHARDS, epoch)
        )

    order = shard_order(tf.constant(first_epoch, tf.int64)).numpy()
    shard, record = locate_window(lengths, order, first_window * window)
    names = [files[i] for i in order[shard:]]
    current = tf.data.TFRecordDataset(names).skip(record)  # skips less than a shard
    current = shuffle(current, tf.constant(first_epoch, tf.int64), first_window).skip(skip)
    epochs = tf.data.Dataset.range(first_epoch + 1, np.iinfo(np.int64).max)
    following = epochs.flat_map(
        lambda epoch: shuffle(
            tf.data.TFRecordDataset(tf.gather(tf.constant(files), shard_order(epoch))), epoch, 0
        )
    )
    return current.concatenate(following)


def make_key(seed: int, purpose: int, number: tf.Tensor) -> tf.Tensor:
    """Makes the random key of a purpose for a number, such as the position of a clip or an epoch."""
    return tf.random.experimental.stateless_fold_in(
        tf.constant([seed, purpose], tf.int64), tf.cast(number, tf.int64)
    )


def uniform(seed: int, purpose: int, number: tf.Tensor, maxval: Any) -> tf.Tensor:
    """Draws an integer in [0, maxval), () int32."""
    key = make_key(seed, purpose, number)
    return tf.random.stateless_uniform([], key, maxval=maxval, dtype=tf.int32)


def bits(seed: int, purpose: int, number: tf.Tensor) -> tf.Tensor:
    """Draws the 32 random bits that `within` reduces to the value `uniform` would draw."""
    key = make_key(seed, purpose, number)
    return tf.random.stateless_uniform([], key, minval=None, maxval=None, dtype=tf.uint32)


def within(bits: tf.Tensor, maxval: tf.Tensor) -> tf.Tensor:
    """Reduces random bits (B,) to integers in [0, maxval), for bounds (B,) known only after batching."""
    return tf.cast(tf.cast(bits, tf.int64) % tf.cast(maxval, tf.int64), tf.int32)
