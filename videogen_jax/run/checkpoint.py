"""Asynchronous checkpoints by Orbax, read only when they fit and are what was written.

A step holds `ema` (the moving averages by name), `frozen` (the parameters that are not trained, where there are any),
`state` (the rest of the train state) and `metadata` (JSON); see `step_files` for its checksums. The newest `keep` steps
and the one of lowest validation loss stay.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging

from videogen_jax.models.parameter_paths import combine, list_paths, split
from videogen_jax.parallel import processes
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run import step_arrays, step_files
from videogen_jax.run.state import TrainState
from videogen_jax.run.step_arrays import StepWriter, reason
from videogen_jax.run.step_files import CheckpointError, DamagedError

DIFFERENCES_SHOWN = 10
FROZEN = "frozen"  # item of the parameters that are not trained

T = TypeVar("T")


# What reading may raise although the files are whole; so may anything once their checksums were compared.
NOT_DAMAGE = (PermissionError, MemoryError)


class Checkpoints:
    """The checkpoints of a run; a context manager."""

    def __init__(self, directory: Path, keep: int, read_only: bool):
        self.directory, self._keep = directory, keep
        self._writer = None if read_only else StepWriter(directory, lambda step: self._prune())

    def all_steps(self) -> list[int]:
        """The numbers of the steps that are there, rising."""
        return step_files.list_steps(self.directory)

    def latest_step(self) -> int | None:
        """The newest of them; None if there is none."""
        return max(self.all_steps(), default=None)

    def save(self, step: int, items: Mapping[str, Any], documents: Mapping[str, Any]) -> None:
        """As `StepWriter.save`."""
        self._writer.save(step, items, documents)

    def check(self) -> None:
        """As `StepWriter.check`."""
        self._writer.check()

    def wait_until_finished(self) -> None:
        """As `StepWriter.wait_until_finished`."""
        self._writer.wait_until_finished()

    def _prune(self) -> None:
        """Removes all steps but the newest and the best."""
        steps = self.all_steps()
        losses = {step: step_files.read_loss(self.directory / str(step)) for step in steps}
        losses = {step: loss for step, loss in losses.items() if loss is not None}
        kept = {*steps[-self._keep :], *sorted(losses, key=losses.__getitem__)[:1]}
        for step in steps:
            if step not in kept:
                step_files.remove(self.directory, step)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.__exit__(*error)


def open_checkpoints(workdir: str | Path, keep: int = 1, read_only: bool = False) -> Checkpoints:
    """Opens `workdir`/checkpoints.

    Args:
      workdir: of the run.
      keep: number of newest steps that are kept, in addition to the best one.
      read_only: never write, delete or clean up anything.
    Returns:
      A context manager, which waits at its end for the write under way.
    """
    return Checkpoints(Path(workdir).resolve() / "checkpoints", keep, read_only)


def check_folder(workdir: Path) -> None:
    """Raises ValueError for a folder whose name Orbax takes for something else."""
    path = str(workdir.resolve())
    wrong = [repr(part) for part in ("\\", "gs:/", "s3:/") if part in path]
    wrong += ["a character that is not UTF-8"] * (path != path.encode(errors="replace").decode())
    if wrong:
        raise ValueError(
            f"--workdir={path!r} has {wrong[0]} in it, under which no checkpoint can be read: name another folder."
        )


def save(
    manager: Checkpoints,
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
    Raises:
      OSError: the step before could not be written.
    """
    documents = {"metadata": metadata}
    if validation_loss is not None:
        documents["metrics"] = {"validation_loss": float(validation_loss)}
    items = {"ema": to_dict(state.ema), "state": to_dict(state.replace(ema=None, frozen=None))}
    if state.frozen is not None:
        items[FROZEN] = state.frozen
    manager.save(int(jax.device_get(state.step)), items, documents)


