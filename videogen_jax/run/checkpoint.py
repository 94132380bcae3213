"""Checkpoints by Orbax: written behind the training's back, read back only when they fit.

A step holds three items: `ema` (the moving averages by name: one is all that sampling needs), `state` (the rest of the
train state), `metadata` (JSON). The newest `keep` steps and the one of lowest validation loss stay.
"""

import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from videogen_jax.parallel import processes
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run.state import TrainState

DIFFERENCES_SHOWN = 10


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or another model's."""


def open_checkpoints(
    workdir: str | Path, keep: int = 1, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens `workdir`/checkpoints.

    Args:
      workdir: of the run.
      keep: number of newest steps that are kept, in addition to the best one.
      read_only: never write, delete or clean up anything.
    Returns:
      The manager; close it (it waits for the write under way).
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(
                get_metric_fn=_validation_loss,
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else policy,
        best_fn=_validation_loss,  # without it Orbax does not write the metrics down
        best_mode="min",
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
    )
    folder = Path(workdir).resolve() / "checkpoints"
    for path in folder.glob("*.orbax-checkpoint-tmp*"):
        step = path.name.split(".")[0]
        logging.warning("Checkpoint %s was never finished: going back to the one before.", step)
    return ocp.CheckpointManager(
        folder,
        options=options,
        item_names=("ema", "state", "metadata"),
        item_handlers={
            "ema": ocp.StandardCheckpointHandler(),
            "state": ocp.StandardCheckpointHandler(),
            "metadata": ocp.JsonCheckpointHandler(),
        },
    )


def _validation_loss(metrics: dict[str, float]) -> float:
    return metrics["validation_loss"]


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    metadata: dict[str, Any],
    validation_loss: float | None = None,
) -> None:
    """Starts writing a step; returns once the arrays are copied off the devices.

    Args:
      manager: of `open_checkpoints`.
      state: to be saved under its own step number.
      metadata: JSON-able, for `restore_metadata`.
      validation_loss: by which the best step is chosen; None if it was not measured.
    """
    step = int(jax.device_get(state.step))
    items = ocp.args.Composite(
        ema=ocp.args.StandardSave(to_dict(state.ema)),
        state=ocp.args.StandardSave(to_dict(state.replace(ema=None))),
        metadata=ocp.args.JsonSave(metadata),
    )
    metrics = None if validation_loss is None else {"validation_loss": float(validation_loss)}
    manager.save(step, args=items, metrics=metrics, force=True)


def restore(manager: ocp.CheckpointManager, abstract: TrainState) -> TrainState | None:
    """Restores the newest step that can be read, or None if there is none at all.

    A step that cannot be read is passed over for the one before it, with a warning, and moved to
    checkpoints_damaged/ once an older one has been read. If none can be read, all stay where they are.

    Args:
      manager: of `open_checkpoints`.
      abstract: `jax.ShapeDtypeStruct`s with shardings.
    Returns:
      The state.
    Raises:
      CheckpointError: the steps are another model's, or all are damaged.
    """
    damaged: list[int] = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            with processes.propagate_errors():  # each process reads its own parts
                ema = _restore_item(manager, step, "ema", abstract.ema)
                state = _restore_item(manager, step, "state", abstract.replace(ema=None))
        except CheckpointError:
            raise
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            logging.warning(
                "Checkpoint %d is damaged (%s): going back to the one before.", step, reason
            )
            damaged.append(step)
            continue
        _set_aside(manager, damaged)
        return state.replace(ema=ema)
    if damaged:
        raise CheckpointError(
            f"None of the checkpoints in {manager.directory} can be read: mend the disk, or start in another --workdir."
        )
    return None


def restore_ema(
    manager: ocp.CheckpointManager, abstract_params: Any, name: str, step: int | None = None
) -> tuple[Any, int]:
    """Restores one moving average alone: no other and no optimizer state is read or held.

    Args:
      manager: of `open_checkpoints`, read-only.
      abstract_params: `jax.ShapeDtypeStruct`s with shardings, of any mesh.
      name: of the average.
      step: which one; by default the newest.
    Returns:
      (tree, its step).
    Raises:
      CheckpointError: there is no such step or average, it cannot be read, or it is another model's.
    """
    step = find_step(manager, step)
    directory = manager.directory / str(step) / "ema"
    try:
        return restore_average(directory, abstract_params, name), step
    except CheckpointError:
        raise
    except Exception as error:
        others = ", ".join(str(s) for s in manager.all_steps() if s != step) or "none"
        raise CheckpointError(
            f"Checkpoint {step} in {manager.directory} is damaged ({str(error).splitlines()[0][:200]}): "
            f"choose another with --step (there are: {others})."
        ) from error


