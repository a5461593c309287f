"""Two jobs never write into one folder, and a crash locks nobody out."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from mf2face.training.checkpoints import sole_user


HOLDER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from transformers import TrainingArguments
from mf2face.training.checkpoints import sole_user
with sole_user(TrainingArguments(sys.argv[2], use_cpu=True)):
    print("held", flush=True)
    signal.pause()
"""


def test_a_second_job_is_refused_until_the_first_one_is_gone(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    job = subprocess.Popen([sys.executable, "-c", HOLDER, str(root), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    training = TrainingArguments(str(tmp_path), use_cpu=True)
    try:
        assert job.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"in use by process {job.pid} on .*choose another --output_dir"):
            with sole_user(training):
                pass
    finally:
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    with sole_user(training):
        pass
    with pytest.raises(ZeroDivisionError), sole_user(training):
        raise ZeroDivisionError
    with sole_user(training):
        pass
