"""Scripts that run other scripts."""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run_script(script: Path, *arguments: Any) -> None:
    """Run a script in a process of its own, and end this one as it ends if it fails or is interrupted."""
    with subprocess.Popen([sys.executable, str(script), *map(str, arguments)]) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the script was interrupted too, and says how to go on
                continue
    if code:
        sys.exit(code)


def run_missing(scripts: Path, steps: Mapping[Path, Sequence[Any]]) -> list[str]:
    """Run the steps whose result is not there, and return the commands of all.

    Args:
        scripts: Folder of the scripts.
        steps: Script and flags of each step by the file it leaves at its end.
    """
    run = []
    for result, (script, *flags) in steps.items():
        run.append(shlex.join(["python", f"{scripts.name}/{script}", *map(str, flags)]))
        if not result.exists():
            print(f"\n{run[-1]}", flush=True)
            run_script(scripts / script, *flags)
    return run