def restore_average(directory: Path, abstract_params: Any, name: str, alone: bool = False) -> Any:
    """Reads one moving average out of a folder that holds several by name.

    Args:
      directory: written by `save` or `ema_snapshots.save_snapshot`.
      abstract_params: `jax.ShapeDtypeStruct`s with shardings.
      name: of the average.
      alone: by this process for itself, not waiting for others.
    Returns:
      The tree.
    Raises:
      CheckpointError: there is no such average, or it is another model's.
    """
    target = {name: to_dict(abstract_params)}
    options = _by_itself() if alone else ocp.options.MultiprocessingOptions()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
        saved = checkpointer.metadata(directory).item_metadata
        names = list(saved.tree)
        if names and name not in names:
            raise CheckpointError(
                f"There is no moving average {name!r} in {directory}: choose one of {', '.join(names)}."
            )
        _check_same(directory.parent.name, target, {n: saved.tree[n] for n in names if n == name})
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        restored = checkpointer.restore(directory, args=arguments)
    return _like(abstract_params, restored[name])


def restore_metadata(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Reads the JSON metadata of a step."""
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    return manager.restore(step, args=args)["metadata"]


def find_step(manager: ocp.CheckpointManager, step: int | None) -> int:
    """The requested step, or the newest.

    Raises:
      CheckpointError: it is not there.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise CheckpointError(
            f"There is no checkpoint in {manager.directory}: train first, or name another --workdir."
        )
    if step is None:
        return steps[-1]
    if step not in steps:
        raise CheckpointError(
            f"There is no checkpoint of step {step} in {manager.directory}: "
            f"choose one of {', '.join(map(str, steps))}."
        )
    return step


def _restore_item(manager: ocp.CheckpointManager, step: int, name: str, abstract: Any) -> Any:
    """Restores one item into the structure, types and shardings of `abstract`."""
    directory = manager.directory / str(step) / name
    target = to_dict(abstract)
    # An error of one is for all of them to hear of.
    with ocp.StandardCheckpointer(multiprocessing_options=_by_itself()) as checkpointer:
        _check_same(step, target, checkpointer.metadata(directory).item_metadata)
        restored = checkpointer.restore(directory, target)
    return _like(abstract, restored)


def _by_itself() -> ocp.options.MultiprocessingOptions:
    """That a process does not wait for the others."""
    return ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )


def _like(abstract: Any, restored: dict) -> Any:
    """The restored leaves in the structure of `abstract`."""
    paths, structure = jax.tree_util.tree_flatten_with_path(abstract)
    leaves = dict(_named_leaves(restored))
    return jax.tree.unflatten(structure, [leaves[path_name(path)] for path, _ in paths])


def _check_same(step: int | str, target: dict, saved: dict) -> None:
    """Raises CheckpointError with what differs; Orbax by itself would cast types silently.

    Raises OSError if the step is damaged.
    """
    wanted, found = dict(_named_leaves(target)), dict(_named_leaves(saved))
    if not found:  # what Orbax says of a step whose description it cannot read
        raise OSError("the description of its arrays cannot be read")
    differences = []
    for name in sorted(wanted.keys() & found.keys()):
        ours, theirs = wanted[name], found[name]
        if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            continue  # stored as the words inside the key
        if tuple(ours.shape) != tuple(theirs.shape):
            differences.append(f"{name} has shape {tuple(theirs.shape)} instead of {ours.shape}")
        elif ours.dtype != theirs.dtype:
            differences.append(f"{name} has type {theirs.dtype} instead of {ours.dtype}")
    differences += [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    differences += [f"{name} is unexpected" for name in sorted(found.keys() - wanted.keys())]
    if differences:
        shown = differences[:DIFFERENCES_SHOWN]
        more = len(differences) - len(shown)
        raise CheckpointError(
            f"The checkpoint of step {step} is another model's: {'; '.join(shown)}"
            f"{f' and {more} more' if more else ''}. Use its config, or another --workdir."
        )


def to_dict(tree: Any) -> dict[str, Any]:
    """Any tree as nested dicts by path: optimizer states lose their tuples, and their empty ones altogether."""
    result: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parents, last = path_name(path).split("/")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return result


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _set_aside(manager: ocp.CheckpointManager, steps: list[int]) -> None:
    """Frees the numbers of damaged steps; what is there is kept."""
    if not steps:
        return
    with processes.propagate_errors():
        for step in steps if jax.process_index() == 0 else ():
            source = Path(manager.directory) / str(step)
            place = source.parent.parent / "checkpoints_damaged" / f"{step}_{time.time_ns()}"
            place.parent.mkdir(exist_ok=True)
            source.rename(place)
            logging.warning("Moved the damaged checkpoint %d to %s.", step, place)
    manager.reload()
