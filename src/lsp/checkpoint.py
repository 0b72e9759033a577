"""A trained model on disk, and the steps of one that is still training. The only file that imports Orbax.

Orbax writes the arrays (OCDBT over zarr 3); it does not notice a rotten byte and does not sync its last rename, so
`directory.seal` hashes and syncs what it wrote, and nothing is loaded that `directory.read` has not confirmed.
"""

import errno
import importlib.metadata
import json
import logging
import platform
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lsp import Exit, LspError, directory
from lsp.manifest import MACHINE, bytes_under, cannot_write, machine_errors, sync
from lsp.model.config import HeadKind, ModelConfig
from lsp.model.int8 import Int8
from lsp.model.sparse import is_packed, pack, unpack

if TYPE_CHECKING:
    from lsp.data.tokenizer import Tokenizer

PATIENCE = 4 * 10**9  # seconds: more than from 1970 to 2038
Tree = Any  # nested dicts (str or whole-number keys) of arrays and Int8; for Steps, any pytree of arrays


@dataclass(frozen=True)
class Checkpoint:
    """A finished model: NumPy parameters (and Int8 of NumPy), and everything needed to use them."""

    path: Path
    manifest: dict[str, Any]
    config: ModelConfig
    params: Tree
    tokenizer: "Tokenizer"
    labels: tuple[str, ...]

    def size(self) -> dict[str, int]:
        """Bytes needed to use the model (params/ and tokenizer/) and its parameters."""
        return {"parameters": count(self.params), "bytes": _used(self.path)}

    def expect(self, head: HeadKind) -> "Checkpoint":
        """Itself, if its model has this head. Raises LspError (exit 2)."""
        if self.config.head != head:
            words = {"words": "an encoder with a masked-word head", "classes": "a classifier"}
            hints = {"words": "Give the --out of lsp pretrain.", "classes": "Make one of it first: lsp finetune."}
            raise LspError(f"{self.path} is {words[self.config.head]}, not {words[head]}.", hint=hints[head])
        return self


def open(path: Path, verify: bool = True) -> Checkpoint:
    """The finished model at `path`. Raises LspError (exit 4) if it is none, is damaged, or has another's tokenizer."""
    from lsp.data.tokenizer import Tokenizer

    path = Path(path)
    manifest = directory.read(path, verify)
    if "model" not in manifest:
        raise LspError(
            f"{path} holds no model: `{manifest.get('stage')}` made it.",
            hint="Give the --out of pretrain, finetune or compress; prepared data goes to lsp pretrain --data.",
            code=Exit.ARTIFACT,
        )
    config = ModelConfig.from_dict(manifest["model"])
    tokenizer = Tokenizer.load(path / "tokenizer")
    if tokenizer.hash != manifest.get("tokenizer") or tokenizer.size > config.vocab_size:
        raise LspError(
            f"The tokenizer in {path} ({tokenizer.size} pieces, {tokenizer.hash[:8]}) does not belong to its model "
            f"({config.vocab_size} pieces, {str(manifest.get('tokenizer'))[:8]}).",
            hint="Put back the tokenizer/ it was trained with, or run the stage again with --overwrite.",
            code=Exit.ARTIFACT,
        )
    return Checkpoint(
        path, manifest, config, load_params(path / "params"), tokenizer, tuple(manifest.get("labels", ()))
    )


