"""What a fresh clone holds: the files that git knows, and nothing that was built or forgotten beside them."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy(to: Path, *under: str) -> Path:
    """The tree, or a part of it, as it stands here, copied to the folder `to`."""
    listing = ["git", "ls-files", "-z", *under]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # removed, and not yet told to git
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to
