"""What a run keeps of its time."""

import os
import subprocess
import sys

from crate_mae_hf.training.record import RunRecord, user_cpu_seconds

BURN = "import os\nwhile os.times().user < 0.5: sum(range(10**4))\nprint(flush=True)\ninput()"


def burn(seconds: float) -> None:
    start = os.times().user
    while os.times().user < start + seconds:
        sum(range(10**4))


def test_processes_that_were_started_count_while_they_run_and_once_they_have_ended():
    before = user_cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        running = user_cpu_seconds() - before
        process.communicate(b"\n")
    ended = user_cpu_seconds() - before
    assert 0.5 <= running <= ended < running + 0.3


def test_what_is_none_of_training_is_not_counted():
    record = RunRecord()
    with record.uncounted():
        burn(0.5)
    assert record.elapsed_cpu() < 0.2
    burn(0.5)
    assert 0.4 < record.elapsed_cpu() < 0.7