def restore(manager: Checkpoints, abstract: TrainState) -> TrainState | None:
    """Restores the newest step that is what was written, or None if there is none at all.

    A step that is damaged is passed over for the one before it, with a warning, and moved to
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
    share = (jax.process_index(), jax.process_count())
    parts = {"ema": abstract.ema, "state": abstract.replace(ema=None, frozen=None)}
    if abstract.frozen is not None:
        parts[FROZEN] = abstract.frozen
    for step in reversed(manager.all_steps()):
        path = manager.directory / str(step)
        verified = False
        try:
            with processes.propagate_errors():  # each process reads its own parts
                step_files.read_metadata(path)
                verified = step_files.verify(path, (*parts, step_files.INDEX), share)
            with processes.propagate_errors():
                found = {item: _restore_item(path, item, part) for item, part in parts.items()}
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            if isinstance(error, CheckpointError) and not isinstance(error, DamagedError):
                raise
            if verified or isinstance(error, NOT_DAMAGE):
                raise
            logging.warning(
                "Checkpoint %d is damaged (%s): going back to the one before.", step, reason(error)
            )
            damaged.append(step)
            continue
        with processes.propagate_errors():
            for number in damaged if jax.process_index() == 0 else ():
                step_files.set_aside(manager.directory, number)
        return found["state"].replace(ema=found["ema"], frozen=found.get(FROZEN))
    if damaged:
        raise CheckpointError(
            f"None of the checkpoints in {manager.directory} can be read: mend the disk, or start in another --workdir."
        )
    return None


def read_newest(
    workdir: str | Path, step: int | None, read: Callable[[int, dict[str, Any]], T]
) -> T:
    """Reads from the newest step that is what was written, while a training may write and delete others.

    Args:
      workdir: of the run.
      step: to read from, and from no other; by default the newest.
      read: takes the step and its metadata. It is called again with an older step if it raises DamagedError, or with
        the newest one if the step was deleted meanwhile.
    Returns:
      What `read` returns.
    Raises:
      CheckpointError: there is no such step, or none can be read.
    """
    folder = Path(workdir).resolve() / "checkpoints"
    damaged: list[int] = []
    while True:
        steps = [one for one in step_files.list_steps(folder) if one not in damaged]
        if not steps and damaged:
            raise CheckpointError(
                f"None of the checkpoints in {folder} can be read: mend the disk, or name another --workdir."
            )
        chosen = _find_step(folder, steps, step)
        try:
            return read(chosen, step_files.read_metadata(folder / str(chosen)))
        except (CheckpointError, OSError) as error:
            deleted = not (folder / str(chosen)).exists()
            if not deleted and not isinstance(error, DamagedError):
                raise
            if isinstance(error.__cause__, DamagedError):
                error = error.__cause__  # what is damaged, without the sentence around it
            if step is not None:
                raise _name_others(folder, chosen, error) from error
            cause = reason(error)
        if deleted:
            logging.info("Checkpoint %d was replaced meanwhile: reading the newest.", chosen)
        else:
            damaged.append(chosen)
            logging.warning(
                "Checkpoint %d is damaged (%s): going back to the one before.",
                chosen,
                cause,
            )


def restore_ema(
    manager: Checkpoints, abstract_params: Any, name: str, step: int | None = None
) -> tuple[Any, int]:
    """Restores one moving average alone: no other and no optimizer state is held.

    Args:
      manager: of `open_checkpoints`, read-only.
      abstract_params: `jax.ShapeDtypeStruct`s with shardings, of any mesh.
      name: of the average.
      step: which one; by default the newest.
    Returns:
      (tree, its step).
    Raises:
      DamagedError: the step cannot be read, or is not what was written.
      CheckpointError: there is no such step or average, or it is another model's.
    """
    step = find_step(manager, step)
    try:
        return restore_average(manager.directory / str(step), abstract_params, name), step
    except DamagedError as error:
        raise _name_others(manager.directory, step, error) from error


def restore_average(directory: Path, abstract_params: Any, name: str) -> Any:
    """Reads one moving average out of a step that holds several by name; this process reads by itself.

    Parameters that the run does not train are in no average, and are read from beside them.

    Args:
      directory: of the step, written by `save` or `ema_snapshots.save_snapshot`.
      abstract_params: `jax.ShapeDtypeStruct`s with shardings.
      name: of the average.
    Returns:
      The tree.
    Raises:
      DamagedError: it cannot be read, or is not what was written.
      CheckpointError: there is no such average, or it is another model's.
    """
    verified = False
    try:
        verified = step_files.verify(directory, ("ema", step_files.INDEX))
        frozen = read_frozen(directory, abstract_params)
        trained, _ = split(abstract_params, list_paths(frozen))
        target = {name: to_dict(trained)}
        # Snapshots of earlier versions have no sub-folder.
        item = "ema" if (directory / "ema").exists() else None
        saved = step_arrays.describe_item(directory, item)
        if saved and name not in saved:
            raise CheckpointError(
                f"There is no moving average {name!r} in {directory}: choose one of {', '.join(saved)}."
            )
        _check_same(directory.name, target, {n: saved[n] for n in saved if n == name})
        restored = step_arrays.load_item(directory, item, target, partial=True)
    except (CheckpointError, *NOT_DAMAGE):
        raise
    except Exception as error:  # Orbax raises whatever its storage layers raise.
        if verified:
            raise
        raise DamagedError(reason(error)) from error
    return _like(abstract_params, combine(restored[name], frozen))


def read_frozen(directory: Path, abstract_params: Any) -> Any:
    """Reads the parameters of a step that its run does not train.

    Args:
      directory: of the step.
      abstract_params: `jax.ShapeDtypeStruct`s with shardings, of all parameters.
    Returns:
      Tree of these parameters; None if all are trained.
    Raises:
      DamagedError: they are not what was written.
      CheckpointError: they are another model's.
    """
    if not (directory / FROZEN).exists():
        return None
    step_files.verify(directory, (FROZEN, step_files.INDEX))
    saved = step_arrays.describe_item(directory, FROZEN)
    _, target = split(abstract_params, list_paths(saved))
    _check_same(directory.name, target or {}, saved)
    return step_arrays.load_item(directory, FROZEN, target)


def restore_metadata(manager: Checkpoints, step: int) -> dict[str, Any]:
    """Reads the JSON metadata of a step.

    Raises:
      DamagedError: it is not what was written.
    """
    try:
        return step_files.read_metadata(manager.directory / str(step))
    except DamagedError as error:
        raise _name_others(manager.directory, step, error) from error


def find_step(manager: Checkpoints, step: int | None) -> int:
    """The requested step, or the newest.

    Raises:
      CheckpointError: it is not there.
    """
    return _find_step(manager.directory, manager.all_steps(), step)


def _find_step(folder: Path, steps: list[int], step: int | None) -> int:
    if not steps:
        raise CheckpointError(step_files.explain_none(folder))
    if step is not None and step not in steps:
        raise CheckpointError(
            f"There is no checkpoint of step {step} in {folder}: choose one of {', '.join(map(str, steps))}."
        )
    return steps[-1] if step is None else step


def _name_others(folder: Path, step: int, error: Exception) -> DamagedError:
    others = [str(one) for one in step_files.list_steps(folder) if one != step]
    if not (folder / str(step)).exists():
        what = "was deleted while it was read"
    else:
        what = f"is damaged ({reason(error)})"
    return DamagedError(
        f"Checkpoint {step} in {folder} {what}: choose another with --step "
        f"(there are: {', '.join(others) or 'none'})."
    )


def _restore_item(directory: Path, item: str, abstract: Any) -> Any:
    """Restores one item into the structure, types and shardings of `abstract`."""
    target = to_dict(abstract)
    _check_same(directory.name, target, step_arrays.describe_item(directory, item))
    restored = step_arrays.load_item(directory, item, target)
    return _like(abstract, restored)


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
