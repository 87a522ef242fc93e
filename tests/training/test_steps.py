import signal
import subprocess
import sys

import pytest

from crate_mae_hf.training.steps import run_script

SLOW_TO_STOP = """
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # longer than subprocess.run lets it live
    print("goes on from there", flush=True)
    sys.exit(130)
"""


def test_a_failure_ends_the_script(tmp_path):
    (tmp_path / "script.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    run_script(tmp_path / "script.py", 0)
    with pytest.raises(SystemExit) as stopped:
        run_script(tmp_path / "script.py", 3)
    assert stopped.value.code == 3


def test_an_interrupted_script_has_its_say(tmp_path):
    script, begun = tmp_path / "script.py", tmp_path / "begun"
    script.write_text(SLOW_TO_STOP)
    code = f"from crate_mae_hf.training.steps import run_script; run_script({str(script)!r}, {str(begun)!r})"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not begun.exists():
            assert process.poll() is None
        subprocess.run(["kill", f"-{signal.SIGINT.value}", "--", f"-{process.pid}"], check=True)  # as Ctrl-C does
        assert process.stdout.read() == "goes on from there\n"
    assert process.returncode == 130
