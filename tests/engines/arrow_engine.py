# SPDX-License-Identifier: Apache-2.0
import sys

import common
import pyarrow as pa
import pyarrow.compute as pc

task = common.task()
sys.path.insert(0, task["queries"])
import questions  # noqa: E402  (its folder is part of the task)

TIME = pa.timestamp("ns", tz="UTC")


def value(name, value):
    """Times as the columns have them."""
    if name not in ("since", "until"):
        return value
    return pc.assume_timezone(pa.scalar(value).cast(pa.timestamp("ns")), "UTC").cast(TIME)


def ask(question):
    function = getattr(questions, question["query"].replace("-", "_"))
    parameters = {name: value(name, given) for name, given in question["parameters"].items()}
    return function(task["ledger"], **parameters)


common.answer([ask(question) for question in task["questions"]])
