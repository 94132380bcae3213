"""Notes what is done with JAX's random keys, to find keys that are used twice."""

import collections
import contextlib

import jax

DRAWS = ("uniform", "normal", "randint", "choice", "permutation", "bernoulli")
DERIVATIONS = ("split", "fold_in")


@contextlib.contextmanager
def watch_keys(monkeypatch):
    """Yields a function that returns the keys drawn from more than once, or drawn from and derived from.

    Python's own calls of `jax.random` are watched, outside of jit: a key drawn from in a traced function is an error.
    """
    uses = collections.defaultdict(
        list
    )  # data of a key -> names of the functions that it was given to

    def watch(name, function):
        def watched(key, *args, **options):
            uses[tuple(jax.random.key_data(key).ravel().tolist())].append(name)
            return function(key, *args, **options)

        return watched

    def reused():
        return [
            names
            for names in uses.values()
            if len(names) > 1 and set(names) & set(DRAWS) or names.count("split") > 1
        ]

    with monkeypatch.context() as patch:
        for name in DRAWS + DERIVATIONS:
            patch.setattr(jax.random, name, watch(name, getattr(jax.random, name)))
        yield reused
