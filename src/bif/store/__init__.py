"""Runs on disk: the only opener of files.

A run's folder holds `run.json` (the manifest), `traces.zarr` (losses at every draw), where asked
for `weights.zarr`, `checkpoints/` (what it takes to go on), and at the end `influence.zarr`,
`diagnostics.zarr`, `summary.json` and `report.html`.
"""

from bif.store.checkpoints import BlockStore, Commit
from bif.store.folder import (
    DIAGNOSTICS,
    INFLUENCE,
    MANIFEST,
    REPORT,
    SUMMARY,
    DamagedRun,
    Folder,
    FolderInUse,
    folder_at,
)
from bif.store.manifests import read_manifest
from bif.store.results import (
    holds_run,
    load_dataset,
    plain,
    refuse_occupied,
    save_dataset,
)
from bif.store.run import (
    OnExisting,
    RunFolder,
    copy_run,
    differences,
    is_complete,
    open_run,
    progress,
    read_run,
    remove_run,
    reopen_run,
)

__all__ = [
    "DIAGNOSTICS",
    "INFLUENCE",
    "MANIFEST",
    "REPORT",
    "SUMMARY",
    "BlockStore",
    "Commit",
    "DamagedRun",
    "Folder",
    "FolderInUse",
    "OnExisting",
    "RunFolder",
    "copy_run",
    "differences",
    "folder_at",
    "holds_run",
    "is_complete",
    "load_dataset",
    "open_run",
    "plain",
    "progress",
    "read_manifest",
    "read_run",
    "refuse_occupied",
    "remove_run",
    "reopen_run",
    "save_dataset",
]
