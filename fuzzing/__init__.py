"""Fuzzing of all that reads what others have written: files, messages, registers, keys.

    python -m fuzzing                          what there is
    python -m fuzzing experiment --seconds 600

The rule: whatever bytes a reader is given, there is a result, or the one error of its module, in one sentence. There
is no other exception, no hang, no memory that grows far beyond the input, and nothing is run of what was read.

Inputs are found by coverage with atheris, which the package itself does not need: ``pip install atheris`` (there are
wheels for Linux). ``tests/test_fuzzing.py`` holds the same rule against some hundred inputs a target by Hypothesis,
without atheris, and against all that was ever found.
"""
