"""Scripts that run other scripts."""

import subprocess
import sys
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
