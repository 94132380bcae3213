"""A profile of some steps on request, for TensorBoard's profile plug-in and for Perfetto."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging


@contextlib.contextmanager
def open_profile(
    workdir: str | Path, *, first_step: int, steps: int
) -> Iterator[Callable[[int, Any], None]]:
    """Traces whole steps, from before the dispatch of the first until the results of the last are there.

    The first process traces its own devices. A run that begins after `first_step` is not traced; of one that ends among
    the steps, those that it did.

    Args:
      workdir: gets tensorboard/plugins/profile/.
      first_step: of those traced, counted from 1; 0: none.
      steps: how many.
    Yields:
      What is to be called before each step, with its number and what the step before it has made.
    """
    if not first_step or jax.process_index() > 0:
        yield lambda step, made: None
        return
    folder, end = Path(workdir) / "tensorboard", first_step + steps
    trace, mark = contextlib.ExitStack(), contextlib.ExitStack()

    def stop() -> None:
        jax.profiler.stop_trace()
        logging.info("Wrote the profile to %s.", folder / "plugins" / "profile")

    def before_step(step: int, made: Any) -> None:
        if step in (first_step, end):
            jax.block_until_ready(made)
        mark.close()
        if step == first_step:
            jax.profiler.start_trace(folder, create_perfetto_trace=True)
            trace.callback(stop)
        if step == end:
            trace.close()
        if first_step <= step < end:
            mark.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

    with trace, mark:
        yield before_step
