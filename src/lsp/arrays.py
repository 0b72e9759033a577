"""Trees of arrays on disk. The only file that imports Orbax.

Orbax writes the arrays (OCDBT over zarr 3); it does not notice a rotten byte and does not sync its last rename, so
`directory.seal` hashes and syncs what it wrote, and nothing is loaded that `directory.read` has not confirmed.
"""

import errno
import glob
import logging
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsp import Exit, LspError
from lsp.manifest import FORMAT, MACHINE, SPARSE, cannot_write
from lsp.model.int8 import Int8
from lsp.model.sparse import is_packed, least_bytes, pack, unpack
from lsp.model.weightonly import WeightOnly, is_quantized

PATIENCE = 4 * 10**9  # seconds: more than from 1970 to 2038
Tree = Any  # nested dicts (str or whole-number keys) of arrays, Int8 and WeightOnly; for a state, any pytree of arrays


def save_params(path: Path, params: Tree) -> int:
    """Writes a parameter tree as it is: int8 stays int8, and an array that is smaller packed is packed. Returns the
    format that a reader must know for that.

    Replaces what is there. Raises LspError (exit 5) when the disk is full.
    """
    stored = _stored(params)
    work = path.with_name(path.name + ".tmp")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        with Store(compress=True, alone=True) as store:
            store.save(work / "arrays", stored)
            store.wait()
        if path.exists():
            shutil.rmtree(path)
        (work / "arrays").rename(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise explained(path, error, nbytes(stored)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return SPARSE if any(map(is_packed, jax.tree.leaves(stored, is_leaf=is_packed))) else FORMAT


def load_params(path: Path) -> Tree:
    """The tree that `save_params` wrote, in NumPy, whatever devices it was saved from. Raises LspError (exit 4)."""
    ocp = orbax()
    try:
        with Store(compress=True, alone=True) as store:
            # The tree's shape comes from the metadata; saying "NumPy" for every leaf keeps devices and shardings out.
            numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), store.tree(path))
            return _loaded(store.restore(path, ocp.args.PyTreeRestore(restore_args=numpy)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        hint = "Run the stage that made it again with --overwrite."
        raise LspError(f"{path} holds no parameters lsp can read: {reason}.", hint=hint, code=Exit.ARTIFACT) from error


def count(params: Tree) -> int:
    """Parameters in a tree, zeros too; the scales of int8 weights are not counted."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params, is_leaf=is_quantized))


def stored_bytes(params: Tree) -> int:
    """Bytes of the arrays that `save_params` writes, before the store compresses them."""
    return nbytes(_stored(params))


def bound_bytes(params: Tree) -> int:
    """Bytes of all values as they are, and of the entropy of where they are among zeros: what packing can come near."""
    return sum(least_bytes(leaf) for leaf in jax.tree.leaves(_dense(params)))


def _dense(params: Tree) -> Tree:
    """In NumPy, `Int8` as what is kept of it."""

    def kept(leaf: Any) -> Any:
        return (np.asarray(leaf.q), np.asarray(leaf.scale)) if isinstance(leaf, Int8) else np.asarray(leaf)

    return jax.tree.map(kept, params, is_leaf=lambda leaf: isinstance(leaf, Int8))


def _stored(node: Tree) -> Any:
    """A parameter tree as nested dicts of NumPy arrays with text keys."""
    if isinstance(node, dict):
        return {str(key): _stored(child) for key, child in node.items()}
    if isinstance(node, Int8):
        # The scale keeps the matrix's rank, [1, N] or [V, 1]: q · scale is the matrix, and the axis need not be told.
        scale = np.expand_dims(np.asarray(node.scale), 1 - node.axis)
        entry = {"q": pack(np.asarray(node.q)), "scale": scale}
        if node.factor is not None:
            entry["factor"] = np.asarray(node.factor)
        if node.limit is not None:
            entry["limit"] = np.asarray(node.limit).reshape(1)
        return entry
    if isinstance(node, WeightOnly):
        return {"weights": pack(np.asarray(node.q)), "scale": np.asarray(node.scale)}
    return pack(np.asarray(node))


def _loaded(node: Any) -> Tree:
    """The inverse of `_stored`."""
    if not isinstance(node, dict) or is_packed(node):
        return unpack(node)
    if {"q", "scale"} <= node.keys():
        if unknown := node.keys() - {"q", "scale", "factor", "limit"}:
            raise ValueError(f"an int8 matrix with {', '.join(sorted(unknown))} beside it")
        return _int8(**node)
    if node.keys() == {"weights", "scale"}:
        return _weight_only(unpack(node["weights"]), node["scale"])
    children = {int(key) if key.isdecimal() else key: _loaded(child) for key, child in node.items()}
    return dict(sorted(children.items(), key=lambda item: (str(type(item[0])), item[0])))  # layer 2 before layer 10


def _int8(q: Any, scale: np.ndarray, factor: np.ndarray | None = None, limit: np.ndarray | None = None) -> Int8:
    """The matrix from its entries. Raises ValueError where they do not fit."""
    q = unpack(q)
    axis = 1 if scale.shape == (1, q.shape[1]) else 0
    if scale.shape[axis] != q.shape[axis] or scale.size != q.shape[axis]:
        raise ValueError(f"int8 values of shape {q.shape} do not fit scales of shape {scale.shape}")
    if factor is not None and factor.shape != (q.shape[1 - axis],):
        raise ValueError(f"int8 values of shape {q.shape} do not fit factors of shape {factor.shape}")
    if limit is not None and (limit.shape != (1,) or not 0 < limit[0] < np.inf):
        raise ValueError(f"the limit of an int8 matrix's inputs is {limit.tolist()}")
    return Int8.stored(q, scale.reshape(-1), axis, factor, None if limit is None else limit.reshape(()))


def _weight_only(q: np.ndarray, scale: np.ndarray) -> WeightOnly:
    """Raises ValueError where they do not fit."""
    kernel = (
        scale.ndim == 2 and scale.shape[1] == WeightOnly(q, scale, 1).shape[1]
    )  # a table has fewer groups than that
    leaf = WeightOnly(q, scale, axis=1 if kernel else 0)
    channels, size = leaf.shape[leaf.axis], leaf.shape[1 - leaf.axis]
    groups = scale.size // channels
    shape = (groups, channels) if kernel else (channels, groups)
    if q.dtype not in (np.int8, np.uint8) or scale.shape != shape or not 0 < groups <= size:
        raise ValueError(f"weights of shape {leaf.shape} in {q.dtype} do not fit scales of shape {scale.shape}")
    return leaf


def orbax() -> Any:
    """Orbax, with its running commentary off: what fails raises, and we say it."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp


class Store:
    """Orbax's checkpointer: a new one for each save, so that a failed one leaves nothing behind in memory. Costs half a
    millisecond. What it does, all processes do together, unless this one is to do it `alone`.

    Orbax looks files up by patterns, and can't pass on names that are not UTF-8: a folder whose path has brackets, say,
    goes by a link while the store is open.
    """

    def __init__(self, compress: bool, alone: bool = False) -> None:
        self._orbax, self._links = _checkpointer(compress, alone), ExitStack()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def save(self, path: Path, tree: Tree) -> None:
        """Begins to write; `wait` ends it."""
        self._orbax.save(self._named(path), args=orbax().args.PyTreeSave(tree))

    def wait(self) -> None:
        """Returns when what was begun is written."""
        self._orbax.wait_until_finished()

    def tree(self, path: Path) -> Any:
        """The structure of what was saved, with what is known of each array in its place."""
        return self._orbax.metadata(self._named(path)).item_metadata.tree

    def restore(self, path: Path, args: Any) -> Any:
        return self._orbax.restore(self._named(path), args=args)

    def close(self) -> None:
        self._orbax.close()
        self._links.close()

    def _named(self, path: Path) -> Path:
        """The path by a name that Orbax reads as it is."""
        path = path.absolute()
        if str(path).isprintable() and not glob.has_magic(str(path)):
            return path
        link = Path(self._links.enter_context(tempfile.TemporaryDirectory(prefix="lsp-")), "folder")
        link.symlink_to(path.parent)
        return link / path.name


def _checkpointer(compress: bool, alone: bool) -> Any:
    ocp = orbax()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions()
    if alone:
        options = ocp.options.MultiprocessingOptions(me, {me}, barrier_sync_key_prefix=f"process {me}")
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True, use_zarr3=True, use_compression=compress, multiprocessing_options=options
    )
    # Orbax gives up waiting for itself by the time of day: a clock set forward in a save would end the run. Where
    # processes wait for each other, though, a lost one must not be waited for. Folders made in the background would be
    # announced to the other processes, and waited for by that clock.
    single = alone or jax.process_count() == 1
    options_async = ocp.options.AsyncOptions(
        timeout_secs=PATIENCE if single else 1200, create_directories_asynchronously=not single
    )
    return ocp.AsyncCheckpointer(handler, async_options=options_async, multiprocessing_options=options)


def nbytes(tree: Tree) -> int:
    """Bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def explained(path: Path, error: BaseException, needed: int) -> BaseException:
    """The error as a sentence with exit 5 where the machine is to blame, else itself."""
    text = str(error).lower()  # TensorStore raises ValueError for all that goes wrong
    if any(words in text for words in ("no space left", "enospc", "disk quota")):
        error = OSError(errno.ENOSPC, "the disk is full")
    return cannot_write(path, error, needed) if isinstance(error, OSError) and error.errno in MACHINE else error
