"""The steps of a run that is still training: each whole, or not there at all."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsp import Exit, LspError, arrays, directory
from lsp.arrays import Tree
from lsp.manifest import machine_errors, sync


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
        needed = arrays.nbytes(leaves)
        store = arrays.Store(compress=False)  # optimizer state hardly shrinks, and the cores are busy training
        try:
            if _first():
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
            _meet(f"step {step}")
            store.save(work / "state", leaves)
        except (OSError, ValueError, RuntimeError) as error:
            store.close()
            if _first():
                shutil.rmtree(work, ignore_errors=True)
            raise arrays.explained(self._path, error, needed) from error
        self._thread = threading.Thread(target=self._commit, args=(store, work, final, manifest, needed))
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

    def _commit(self, store: arrays.Store, work: Path, final: Path, manifest: dict[str, Any], needed: int) -> None:
        """In the background: wait for the bytes, seal, make the step visible, drop old ones."""
        try:
            store.wait()
            store.close()
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
            self._failure = arrays.explained(self._path, error, needed)

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
        arrays.orbax().multihost.sync_global_processes(name)


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
    return _arrays(place, dict.fromkeys(names, arrays.orbax().RestoreArgs(restore_type=np.ndarray)))


def _name(step: int) -> str:
    return f"{step:08d}"


def _restored(place: Path, saved: dict[str, Any], like: Tree) -> Tree:
    """The state of a confirmed step, in the form of `like`."""
    ocp = arrays.orbax()
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
    args = arrays.orbax().args.PyTreeRestore(item=dict.fromkeys(wanted, 0), restore_args=wanted)
    with arrays.Store(compress=False) as store:
        return dict(store.restore(place / "state", args))


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
