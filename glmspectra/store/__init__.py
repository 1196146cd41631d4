"""The tidy tables under `param_matrix/` and their manifest.

Written atomically, resumable, merged once a run is done.
"""

from glmspectra.store.export import check_jsonl, export_jsonl
from glmspectra.store.manifest import Request, Source, read_manifest, run_name
from glmspectra.store.measurement import Measurement
from glmspectra.store.run import RunStore
from glmspectra.store.tables import Run, list_runs, read_run
from glmspectra.store.vectors import read_vectors

__all__ = [
    "Measurement",
    "Request",
    "Run",
    "RunStore",
    "Source",
    "check_jsonl",
    "export_jsonl",
    "list_runs",
    "read_manifest",
    "read_run",
    "read_vectors",
    "run_name",
]
