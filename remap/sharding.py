"""Many devices and many processes, in one file: the mesh, what lies on it, and which process writes.

There is one mesh of one axis, "batch", over all devices of all processes. The spectra of a batch are divided along
it, everything else (parameters, sources of batches) is the same on every device. Programs stay those of one device:
the compiler divides them, so that sums over a batch (batch statistics, the triplet loss) are over the whole of it.
The one thing that it cannot divide by itself, a loop over spectra, is divided by `by_rows`. With one device nothing
here does anything.

Processes all run the same script on the same arguments and compute the same things; the first one alone writes, and
the others wait for it where they go on with what it read or wrote (`from_first`).

Nothing is set on import: `start` is for scripts, before the first computation.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from remap.config import ConfigError

logger = logging.getLogger(__name__)

AXIS = "batch"

_step_guard = contextvars.ContextVar("step_guard", default="allow")


def start(
    *,
    devices: int = 0,
    distributed: bool = False,
    coordinator: str = "",
    process_count: int = 0,
    process_index: int = -1,
) -> None:
    """Makes devices and processes known to JAX, before its first computation.

    Args:
      devices: that a CPU is taken for; 0 leaves it as it is, one device. GPUs are not counted.
      distributed: several processes, as the cluster's environment (Slurm, Open MPI, Kubernetes) says.
      coordinator: HOST:PORT of the first process, with the next two where no environment says it.
      process_count, process_index: how many processes there are, and which of them this is, from 0.

    Raises:
      ConfigError: numbers that do not go together, no environment to ask, or devices that JAX has counted already.
    """
    if devices < 0:
        raise ConfigError(f"devices: expected 0 or more, found {devices}")
    if devices:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError as error:
            raise ConfigError(f"devices: must be said before JAX's first computation ({error})") from error
    given = (bool(coordinator), process_count != 0, process_index != -1)
    if not distributed and not any(given):
        return
    distributed = not any(given)
    if not distributed and (not all(given) or process_count < 1 or not 0 <= process_index < process_count):
        raise ConfigError(
            "expected coordinator HOST:PORT, process_count of 1 or more and process_index from 0 below it, found "
            f"{coordinator!r}, {process_count}, {process_index}"
        )
    try:
        if distributed:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, process_count, process_index)
    except ValueError as error:
        raise ConfigError(f"distributed: no cluster's environment was found ({error})") from error
    except RuntimeError as error:
        raise ConfigError(f"distributed: the processes did not find one another ({error})") from error
    # Here, where all are about as far: the connections between CPUs are made by the first exchange, within 30 s.
    multihost_utils.sync_global_devices("start")
    logger.info("process %d of %d, %d devices", jax.process_index(), jax.process_count(), jax.device_count())


def batch_mesh() -> Mesh:
    """The mesh of all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def whole_batches(size: int) -> int:
    """The least number of spectra from `size` up that all devices have an equal part of."""
    return size + -size % jax.device_count()


def replicate(tree: Any) -> Any:
    """A tree of arrays on every device. All processes must have the same values."""
    return jax.device_put(tree) if jax.device_count() == 1 else _put(tree, lambda _: PartitionSpec())


def divide(batch: Any) -> Any:
    """A batch with its spectra divided among the devices. All processes must have the whole batch.

    Raises:
      ConfigError: the devices cannot have equal parts of it; names both numbers.
    """
    if jax.device_count() == 1:
        return jax.tree.map(jnp.asarray, batch)
    leaves, axes = _leaves(batch)
    _check(leaves, axes)
    found = [_put(leaf, lambda _, axis=axis: _along(axis)) for leaf, axis in zip(leaves, axes, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(batch), found)


def divided(batch: Any) -> Any:
    """Within a jitted function: the batch as `divide` leaves it, so that what makes it is divided, too.

    Raises:
      ConfigError: the devices cannot have equal parts of it; names both numbers.
    """
    if jax.device_count() == 1:
        return batch
    mesh = batch_mesh()
    leaves, axes = _leaves(batch)
    _check(leaves, axes)
    found = [
        jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, _along(axis)))
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(batch), found)


