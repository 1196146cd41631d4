"""RunStore: the write side of one run's folder, `param_matrix/<run>/`.

    manifest.json                       what was asked and measured, of which checkpoint, with what, how far it is
    parts/<matrix>.<kind>-<stamp>.npz   one file a matrix and kind, the only thing written while measuring
    matrices.parquet, singular_values.parquet, histograms.parquet     merged from the parts at the end

The part files are the truth and the tables follow from them. A part is reused only where its stamp is the
request's: the stamp hashes the checkpoint's fingerprint, every option that changes a number, and the versions
of schema and package. So a run may be killed at any moment, continued on another device or by more processes,
and asked for more; and a part measured another way is never mixed in, though it stays on disk for the day
that way is asked for again.
"""

import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from glmspectra import __version__
from glmspectra.errors import StoreError
from glmspectra.files import explain, locked, make_folder, remove_leftovers
from glmspectra.json_files import write_json
from glmspectra.store.manifest import MANIFEST, PARTS, VECTORS, Request, Source, read_manifest, run_name
from glmspectra.store.measurement import Measurement, part_file_name, read_part, write_part
from glmspectra.store.schema import SCHEMA_VERSION
from glmspectra.store.tables import collect, write_tables
from glmspectra.store.vectors import Vectors, count_vectors, vectors_path, write_vectors