def finish(
    run: directory.Run,
    *,
    stage: str,
    config: ModelConfig,
    params: Tree,
    tokenizer: "Tokenizer",
    step: int,
    metrics: dict[str, Any],
    result: dict[str, Any],
    labels: Sequence[str] = (),
    task: dict[str, Any] | None = None,
    compression: Sequence[dict[str, Any]] = (),
    parents: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the finished model, seals the run and removes its steps. Returns what `--json` prints.

    That is command, out, status, step and metrics, then `result`, then parameters and bytes.
    Killed anywhere, the run is either still to be continued from its steps, or complete.
    """
    save_params(run.path / "params", params)
    tokenizer.save(run.path / "tokenizer")
    size = {"parameters": count(params), "bytes": _used(run.path)}
    if "after" in result:  # a compress stage compares itself with what it came from
        result = result | {"after": size | result["after"]}
    first = {"command": run.command, "out": str(run.path), "status": "complete", "step": step, "metrics": metrics}
    result = {**first, **result, **size}
    directory.write_atomically(run.path / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    manifest = {
        "stage": stage,
        "model": config.to_dict(),
        "task": task or {},
        "labels": list(labels),
        "tokenizer": tokenizer.hash,
        "step": step,
        "metrics": metrics,
        "compression": list(compression),
        "parents": list(parents),
        "versions": _versions(),
    }
    directory.seal(run.path, manifest)
    shutil.rmtree(run.path / "train", ignore_errors=True)
    return result


def save_params(path: Path, params: Tree) -> None:
    """Writes a parameter tree as it is: int8 stays int8, and an array that is smaller packed is packed.

    Replaces what is there. Raises LspError (exit 5) when the disk is full.
    """
    stored = _stored(params)
    work = path.with_name(path.name + ".tmp")
    checkpointer = _checkpointer(compress=True, alone=True)
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _start(checkpointer, work / "arrays", stored)
        checkpointer.wait_until_finished()
        if path.exists():
            shutil.rmtree(path)
        (work / "arrays").rename(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise _explained(path, error, _bytes(stored)) from error
    finally:
        checkpointer.close()
        shutil.rmtree(work, ignore_errors=True)


def load_params(path: Path) -> Tree:
    """The tree that `save_params` wrote, in NumPy, whatever devices it was saved from. Raises LspError (exit 4)."""
    ocp = _orbax()
    checkpointer = _checkpointer(compress=True, alone=True)
    try:
        # The tree's shape comes from the metadata; saying "NumPy" for every leaf keeps devices and shardings out of it.
        names = checkpointer.metadata(path.absolute()).item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        return _loaded(checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=numpy)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        hint = "Run the stage that made it again with --overwrite."
        raise LspError(f"{path} holds no parameters lsp can read: {reason}.", hint=hint, code=Exit.ARTIFACT) from error
    finally:
        checkpointer.close()


def count(params: Tree) -> int:
    """Parameters in a tree, zeros too; the scales of int8 weights are not counted."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Int8))
    return sum(int(np.prod((leaf.q if isinstance(leaf, Int8) else leaf).shape)) for leaf in leaves)


class Steps:
    """Steps of an unfinished run, `train/00001200/` and so on, each whole or not there at all.

    A step is written under `train/tmp.<step>/`, hashed and sealed, then renamed. Only the disk is believed about which
    steps there are. As a context manager it waits for the save under way, which the run's lock must outlive.
    """

    def __init__(self, path: Path, keep: int, log: Callable[[str], None]) -> None:
        self._path, self._keep, self._log = Path(path), keep, log
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self.wait()
        elif self._thread:
            self._thread.join()  # what went wrong first is what the user should read

    def save(self, step: int, state: Tree) -> None:
        """Starts to save; returns when the arrays may be changed or donated. A step that exists is not written again.

        Raises what went wrong with the save before: LspError (exit 5) for a full disk, older steps intact.
        """
        self.wait()
        work, final = self._path / f"tmp.{step}", self._path / _name(step)
        _meet(f"before step {step}")
        if final.exists():
            return
        leaves = {name: leaf for name, leaf in _named(state).items() if leaf.size}  # Orbax takes no empty arrays
        manifest = {"stage": "step", "step": step, "leaves": {name: _form(leaf) for name, leaf in leaves.items()}}
        needed = _bytes(leaves)
        checkpointer = _checkpointer(compress=False)  # optimizer state hardly shrinks, and the cores are busy training
        try:
            if _first():
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
            _meet(f"step {step}")
            _start(checkpointer, work / "state", leaves)
        except (OSError, ValueError, RuntimeError) as error:
            checkpointer.close()
            if _first():
                shutil.rmtree(work, ignore_errors=True)
            raise _explained(self._path, error, needed) from error
        self._thread = threading.Thread(target=self._commit, args=(checkpointer, work, final, manifest, needed))
        self._thread.start()

    def wait(self) -> None:
        """Returns when the last save is durable; raises LspError if it failed."""
        if self._thread:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def latest(self, like: Tree) -> tuple[int, Tree] | None:
        """The newest whole step and its state, or None. Damaged steps are set aside by name and said aloud.

        `like` has the structure, shapes, dtypes and shardings wanted; the devices may be others than those that saved.
        A NumPy leaf comes back as NumPy. Raises LspError (exit 4), naming the leaf, when the state is another model's.
        """
        self.wait()
        with machine_errors(self._path):
            step = _told(self._newest() if _first() else None)
            if step is None:
                return None
            place = self._path / _name(step)
            return step, _restored(place, directory.read(place, verify=False)["leaves"], like)

    def _newest(self) -> int | None:
        """The newest step whose every byte is confirmed."""
        for leftover in self._path.glob("tmp.*"):
            shutil.rmtree(leftover)
        for step in reversed(self._steps()):
            place = self._path / _name(step)
            try:
                manifest = directory.read(place)
                if manifest.get("stage") != "step" or manifest["step"] != step:
                    raise LspError(f"{place} says it is step {manifest.get('step')}.", code=Exit.ARTIFACT)
                return step
            except LspError as error:
                if error.code != Exit.ARTIFACT:
                    raise
                self._set_aside(place, error)
        return None

    def _commit(self, checkpointer: Any, work: Path, final: Path, manifest: dict[str, Any], needed: int) -> None:
        """In the background: wait for the bytes, seal, make the step visible, drop old ones."""
        try:
            checkpointer.wait_until_finished()
            checkpointer.close()
            if not _first():
                return
            directory.seal(work, manifest)
            work.rename(final)
            sync(self._path)
            older = [step for step in self._steps() if step < manifest["step"]]
            for step in older[: max(0, len(older) - (self._keep - 1))]:
                gone = self._path / f"tmp.{step}.old"  # renamed first, so that half a step never has a step's name
                (self._path / _name(step)).rename(gone)
                shutil.rmtree(gone)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            self._failure = _explained(self._path, error, needed)

    def _steps(self) -> list[int]:
        """Step numbers on disk, ascending: by number, never by file time."""
        names = (place.name for place in self._path.iterdir()) if self._path.is_dir() else ()
        return sorted(int(name) for name in names if name.isdecimal() and name == _name(int(name)))

    def _set_aside(self, place: Path, error: LspError) -> None:
        aside, copies = place.with_name(f"{place.name}.damaged"), 1
        while aside.exists():
            copies += 1
            aside = place.with_name(f"{place.name}.damaged.{copies}")
        place.rename(aside)
        sync(self._path)
        self._log(f"{error.message} It is set aside as {aside.name}; going on from the step before it.")


def _first() -> bool:
    """Whether this is the process that owns the directory."""
    return jax.process_index() == 0


def _meet(name: str) -> None:
    """Waits for the other processes, where there are any."""
    if jax.process_count() > 1:
        _orbax().multihost.sync_global_processes(name)


def _told(number: int | None) -> int | None:
    """The number that the first process has."""
    if jax.process_count() == 1:
        return number
    from jax.experimental.multihost_utils import broadcast_one_to_all

    told = int(broadcast_one_to_all(np.int32(-1 if number is None else number)))
    return None if told < 0 else told


def read_step(place: Path) -> dict[str, np.ndarray]:
    """The arrays of a saved step by their path in the training state. Raises LspError (exit 4)."""
    names = directory.read(place)["leaves"]
    return _arrays(place, dict.fromkeys(names, _orbax().RestoreArgs(restore_type=np.ndarray)))


def _name(step: int) -> str:
    return f"{step:08d}"


def _restored(place: Path, saved: dict[str, Any], like: Tree) -> Tree:
    """The state of a confirmed step, in the form of `like`."""
    ocp = _orbax()
    wanted = _named(like)
    _refuse_other_state(place, saved, wanted)

    def args(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return ocp.RestoreArgs(restore_type=np.ndarray)
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    loaded = _arrays(place, {name: args(leaf) for name, leaf in wanted.items() if leaf.size})
    leaves = [loaded[name] if leaf.size else _empty(leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _arrays(place: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Arrays of a confirmed step by name, each as its Orbax restore arguments say."""
    checkpointer = _checkpointer(compress=False)
    args = _orbax().args.PyTreeRestore(item=dict.fromkeys(wanted, 0), restore_args=wanted)
    try:
        return dict(checkpointer.restore((place / "state").absolute(), args=args))
    finally:
        checkpointer.close()


def _refuse_other_state(place: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    forms = {name: _form(leaf) for name, leaf in wanted.items() if leaf.size}
    for name in dict.fromkeys([*forms, *saved]):
        if forms.get(name) != saved.get(name):
            found, needed = (" ".join(map(str, table.get(name, ["nothing"]))) for table in (saved, forms))
            raise LspError(
                f"{place} is the state of another model or optimizer: {name} is {found}, where {needed} is needed.",
                hint="Add --overwrite to start this run over, or give another --out.",
                code=Exit.ARTIFACT,
            )


def _empty(leaf: Any) -> Any:
    empty = np.zeros(leaf.shape, leaf.dtype)
    return empty if isinstance(leaf, np.ndarray) else jax.device_put(empty, leaf.sharding)


def _named(state: Tree) -> dict[str, Any]:
    """Leaves by path. The containers (optax states, NamedTuples) are the code's business and are not saved."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    arrays = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    return {jax.tree_util.keystr(p): leaf if isinstance(leaf, arrays) else np.asarray(leaf) for p, leaf in leaves}


def _form(leaf: Any) -> list[Any]:
    return [str(leaf.dtype), list(leaf.shape)]


def _stored(node: Tree) -> Any:
    """A parameter tree as nested dicts of NumPy arrays with text keys."""
    if isinstance(node, dict):
        return {str(key): _stored(child) for key, child in node.items()}
    if isinstance(node, Int8):
        # The scale keeps the matrix's rank, [1, N] or [V, 1]: q · scale is the matrix, and the axis need not be told.
        scale = np.expand_dims(np.asarray(node.scale), 1 - node.axis)
        return {"q": pack(np.asarray(node.q)), "scale": scale}
    return pack(np.asarray(node))


def _loaded(node: Any) -> Tree:
    """The inverse of `_stored`."""
    if not isinstance(node, dict) or is_packed(node):
        return unpack(node)
    if node.keys() == {"q", "scale"}:
        q, scale = unpack(node["q"]), node["scale"]
        axis = 1 if scale.shape == (1, q.shape[1]) else 0
        if scale.shape[axis] != q.shape[axis] or scale.size != q.shape[axis]:
            raise ValueError(f"int8 values of shape {q.shape} do not fit scales of shape {scale.shape}")
        return Int8.stored(q, scale.reshape(-1), axis)
    children = {int(key) if key.isdecimal() else key: _loaded(child) for key, child in node.items()}
    return dict(sorted(children.items(), key=lambda item: (str(type(item[0])), item[0])))  # layer 2 before layer 10


def _orbax() -> Any:
    """Orbax, with its running commentary off: what fails raises, and we say it."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp


def _checkpointer(compress: bool, alone: bool = False) -> Any:
    """A new one for each save, so that a failed save leaves nothing behind in memory. Costs half a millisecond.

    What it does, all processes do together, unless this one is to do it `alone`.
    """
    ocp = _orbax()
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


def _start(checkpointer: Any, path: Path, tree: Tree) -> None:
    checkpointer.save(path.absolute(), args=_orbax().args.PyTreeSave(tree))


def _used(path: Path) -> int:
    return bytes_under(path / "params") + bytes_under(path / "tokenizer")


def _bytes(tree: Tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _explained(path: Path, error: BaseException, needed: int) -> BaseException:
    """The error as a sentence with exit 5 where the machine is to blame, else itself."""
    text = str(error).lower()  # TensorStore raises ValueError for all that goes wrong
    if any(words in text for words in ("no space left", "enospc", "disk quota")):
        error = OSError(errno.ENOSPC, "the disk is full")
    return cannot_write(path, error, needed) if isinstance(error, OSError) and error.errno in MACHINE else error


def _versions() -> dict[str, str]:
    packages = ("lsp", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: found[name] for name in packages if name in found}