def replicated(tree: Any) -> Any:
    """Within a jitted function: the tree as `replicate` leaves it."""
    if jax.device_count() == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(batch_mesh(), PartitionSpec()))


def by_rows(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function of spectra, each by itself, as one of which every device does its part; for use in jitted functions.

    The compiler divides what is written for all spectra at once, but a loop over them it would give to every device
    whole.

    Args:
      run: arrays [S, ...] -> a tree of arrays [S, ...], row by row.

    Returns:
      The same function, of any number of rows: those that are missing for equal parts are repeated and cut off.
    """
    if jax.device_count() == 1:
        return run

    def run_parts(*rows: jax.Array) -> Any:
        count = rows[0].shape[0]
        index = np.arange(whole_batches(count)) % count
        if len(index) > count:
            rows = tuple(row[index] for row in rows)
        parts = jax.shard_map(
            run,
            mesh=batch_mesh(),
            in_specs=PartitionSpec(AXIS),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
        return jax.tree.map(lambda x: x[:count], parts(*rows))

    return run_parts


def local(tree: Any) -> Any:
    """Replicated arrays as arrays of the default device alone; others stay as they are."""
    return tree if jax.device_count() == 1 else jax.tree.map(lambda x: jnp.asarray(to_host(x)), tree)


def to_host(array: Any) -> np.ndarray:
    """An array of any devices, whole, as NumPy's. All processes must ask for it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


@contextlib.contextmanager
def guard_transfers(level: str) -> Iterator[None]:
    """Within it, what JAX does about transfers in a step of training that nobody asked for.

    What comes before the first step moves library and survey to the devices, and is not watched.

    Args:
      level: "allow", "log" or "disallow".
    """
    token = _step_guard.set(level)
    try:
        yield
    finally:
        _step_guard.reset(token)


def guarded() -> contextlib.AbstractContextManager[None]:
    """The guard of a step; see `guard_transfers`."""
    return jax.transfer_guard(_step_guard.get())


def writes() -> bool:
    """True in the process that writes files: the first."""
    return not several() or jax.process_index() == 0


def several() -> bool:
    """True if there is more than one process. Does not wake up JAX's devices where there is one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, which alone calls it, in all of them; errors are raised in all.

    Args:
      make: gives what can be pickled; its arrays come back as NumPy's where there are several processes.
    """
    if not several():
        return make()
    told = b""
    if writes():
        try:
            found = (True, jax.tree.map(_plain, make()))
        except Exception as error:
            found = (False, error)
        told = pickle.dumps(found)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(told), np.int32)))
    text = np.zeros(size, np.uint8)
    if told:
        text[:] = np.frombuffer(told, np.uint8)
    # The bytes come from another process of the same run, over the connection that its arrays take.
    good, value = pickle.loads(multihost_utils.broadcast_one_to_all(text).astype(np.uint8).tobytes())
    if not good:
        raise value
    return value


def _plain(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


def _put(tree: Any, spec: Callable[[Any], PartitionSpec]) -> Any:
    mesh = batch_mesh()

    def put(leaf: Any) -> jax.Array:
        sharding = NamedSharding(mesh, spec(leaf))
        if not several() or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree)


def _check(leaves: list[Any], axes: list[int]) -> None:
    devices = jax.device_count()
    for leaf, axis in zip(leaves, axes, strict=True):
        if leaf.shape[axis] % devices:
            raise ConfigError(
                f"a batch of {leaf.shape[axis]} spectra cannot be divided among {devices} devices: choose a batch "
                "size that is a multiple of their number, or fewer devices (--devices)"
            )


def _along(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS)


def _leaves(batch: Any) -> tuple[list[Any], list[int]]:
    """The arrays of a batch, and along which axis of each its spectra lie.

    It is the first, except where a NamedTuple has a `spectra_axes` that says so of its fields.
    """
    leaves, axes = [], []
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        known = getattr(batch, "spectra_axes", {})
        for name, value in zip(batch._fields, batch, strict=True):
            found, at = _leaves(value)
            leaves += found
            axes += [known.get(name, axis) for axis in at]
        return leaves, axes
    leaves = jax.tree.leaves(batch)
    return leaves, [0] * len(leaves)