class RunStore:
    """The folder of one run.

    Any number of processes may `read` and `write` at once; `begin` and `merge` hold the folder's lock and are
    one process' affair. A folder that holds a run of another fingerprint is refused by `begin` with a
    StoreError.
    """

    def __init__(self, folder: Path, source: Source):
        self.folder = Path(folder)
        self.source = source

    @classmethod
    def of(cls, root: Path, source: Source) -> "RunStore":
        """The store of `source` under `root` (`param_matrix`), named by the checkpoint and its fingerprint."""
        return cls(Path(root) / run_name(source.name, source.fingerprint), source)

    def part_path(self, request: Request, name: str) -> Path:
        stamp = request.stamp(self.source.fingerprint)
        return self.folder / PARTS / part_file_name(name, request.quantity, request.step, request.kind, stamp)

    def begin(
        self,
        requests: Iterable[Request],
        device: Callable[[], str] = lambda: "cpu",
        processes: int = 1,
        fresh: bool = False,
    ) -> dict[str, list[str]]:
        """Note in the manifest what is asked, before anything is measured; requests of other keys stay.

        Returns request key -> the names that have no valid part file yet, in the request's order. fresh:
        forget the parts of these requests first. device (asked when it is needed) and processes are only noted, where
        something is to be measured.
        """
        make_folder(self.folder / PARTS)
        unfinished = {}
        with locked(self.folder):
            for folder in (self.folder, self.folder / PARTS, self.folder / VECTORS):
                remove_leftovers(folder)
            manifest = self._manifest_to_continue()
            for request in requests:
                if fresh:
                    self._discard(request)
                missing = [name for name in request.names if self.read(request, name) is None]
                asked = request.to_manifest(self.source.fingerprint)
                before = manifest["requests"].get(request.key, {})
                if missing or any(before.get(key) != value for key, value in asked.items()):
                    done = [name for name in request.names if name not in set(missing)]
                    state = {"done": done, "left_out": _left_out(before, asked), "complete": False}
                    manifest["requests"][request.key] = {**asked, **state, "started": _now()}
                    manifest["complete"] = False
                noted = manifest["requests"][request.key]
                if missing or "device" not in before:
                    noted |= {"device": device(), "processes": processes}
                else:
                    noted |= {"device": before["device"], "processes": before["processes"]}
                unfinished[request.key] = missing
            manifest["versions"] = _versions()
            self._write_manifest(manifest)
        return unfinished

    def vectors_path(self, request: Request, name: str) -> Path:
        stamp = request.stamp(self.source.fingerprint)
        return vectors_path(self.folder, name, request.quantity, request.step, stamp)

    def read(self, request: Request, name: str) -> Measurement | None:
        """The finished measurement of one matrix, or None where it is still to be measured."""
        if request.vectors and count_vectors(self.vectors_path(request, name)) < request.vectors:
            return None
        return read_part(self.part_path(request, name), request.stamp(self.source.fingerprint))

    def write(self, request: Request, measurement: Measurement, vectors: Vectors | None = None) -> None:
        """Keep one finished measurement, and its vectors (part -> left, right) where the request asks for them.

        Raises StoreError where it cannot be written, with nothing half-written left.
        """
        key = Request(measurement.kind, (), {}, measurement.quantity, measurement.step).key
        if key != request.key:
            raise StoreError(f"{measurement.name}: a measurement of {key} was offered for {request.key}.")
        if request.vectors:  # before the part: a part that is there is finished
            write_vectors(self.vectors_path(request, measurement.name), vectors or {}, request.vectors)
        stamp = request.stamp(self.source.fingerprint)
        write_part(self.part_path(request, measurement.name), measurement, stamp)

    def merge(self, seconds: float | None = None) -> dict[str, Any]:
        """Write the three tables from the part files of every request in the manifest; return the manifest.

        Nothing is written where the tables already say it. A request whose parts are not all there stays
        incomplete and gives the rows it has. seconds: the wall time of this command, noted in the manifest.
        """
        with locked(self.folder):
            manifest = self.manifest()
            if manifest["complete"] and self._tables_are_whole(manifest):
                return manifest
            collected = collect(self.folder, manifest)
            manifest["tables"] = write_tables(self.folder, collected)
            for key, done in collected.done.items():
                request = manifest["requests"][key]
                request["done"] = done
                whole = len(done) == len(request["names"])
                if whole and not request["complete"]:
                    request["finished"] = _now()
                request["complete"] = whole
            manifest["complete"] = all(request["complete"] for request in manifest["requests"].values())
            manifest["nonfinite"] = collected.nonfinite
            if seconds is not None:
                manifest["seconds"] = round(seconds, 3)
            self._write_manifest(manifest)
            return manifest

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands on disk. Raises StoreError where there is none or it is not one."""
        return read_manifest(self.folder)

    def _discard(self, request: Request) -> None:
        for name in request.names:
            _remove(self.part_path(request, name))
            _remove(self.vectors_path(request, name))

    def _files_were_rewritten(self, before: Mapping[str, Any]) -> bool:
        """Whether a file at the same path has another time of change than when the run began.

        A fingerprint that samples a large file does not see a few changed bytes; whoever made the fingerprint
        gives such files a `modified`, and where that has changed nothing finished is trusted.
        """
        if before["path"] != self.source.path:
            return False  # a copy elsewhere: times say nothing, the fingerprint is the same
        times = {file["name"]: file.get("modified") for file in before["files"]}
        return any(times.get(file["name"]) != file.get("modified") for file in self.source.files)

    def _tables_are_whole(self, manifest: Mapping[str, Any]) -> bool:
        tables = manifest.get("tables", {})
        paths = [(self.folder / table["file"], table["bytes"]) for table in tables.values()]
        return bool(paths) and all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def _manifest_to_continue(self) -> dict[str, Any]:
        """The manifest on disk, without what no longer counts; an empty one where there is none."""
        source = self.source.to_manifest()
        empty = {
            "schema": SCHEMA_VERSION,
            "run": self.folder.name,
            "checkpoint": source,
            "requests": {},
            "complete": False,
        }
        if not (self.folder / MANIFEST).exists():
            return empty
        found = self.manifest()
        if found["checkpoint"]["fingerprint"] != self.source.fingerprint:
            raise StoreError(
                f"{self.folder} holds a run of another checkpoint (fingerprint {found['checkpoint']['fingerprint']}, "
                f"not {self.source.fingerprint}); choose another folder with --out."
            )
        if found["schema"] != SCHEMA_VERSION:
            return empty
        if self._files_were_rewritten(found["checkpoint"]):
            for folder, files in ((PARTS, "*.npz"), (VECTORS, "*.safetensors")):
                for path in (self.folder / folder).glob(files):
                    _remove(path)
            return empty
        # The parts of another package version no longer count, so neither does what they were asked for.
        requests = {
            key: asked
            for key, asked in found["requests"].items()
            if asked["stamp"] == Request.from_manifest(asked).stamp(self.source.fingerprint)
        }
        complete = found["complete"] and requests == found["requests"]
        return {**found, "checkpoint": source, "requests": requests, "complete": complete}

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        try:
            if self.manifest() == manifest:  # its time says when something changed, by which pages are known to be old
                return
        except StoreError:
            pass  # there is none yet, or none that can be read
        write_json(self.folder / MANIFEST, manifest)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, path, "be removed") from error


def _left_out(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What an earlier request of this stamp asked for and this one does not: on disk, but not in the tables."""
    if before.get("stamp") != asked["stamp"]:
        return []
    wanted = set(asked["names"])
    return [name for name in [*before["names"], *before["left_out"]] if name not in wanted]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "pyarrow")}
    return {
        "glmspectra": __version__,
        "python": platform.python_version(),
        "platform": sys.platform,
        **packages,
    }
