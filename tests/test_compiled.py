"""All other tests compile as it is quickest (conftest.py). A few of them again, as users' programs are compiled."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
AGAIN = (
    "tests/model/test_encoder.py::test_an_inverse_root_is_right_and_the_same_however_many_there_are",
    "tests/model/test_int8.py::test_the_extremes_do_not_saturate",
    "tests/model/test_int8.py::test_a_row_does_not_depend_on_its_batch",
    "tests/train/test_step.py::test_a_loss_that_is_not_finite_changes_nothing[modern]",
    "tests/compress/test_company.py",
    "tests/compress/test_histogram.py::test_a_static_model_is_near_and_answers_alone_as_in_company[minmax]",
)


def test_programs_that_are_compiled_as_users_have_them() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *AGAIN]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
